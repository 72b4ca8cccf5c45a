"""How far the run in a workdir is, read from its files alone.

Nothing is written, no lock is kept, and JAX is not imported: a run may be looked at while it
trains, after it was killed, and on another machine.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moecl_jax.errors import UserError, one_line
from moecl_jax.outside import parse_json
from moecl_jax.progress import duration
from moecl_jax.runs.names import (
    CHECKPOINTS_FOLDER,
    CONFIG_NAME,
    IN_PROGRESS_FOLDER,
    LOCK_NAME,
    LOG_NAME,
    RESULTS_NAME,
    SET_ASIDE_FOLDER,
    SWEEP_NAME,
    TENSORBOARD_FOLDER,
    states_inside,
)

_LAST_BYTES = 2**16  # of metrics.jsonl, in which the last whole line is looked for


@dataclasses.dataclass(frozen=True)
class TaskStatus:
    """How far a task is.

    Attributes:
      name: name of the task.
      state: "finished", "begun" or "waiting".
      accuracy: test accuracy after the task that was finished last, a fraction; None where it was
        not measured.
      accuracy_then: the same just after the task's own training.
      step: steps done of a task that was begun, by the log.
      steps: its steps in all; None where nothing was logged.
      saved_step: the step from which a killed training would go on; 0 for the task's beginning.
      losses: the last logged losses, by their keys in metrics.jsonl.
    """

    name: str
    state: str
    accuracy: float | None = None
    accuracy_then: float | None = None
    step: int | None = None
    steps: int | None = None
    saved_step: int | None = None
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
      workdir: folder of the run.
      method: method that is trained.
      state: "training" where a process trains in it now, "finished" where all tasks are, else
        "stopped".
      tasks: the tasks in the order of training.
      accuracy: mean accuracy over the finished tasks, where it was measured; else None.
      written: when anything was written last, in seconds since 1970.
      bytes: sizes on disk by part: finished_tasks, state_inside_a_task, set_aside, tensorboard,
        metrics and other, as far as they are there; the largest first.
    """

    workdir: str
    method: str
    state: str
    tasks: tuple[TaskStatus, ...]
    accuracy: float | None
    written: float
    bytes: Mapping[str, int]

    def to_content(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        finished = sum(task.state == "finished" for task in self.tasks)
        mean = "" if self.accuracy is None else f", mean accuracy {_percent(self.accuracy)}"
        ago = duration(time.time() - self.written)
        lines = [
            f"{self.workdir}: {self.method}, {self.state}",
            f"{finished} of {len(self.tasks)} tasks finished{mean}; last written {ago} ago",
            "",
        ]
        width = max(4, *(len(task.name) for task in self.tasks))
        lines.append(f"{'task':{width}}  now    then   state")
        for task in self.tasks:
            now, then = _percent(task.accuracy), _percent(task.accuracy_then)
            lines.append(f"{task.name:{width}}  {now:5}  {then:5}  {_state(task)}")
        lines += ["", f"on disk: {_size(sum(self.bytes.values()))}"]
        lines += [f"  {part.replace('_', ' ')}: {_size(size)}" for part, size in self.bytes.items()]
        return "\n".join(lines)


def status_of(workdir: str | Path) -> Status:
    """Looks at a workdir.

    Args:
      workdir: folder of a run.

    Raises:
      UserError: there is no run in it, or config.json cannot be read.
    """
    workdir = Path(workdir)
    config = _config(workdir)
    names = [str(name) for name in config["tasks"]]
    finished: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        record = _record(workdir / CHECKPOINTS_FOLDER / f"{index:03d}_{name}")
        if record is None:  # what follows a checkpoint that is gone does not count
            break
        finished.append(record)
    matrix = finished[-1].get("accuracy", []) if finished else []
    tasks = [
        TaskStatus(
            name, "finished", _entry(matrix, len(finished) - 1, place), _entry(matrix, place, place)
        )
        for place, name in enumerate(names[: len(finished)])
    ]
    done = int(finished[-1].get("global_step", 0)) if finished else 0
    for name in names[len(finished) :]:
        begun = _begun(workdir, name, done) if len(tasks) == len(finished) else None
        tasks.append(begun or TaskStatus(name, "waiting"))
    known = [task.accuracy for task in tasks if task.accuracy is not None]
    files = [*_files(workdir)]
    sizes: dict[str, int] = {}
    for path, size, _ in files:
        part = _part(path.relative_to(workdir))
        sizes[part] = sizes.get(part, 0) + size
    complete = len(finished) == len(names) and (workdir / RESULTS_NAME).exists()
    state = "training" if _locked(workdir) else "finished" if complete else "stopped"
    return Status(
        str(workdir),
        str(config["method"]),
        state,
        tuple(tasks),
        sum(known) / len(known) if known else None,
        max((written for _, _, written in files), default=0.0),
        dict(sorted(sizes.items(), key=lambda item: -item[1])),
    )


def runs_of(folder: str | Path) -> list[Path]:
    """The workdirs of a sweep's folder that were begun; else the folder itself.

    Raises:
      UserError: sweep.json cannot be read, or none of its runs was begun.
    """
    folder = Path(folder)
    if not (folder / SWEEP_NAME).exists():
        return [folder]
    try:
        entries = parse_json((folder / SWEEP_NAME).read_bytes())["runs"]
        runs = [folder / str(entry["workdir"]) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / SWEEP_NAME} is broken: {one_line(error)}") from error
    begun = [run for run in runs if (run / CONFIG_NAME).exists()]
    if not begun:
        raise UserError(f"{folder} is a sweep of {len(runs)} runs, none of which was begun")
    return begun


def _config(workdir: Path) -> dict[str, Any]:
    """Method and tasks; not all settings, whose classes may be elsewhere."""
    path = workdir / CONFIG_NAME
    if not workdir.is_dir():
        raise UserError(f"{workdir} is no folder; name the --workdir of a training")
    if not path.exists():
        raise UserError(
            f"{workdir} holds no run: there is no {CONFIG_NAME} in it, which a training writes "
            "when its data are read. Name the --workdir of a training."
        )
    try:
        content = parse_json(path.read_bytes())
        if not isinstance(content, dict) or not {"method", "tasks"} <= content.keys():
            raise ValueError("expected an object with method and tasks")
        if not isinstance(content["tasks"], list):
            raise ValueError("tasks is no list")
        return content
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is broken: {one_line(error)}. Restore it from a copy.") from error


def _record(checkpoint: Path) -> dict[str, Any] | None:
    """The record of a checkpoint; None where it is not there, not whole, or being deleted."""
    try:
        # Orbax writes Infinity too, which is no JSON.
        content = json.loads((checkpoint / "record" / "metadata").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _begun(workdir: Path, name: str, done: int) -> TaskStatus | None:
    """The task after the finished ones; None if it was not begun.

    Args:
      workdir: folder of the run.
      name: name of the task.
      done: steps of the finished tasks.
    """
    saved = None
    for state in reversed(states_inside(workdir / CHECKPOINTS_FOLDER)):
        record = _record(state)
        if record is not None and record.get("task") == name:
            saved = int(state.name.partition("_")[0])
            break
    line = _last_line(workdir / LOG_NAME)
    if line.get("task") != name or int(line.get("step", 0)) <= done:
        return None if saved is None else TaskStatus(name, "begun", step=saved, saved_step=saved)
    losses = {
        key: value
        for key in ("loss", "loss_instruction", "loss_adversarial")
        if isinstance(value := line.get(key), int | float)
    }
    return TaskStatus(
        name,
        "begun",
        step=max(saved or 0, int(line["step"]) - done),
        steps=line.get("task_steps"),
        saved_step=saved or 0,
        losses=losses,
    )


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line of the log; empty where there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = stream.read().split(b"\n")[:-1]
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            content = parse_json(line)
        except ValueError:
            continue
        if isinstance(content, dict) and isinstance(content.get("step"), int):
            return content
    return {}


def _locked(workdir: Path) -> bool:
    """Whether a process of this machine trains in the workdir."""
    import fcntl  # of POSIX

    try:
        with (workdir / LOCK_NAME).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def _files(folder: Path) -> Iterator[tuple[Path, int, float]]:
    """Each file below a folder, its size, and when it was written; files may vanish meanwhile."""
    for above, _, names in os.walk(folder):
        for name in names:
            path = Path(above, name)
            try:
                found = path.lstat()
            except OSError:
                continue
            if name != LOCK_NAME:  # which a training opens without writing
                yield path, found.st_size, found.st_mtime


def _part(path: Path) -> str:
    """Which part of a workdir a file belongs to."""
    first, *others = path.parts
    if first == CHECKPOINTS_FOLDER and others:
        special = {IN_PROGRESS_FOLDER: "state_inside_a_task", SET_ASIDE_FOLDER: "set_aside"}
        return special.get(others[0], "finished_tasks")
    return {TENSORBOARD_FOLDER: "tensorboard", LOG_NAME: "metrics"}.get(first, "other")


def _entry(matrix: Sequence[Sequence[Any]], row: int, column: int) -> float | None:
    try:
        value = matrix[row][column]
    except (IndexError, TypeError):
        return None
    known = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if known else None


def _state(task: TaskStatus) -> str:
    if task.state != "begun":
        return task.state
    text = f"step {task.step}" + ("" if task.steps is None else f" of {task.steps}")
    if "loss_instruction" in task.losses:
        text += f", loss {task.losses['loss_instruction']:.3g}"
    if task.losses.get("loss_adversarial"):
        text += f" adv {task.losses['loss_adversarial']:.3g}"
    return f"{text}, saved at {task.saved_step}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _size(count: int) -> str:
    """Bytes in the largest unit that fits, of 1000 each."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
