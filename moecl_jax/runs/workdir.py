"""What a workdir holds beside its checkpoints.

config.json     the config, with the overrides
results.json    the outcome of a training
.lock           held by the process that trains in it
origin.json     of a converted checkpoint, what the other files do not tell
"""

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from moecl_jax.config import file as config_file
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.data.definition import TaskDefinition
from moecl_jax.errors import UserError, one_line
from moecl_jax.kernels import MADE_FOR
from moecl_jax.models.sharding import first_process, fits

CONFIG_NAME = "config.json"
RESULTS_NAME = "results.json"
ORIGIN_NAME = "origin.json"

# Keys that change no result and may differ when a run goes on.
_FREE = (
    "tasks",
    "log_every",
    "checkpoint_every",
    "keep_shared",
    "model.attention",
    "batch.evaluation_size",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
)
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
      tasks: in its order, by which its experts are numbered.
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
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, TypeError, ValueError) as error:
            raise UserError(f"{path} is broken: {one_line(error)}. Convert again.") from error


class Busy(UserError):
    """Another process trains in a workdir."""


@contextlib.contextmanager
def claimed(workdir: Path) -> Iterator[None]:
    """Keeps other processes from training in a workdir; a process that dies lets go of it.

    Raises:
      Busy: another one does so already.
    """
    import fcntl  # of POSIX

    if not first_process():  # it speaks for all that train together
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(
                f"another process is training in {workdir}; wait for it, or use another --workdir"
            ) from error
        yield


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
    print(
        f"note: the adapter was trained in {trained_in!r}. {base} has the same sizes; "
        "whether it has the same weights cannot be told",
        file=sys.stderr,
    )


def save_config(config: ConfigDict, workdir: Path) -> None:
    """Writes `config.json`."""
    write_json(workdir / CONFIG_NAME, json.loads(config.to_json()))


def load_config(workdir: Path) -> ConfigDict:
    """Reads the `config.json` of a workdir, which may have been trained on other devices.

    A mesh that the devices here cannot form becomes one of a single device, and attention that is
    made for others XLA's.

    Raises:
      UserError: there is none, or it is broken.
    """
    path = workdir / CONFIG_NAME
    if not path.exists():
        raise UserError(
            f"{path} does not exist: {workdir} is no workdir. Name the --workdir of a training."
        )
    config = config_file.read_json(path)
    if not fits(config.mesh):
        config.mesh.update({axis: 1 for axis in config.mesh})
    if MADE_FOR.get(config.model.attention, jax.default_backend()) != jax.default_backend():
        config.model.attention = "xla"
    return config.lock()


def refuse_other_config(config: ConfigDict, workdir: Path) -> None:
    """Compares with the config of an earlier run in this workdir.

    Only what changes no result may differ, and tasks may be added at the end of the list. Where a
    checkpoint was converted and nothing has been trained since, all may differ but what the
    checkpoint fixes.

    Raises:
      UserError: names the first key that differs and both values.
    """
    if not (workdir / CONFIG_NAME).exists():
        return
    old, new = json.loads(load_config(workdir).to_json()), json.loads(config.to_json())
    known = old["tasks"]
    if new["tasks"][: len(known)] != known:
        raise UserError(
            f"{workdir} was begun with the tasks {', '.join(known)}; the list may only be "
            f"extended at its end, and now it is {', '.join(new['tasks'])}. Use another --workdir."
        )
    origin = Origin.load(workdir)
    free_to_choose = origin is not None and not _trained_since(workdir, origin)
    method, objective = new["method"], new["adversarial"]["objective"]
    if free_to_choose and method == "moe_cl" and objective == "off":
        raise UserError(
            f"config: adversarial.objective = 'off' leaves no place for the discriminator in "
            f"{workdir}; take adversarial.alpha=0 to train without its influence"
        )
    held = _fixed if free_to_choose else _bound
    flat_old, flat_new = held(old, known), held(new, known)
    for key in sorted(flat_old.keys() | flat_new.keys()):
        if flat_old.get(key) != flat_new.get(key):
            raise UserError(
                f"{workdir} was begun with {key} = {flat_old.get(key)!r}, and now it is "
                f"{flat_new.get(key)!r}. Use another --workdir, or the value it was begun with."
            )


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    beside = path.with_name(path.name + ".part")
    text = json.dumps(content, indent=2, allow_nan=False)
    beside.write_text(text + "\n", encoding="utf-8")
    os.replace(beside, path)


def _trained_since(workdir: Path, origin: Origin) -> bool:
    """Whether anything was trained since the conversion."""
    checkpoints = TaskCheckpoints(workdir)
    record = checkpoints.in_progress_record()
    begun = record is not None and record["step"] > 0
    return begun or checkpoints.finished_count() > origin.finished


def _bound(content: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """By dotted key, all that a run that goes on must repeat."""
    # Fields that a definition leaves out, or that are younger than it, have their defaults.
    defaults = {
        field.name: list(field.default) if isinstance(field.default, tuple) else field.default
        for field in dataclasses.fields(TaskDefinition)
        if field.default is not dataclasses.MISSING
    }
    definitions = {
        name: {**defaults, **fields}
        for name, fields in content["definitions"].items()
        if name in known
    }
    leaves = _leaves({**content, "definitions": definitions})
    return {key: value for key, value in leaves if key not in _FREE}


def _fixed(content: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """By dotted key, what a converted checkpoint fixes."""
    leaves = dict(_leaves(content))
    counts = {
        f"the number of definitions.{name}.labels": len(definition["labels"])
        for name, definition in content["definitions"].items()
        if name in known
    }
    return {key: leaves[key] for key in _FIXED} | counts


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((prefix + key, value))
    return leaves
