"""What a workdir holds beside its checkpoints.

config.json     the config, with the overrides
results.json    the outcome of a training
origin.json     of a converted checkpoint, what the other files do not tell
"""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from moecl_jax import reporting
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError, listed, one_line
from moecl_jax.kernels import MADE_FOR
from moecl_jax.models.settings import MeshSettings
from moecl_jax.models.sharding import first_process, fits, wait_for_all
from moecl_jax.outside import parse_json
from moecl_jax.runs import trackers
from moecl_jax.runs.changes import finish, finish_interrupted
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.runs.names import CONFIG_NAME, FREE_KEYS, ORIGIN_NAME
from moecl_jax.runs.settings import Settings, leaves, why_for_all
from moecl_jax.writing import write_json as write_json

# Keys that every version has written; without them another run than the one there would be opened.
_ALWAYS = {"method", "model", "tasks", "seed"}
# Keys that a converted checkpoint fixes, whatever it is trained with.
_FIXED = (
    "method",
    "head",
    "shared_head",
    "lora.rank",
    "lora.alpha",
    "lora.targets",
    "lora.task_attention",
)


@dataclasses.dataclass(frozen=True)
class Origin:
    """What is known of the checkpoint that a workdir was converted from.

    Attributes:
      settings: the content of its JSON file; empty if nothing of it is to be written back.
      tasks: names of its tasks, in the order by which its experts are numbered.
      finished: how many tasks the conversion finished.
      dtypes: names of the tensors that were not float32, by dtype.
    """

    settings: Mapping[str, Any]
    tasks: Sequence[str]
    finished: int
    dtypes: Mapping[str, Sequence[str]]

    def save(self, workdir: Path) -> None:
        """Writes `origin.json`."""
        write_json(workdir / ORIGIN_NAME, dataclasses.asdict(self))

    @classmethod
    def load(cls, workdir: Path) -> "Origin | None":
        """Reads `origin.json`; None where there is none.

        Raises:
          UserError: it is broken.
        """
        path = workdir / ORIGIN_NAME
        try:
            return cls(**parse_json(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, TypeError, ValueError) as error:
            raise UserError(f"{path} is broken: {one_line(error)}. Convert again.") from error


@contextlib.contextmanager
def new_workdir(workdir: Path) -> Iterator[Path]:
    """A folder that becomes the workdir if all goes well, and else leaves nothing.

    Raises:
      UserError: the workdir exists and is not empty.
    """
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError(f"{workdir} exists already and is not empty; name another --workdir")
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=workdir.parent, prefix=f".{workdir.name}.") as folder:
        beside = Path(folder) / "workdir"
        beside.mkdir()
        yield beside
        os.replace(beside, workdir)


def note_other_base(trained_in: str, base: Path) -> None:
    """Says that an adapter names another base than the one it is read for."""
    reporting.current().message(
        f"note: the adapter was trained in {trained_in!r}. {base} has the same sizes; "
        "whether it has the same weights cannot be told"
    )


def save_settings(settings: Settings, workdir: Path) -> None:
    """Writes `config.json`."""
    write_json(workdir / CONFIG_NAME, settings.to_mapping())


def load_settings(workdir: Path) -> Settings:
    """Reads the `config.json` of a workdir, which may have been trained on other devices.

    A mesh that the devices here cannot form becomes one of a single device, and attention that is
    made for others XLA's.

    Raises:
      UserError: there is none, it is broken, or what it names from outside cannot be imported.
    """
    finish_interrupted(workdir)
    path = workdir / CONFIG_NAME
    if not path.exists():
        raise UserError(
            f"{path} does not exist: {workdir} is no workdir. Name the --workdir of a training."
        )
    try:
        content = parse_json(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("expected an object")
        if missing := _ALWAYS - content.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is broken: {one_line(error)}. Restore it from a copy.") from error
    try:
        settings = Settings.from_mapping(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    changes: dict[str, Any] = {}
    if not fits(dataclasses.asdict(settings.mesh)):
        changes["mesh"] = MeshSettings()
    attention = settings.model.attention
    if MADE_FOR.get(attention, jax.default_backend()) != jax.default_backend():
        changes["model"] = dataclasses.replace(settings.model, attention="xla")
    return dataclasses.replace(settings, **changes)


def check_workdir(settings: Settings, workdir: Path) -> Settings:
    """Refuses to train in a workdir of another run, or in one that cannot hold what will be saved.

    The workdir is claimed. What is left of a change that was interrupted is done first.

    Returns:
      The settings with the places of the tasks that were removed.

    Raises:
      UserError: says why.
    """
    if first_process():
        finish(workdir)
    wait_for_all("a change that was interrupted")
    refuse_other_settings(settings, workdir)
    settings = with_removed(settings, workdir)
    trackers.require(settings.trackers)
    checkpoints = TaskCheckpoints(workdir, settings.tasks)
    if first_process():
        checkpoints.probe()
    if checkpoints.any() and not (workdir / CONFIG_NAME).exists():
        raise UserError(
            f"{workdir} holds checkpoints, and no {CONFIG_NAME}, which says how they were trained. "
            "Restore it from a copy, or use another --workdir."
        )
    return settings


def refuse_other_settings(settings: Settings, workdir: Path, *, retuned: bool = True) -> None:
    """Compares with the settings of an earlier run in this workdir.

    Only what changes no result may differ, and what follows the tasks that were begun. Where a
    checkpoint was converted and nothing has been trained since, all may differ but what the
    checkpoint fixes.

    Args:
      settings: settings of the run that goes on.
      workdir: its folder.
      retuned: whether tasks that are still to be trained may be trained with other values than
        those before, where these change neither shapes nor what finished tasks answer.

    Raises:
      UserError: names the first key that differs and both values.
    """
    if not (workdir / CONFIG_NAME).exists():
        return
    old, new = load_settings(workdir), with_removed(settings, workdir)
    known = _begun_tasks(old, workdir)
    refuse_other_tasks(str(workdir), known, new.tasks, "Use another --workdir.")
    origin = Origin.load(workdir)
    free_to_choose = origin is not None and not _trained_since(workdir, old.tasks, origin)
    objective = new.options.get("adversarial", {}).get("objective")
    if free_to_choose and new.method == "moe_cl" and objective == "off":
        raise UserError(
            f"config: adversarial.objective = 'off' leaves no place for the discriminator in "
            f"{workdir}; take adversarial.alpha=0 to train without its influence"
        )
    held = _fixed if free_to_choose else bound_settings
    flat_old, flat_new = held(old, known), held(new, known)
    finished = len(TaskCheckpoints(workdir, old.tasks).known_finished())
    by_task = new.by_task if retuned else set()
    for key in sorted(flat_old.keys() | flat_new.keys()):
        if flat_old.get(key) == flat_new.get(key):
            continue
        if key in by_task and finished < len(new.tasks):
            continue
        reason = why_for_all(key)
        if key in by_task:
            reason = "it may change for tasks that are added, and all tasks are finished"
        raise UserError(
            f"{workdir} was begun with {key} = {flat_old.get(key)!r}, and now it is "
            f"{flat_new.get(key)!r}. Use another --workdir, or the value it was begun with: "
            f"{reason}."
        )


def _begun_tasks(settings: Settings, workdir: Path) -> list[str]:
    """Names of the tasks of a workdir that were begun; of all where none was."""
    count = TaskCheckpoints(workdir, settings.tasks).begun_count()
    return list(settings.tasks[: count or None])


def with_removed(settings: Settings, workdir: Path) -> Settings:
    """The settings with the places of the tasks that were removed from a workdir.

    A config lists the tasks that it means; those that were removed are not among them.

    Raises:
      UserError: the tasks that are left are not the first ones of the list.
    """
    if not (workdir / CONFIG_NAME).exists():
        return settings
    old = load_settings(workdir)
    gone = {task.name for task in old.task_objects() if task.removed}
    begun = _begun_tasks(old, workdir)
    removed = {name: old.definitions[name] for name in begun if name in gone}
    if not removed:
        return settings
    now = [name for name in settings.tasks if name not in removed]
    left = [name for name in begun if name not in removed]
    if now[: len(left)] != left:
        raise UserError(
            f"{workdir} holds the tasks {', '.join(left)}, and {listed(removed)} stand in the "
            "places of tasks that were removed. The list may only be extended at its end, and now "
            f"it is {', '.join(settings.tasks)}. A task that was removed is trained anew at the "
            "end of the list."
        )
    return settings.changed(
        {
            "tasks": (*begun, *now[len(left) :]),
            "definitions": {**settings.definitions, **removed},
        }
    )


def bound_settings(settings: Settings, known: Sequence[str]) -> dict[str, Any]:
    """All that a run that goes on must repeat, by dotted key.

    Args:
      settings: settings of the run.
      known: names of the tasks that were known when it was begun.
    """
    content = settings.to_mapping()
    content["definitions"] = _definitions(settings, known)
    del content["task_settings"]  # a value of one task is noted with its checkpoint
    return {key: value for key, value in leaves(content) if key not in FREE_KEYS}


def refuse_other_tasks(place: str, known: Sequence[str], now: Sequence[str], remedy: str) -> None:
    """Refuses a stream that does not begin with the tasks of an earlier training.

    Args:
      place: names the earlier training in the message.
      known: names of its tasks.
      now: names of the stream's tasks.
      remedy: sentence that says what to do.

    Raises:
      UserError: they differ.
    """
    if list(now[: len(known)]) != list(known):
        raise UserError(
            f"{place} was begun with the tasks {', '.join(known)}; the list may only be extended "
            f"at its end, and now it is {', '.join(now)}. {remedy}"
        )


def _trained_since(workdir: Path, tasks: Sequence[str], origin: Origin) -> bool:
    """Whether anything was trained since the conversion, or cannot be told for damage."""
    checkpoints = TaskCheckpoints(workdir, tasks)
    try:
        record = checkpoints.in_progress_record()
        begun = record is not None and record["step"] > 0
        return begun or checkpoints.finished_count() > origin.finished
    except UserError:  # whoever goes on says so, or goes back to the newest whole state
        return True


def _fixed(settings: Settings, known: Sequence[str]) -> dict[str, Any]:
    """What a converted checkpoint fixes, by dotted key."""
    values = dict(leaves(settings.to_mapping()))
    counts = {
        f"the number of definitions.{name}.labels": len(fields["labels"])
        for name, fields in _definitions(settings, known).items()
    }
    return {key: values[key] for key in _FIXED} | counts


def _definitions(settings: Settings, known: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The definitions of the known tasks; fields that they leave out have their defaults."""
    return {
        name: Task.from_fields(name, fields).to_fields()
        for name, fields in settings.definitions.items()
        if name in known
    }
