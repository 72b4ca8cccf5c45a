"""Undoing parts of a run: back to the end of an earlier task, or without one of its tasks.

Each is planned first, which reads and changes nothing, and then made as one `Change`. A task that
is removed keeps its place in the stream, under another name and without data, so that places in
arrays that all tasks share, and shapes, stay as they are: the other tasks answer as before, bit for
bit.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from moecl_jax.data.sources.none import Removed
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError, listed
from moecl_jax.retrieval import Index
from moecl_jax.runs.changes import PREPARED, Change
from moecl_jax.runs.checkpoint import IN_PROGRESS, TaskCheckpoints
from moecl_jax.runs.lock import claimed
from moecl_jax.runs.names import (
    CHECKPOINTS_FOLDER,
    CONFIG_NAME,
    DATA_NAME,
    FINISHED_NAME,
    INDEX_NAME,
    LOG_NAME,
    NOT_FINITE_NAME,
    ONLINE_FOLDER,
    RESULTS_NAME,
    SET_ASIDE_FOLDER,
)
from moecl_jax.runs.results import read_object
from moecl_jax.runs.settings import Settings
from moecl_jax.runs.workdir import Origin, load_settings

# What is left of the definition of a task that is removed: what shapes depend on.
_KEPT_FIELDS = ("labels", "raw_labels", "response_field", "metric", "template", "chat")

_ONLINE_GOES = f"  deleted: {ONLINE_FOLDER}/, all that was learned online"
_PREPARED_INDEX = f"{CHECKPOINTS_FOLDER}/{PREPARED}/{INDEX_NAME}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A rollback or a removal; `print(plan)` says what it does.

    Attributes:
      lines: what is deleted, and what stays.
      change: what is done to the workdir.
      prepare: writes what the change puts in its place.
    """

    lines: tuple[str, ...]
    change: Change
    prepare: Callable[[], None] = lambda: None

    def __str__(self) -> str:
        return "\n".join(self.lines)


def rollback(workdir: str | Path, to: str, *, dry_run: bool = False) -> Plan:
    """Goes back to the moment when a task was finished.

    The run then is the one that stopped after that task: its parameters, memory and features, bit
    for bit. What was learned of later tasks is deleted.

    Args:
      workdir: folder of the run.
      to: name of a finished task, which becomes the last one.
      dry_run: whether to plan alone, and change nothing.

    Returns:
      What was done, or would be.

    Raises:
      UserError: there is no such state to go back to, or another process works in the workdir.
    """
    return _made(Path(workdir), _plan_rollback, to, dry_run=dry_run)


def remove(workdir: str | Path, task: str, *, dry_run: bool = False) -> Plan:
    """Removes a finished task: its expert, its head, its features, and its part of the memory.

    All other tasks answer as before, bit for bit. What the task changed in trees that others share
    stays; the plan says so. A later task of the same name begins anew.

    Args:
      workdir: folder of the run.
      task: name of a finished task.
      dry_run: whether to plan alone, and change nothing.

    Returns:
      What was done, or would be.

    Raises:
      UserError: the task is not finished, or others cannot do without it; or another process works
        in the workdir.
    """
    return _made(Path(workdir), _plan_removal, task, dry_run=dry_run)


def _made(
    workdir: Path, plan: Callable[[Path, Settings, str], Plan], task: str, *, dry_run: bool
) -> Plan:
    load_settings(workdir)  # before a folder is claimed that is no workdir
    with claimed(workdir):
        settings = load_settings(workdir)
        planned = plan(workdir, settings, task)
        if not dry_run:
            TaskCheckpoints(workdir, settings.tasks).tidy()
            planned.prepare()
            planned.change.make(workdir)
    return planned


def _plan_rollback(workdir: Path, settings: Settings, to: str) -> Plan:
    names, checkpoints = settings.tasks, TaskCheckpoints(workdir, settings.tasks)
    tasks = settings.task_objects()
    index = _finished_place(workdir, tasks, to)
    origin = Origin.load(workdir)
    if settings.method_object().examples.joint:
        raise UserError(
            f"{workdir} was trained on all its tasks at once; there is no state after one of them"
        )
    if origin is not None and index + 1 < origin.finished:
        raise UserError(
            f"the first {origin.finished} tasks of {workdir} were converted together, and there is "
            f"no state between them; go back to '{names[origin.finished - 1]}', or a later one"
        )
    for place in range(index + 1):
        checkpoints.finished_record(place)  # it is there
    checkpoints.restore_shared(index)  # it was kept, and is whole
    known, inside = checkpoints.known_finished(), _state_inside(checkpoints)
    later = [checkpoints.path(place).name for place in range(index + 1, len(names))]
    there = [name for name in later if os.path.lexists(checkpoints.folder / name)]
    if not there and inside is None and len(known) <= index + 1:
        raise UserError(
            f"'{to}' is the task that was finished last in {workdir}: there is nothing to go back "
            "from"
        )
    lines = [f"{workdir} goes back to the end of task '{to}', {index + 1} of {len(names)}"]
    lines += [
        f"  deleted: {CHECKPOINTS_FOLDER}/{name}, with expert, head and features" for name in there
    ]
    if inside is not None:
        lines.append(f"  deleted: {inside}")
    if (workdir / RESULTS_NAME).exists():
        lines.append(f"  deleted: {RESULTS_NAME}, which is of all tasks")
    lines.append("  'moecl train' trains the later tasks again, or others in their place")
    removed = [f"{CHECKPOINTS_FOLDER}/{name}" for name in (*there, IN_PROGRESS)]
    files: dict[str, object] = {FINISHED_NAME: list(names[: index + 1])}
    without = _IndexWithout.of(workdir, names[index + 1 :])
    online = _learned_online(workdir, tasks[index + 1 : len(known)])
    stays = _of_online(workdir, f"  stays: {ONLINE_FOLDER}/, of use only if begun after '{to}'")
    lines[-1:-1] = [*without.lines, *(online.values() or stays)]
    traces = [task.name for task in tasks[index + 1 :] if task.removed]
    if traces:
        left = [name for name in names if name not in traces]
        files[CONFIG_NAME] = read_object(workdir / CONFIG_NAME) | {"tasks": left}
    change = Change((*removed, *online, RESULTS_NAME, NOT_FINITE_NAME), without.placed, files)
    return Plan(tuple(lines), change, without.prepare)


def _state_inside(checkpoints: TaskCheckpoints) -> str | None:
    """What there is of the state inside a task, which may be damaged; None if there is none."""
    try:
        record = checkpoints.in_progress_record()
    except UserError:
        return "the training inside a task, which is damaged"
    if record is None:
        return None
    return f"the training of '{record['task']}' up to step {record['step']}"


def _plan_removal(workdir: Path, settings: Settings, task: str) -> Plan:
    checkpoints, method = TaskCheckpoints(workdir, settings.tasks), settings.method_object()
    tasks = settings.task_objects()
    index, count = _finished_place(workdir, tasks, task), checkpoints.finished_count()
    newest = index == count - 1
    others = [each.name for each in tasks[:count] if not each.removed and each.name != task]
    _refuse_removal(workdir, settings, tasks, index, count)
    trees = checkpoints.restore_shared(count - 1)
    memory = trees.get("memory", {})
    remembered = method.without_task(memory, index) is not memory
    later = range(index + 1, count) if remembered else ()
    prepared = {
        place: f"{CHECKPOINTS_FOLDER}/{PREPARED}/{place:03d}"
        for place in (index, *filter(checkpoints.has_shared, later))
    }

    without = _IndexWithout.of(workdir, [task])

    def prepare() -> None:
        without.prepare()
        for place, folder in prepared.items():
            shared = None
            if place > index or newest:
                shared = checkpoints.restore_shared(place)
                if remembered:
                    shared["memory"] = method.without_task(shared["memory"], index)
            checkpoints.save_copy(place, workdir / folder, own=place != index, shared=shared)

    trace = _trace_of(tasks[index], {*settings.tasks, *settings.definitions})
    names = [trace.name if name == task else name for name in settings.tasks]
    after = TaskCheckpoints(workdir, names)
    placed = {
        f"{CHECKPOINTS_FOLDER}/{after.path(place).name}": prepared[place] for place in prepared
    } | dict(without.placed)
    own = checkpoints.path(index)
    # Features of all tasks are with the newest, unless they were not known when it was finished.
    removed = [own, workdir / NOT_FINITE_NAME, workdir / ONLINE_FOLDER]
    removed += [checkpoints.features_path(p) for p in range(index, count) if p not in prepared]
    lines = [f"'{task}', task {index + 1} of {len(names)}, is removed from {workdir}"]
    lines.append(f"  deleted: {CHECKPOINTS_FOLDER}/{own.name}, with expert, head and features")
    if remembered:
        lines.append("  deleted: what the method's memory holds of it alone")
    lines += without.lines
    lines += _of_online(workdir, _ONLINE_GOES)
    if method.examples.joined:
        lines.append("  its examples no longer join the batches of later tasks")
    if jax.tree.leaves(trees):
        lines.append("  stays: what its training changed in the trees that the tasks share")
    lines.append(
        f"  stays: its place, as '{trace.name}', with its labels and template; what {RESULTS_NAME} "
        f"and {LOG_NAME} say of it"
    )
    first = tasks[index].continues
    newer = [each.name for each in tasks[index + 1 : count] if first and each.continues == first]
    lines += _out_of_reach(checkpoints, newer)
    if newer:
        first = ""  # a newer part answers for it, and goes on to
    unchanged = [name for name in others if name != first]
    if unchanged:
        lines.append(f"  {listed(unchanged)} answer as before")
    if first:
        lines.append(f"  '{first}' is answered by what it had before '{task}'")
    if newest and jax.tree.leaves(trees):
        lines.append(f"  'moecl rollback --to={others[-1]}' would undo all that it changed")
    change = Change(
        tuple(str(path.relative_to(workdir)) for path in removed),
        placed,
        _files_without(workdir, task, trace, names, count),
    )
    return Plan(tuple(lines), change, prepare)


def _of_online(workdir: Path, line: str) -> list[str]:
    """What a plan says of what was learned online; nothing where nothing was."""
    return [line] if (workdir / ONLINE_FOLDER).exists() else []


@dataclasses.dataclass(frozen=True)
class _IndexWithout:
    """The workdir's index without some tasks' entries.

    Attributes:
      workdir: folder of the run.
      tasks: names of the tasks.
      count: number of their entries; 0 where nothing was indexed.
    """

    workdir: Path
    tasks: frozenset[str]
    count: int

    @classmethod
    def of(cls, workdir: Path, tasks: Collection[str]) -> "_IndexWithout":
        """Counts the entries.

        Raises:
          UserError: the index is damaged, or cannot be read here.
        """
        chosen, path = frozenset(tasks), workdir / INDEX_NAME
        count = Index.load(path).delete(tasks=chosen) if path.exists() else 0
        return cls(workdir, chosen, count)

    @property
    def lines(self) -> list[str]:
        """What a plan says of it."""
        return [f"  deleted: {self.count} entries of {INDEX_NAME}"] if self.count else []

    @property
    def placed(self) -> dict[str, str]:
        """What a change puts in the place of what, as `Change.placed`."""
        return {INDEX_NAME: _PREPARED_INDEX} if self.count else {}

    def prepare(self) -> None:
        """Writes the new file beside the old one."""
        if self.count:
            index = Index.load(self.workdir / INDEX_NAME)
            index.delete(tasks=self.tasks)
            (self.workdir / _PREPARED_INDEX).parent.mkdir(parents=True, exist_ok=True)
            index.save(self.workdir / _PREPARED_INDEX)


def _out_of_reach(checkpoints: TaskCheckpoints, newer: Sequence[str]) -> list[str]:
    """What a plan says of what may be left of a task: in parts that went on from it, set aside."""
    lines = [f"  stays: what {listed(newer)} took over by going on from it"] if newer else []
    if (checkpoints.folder / SET_ASIDE_FOLDER).exists():
        lines.append(f"  stays: {CHECKPOINTS_FOLDER}/{SET_ASIDE_FOLDER}, which may be of it too")
    return lines


def _learned_online(workdir: Path, tasks: Sequence[Task]) -> dict[str, str]:
    """The folder of what was learned online of tasks that go, with what a plan says of it.

    It goes whole: what is in it of other tasks cannot be gone on with when the tasks are others.
    Empty where nothing was learned online of these tasks.
    """
    gone = {task.name for task in tasks} | {task.continues for task in tasks}
    try:
        record = TaskCheckpoints(workdir / ONLINE_FOLDER).in_progress_record()
    except UserError:  # what of cannot be told
        return {ONLINE_FOLDER: _ONLINE_GOES}
    if record is None or gone.isdisjoint(track["task"] for track in record["tracks"]):
        return {}
    return {ONLINE_FOLDER: _ONLINE_GOES}


def _refuse_removal(
    workdir: Path, settings: Settings, tasks: Sequence[Task], index: int, count: int
) -> None:
    """Refuses to remove a task that others, or a training that stopped, cannot do without.

    Args:
      workdir: folder of the run.
      settings: settings of the run.
      tasks: tasks of the stream.
      index: place of the task.
      count: number of finished tasks.

    Raises:
      UserError: says why.
    """
    task, inside = tasks[index].name, TaskCheckpoints(workdir, settings.tasks).in_progress_record()
    others = [each.name for each in tasks[:count] if not each.removed and each.name != task]
    later = [each.name for each in tasks if each.continues == task]
    if later:
        raise UserError(
            f"'{task}' is continued by {listed(later)}, which cannot be told from it. Remove that "
            "first, or take it out of the config if it is not trained"
        )
    if inside is not None:
        raise UserError(
            f"training stopped inside task '{inside['task']}' of {workdir}. Finish it first, or "
            f"drop it: 'moecl rollback --to={tasks[count - 1].name}'"
        )
    if not others:
        raise UserError(
            f"'{task}' is the only task that answers in {workdir}; delete the folder instead"
        )
    if settings.method_object().examples.joint:
        raise UserError(
            f"{workdir} was trained on all its tasks at once; nothing in it is of one task alone"
        )
    if index == count - 1 and settings.shared_head:
        raise UserError(
            f"the head of '{task}', the newest task, answers for all tasks (shared_head). Train "
            f"another task first, or undo this one: 'moecl rollback --to={others[-1]}'"
        )


def _files_without(
    workdir: Path, task: str, trace: Task, names: Sequence[str], count: int
) -> dict[str, object]:
    """Content of the workdir's files with a task's trace in the place of the task."""
    config = read_object(workdir / CONFIG_NAME)
    definitions = {**config.get("definitions", {}), trace.name: trace.to_fields()}
    definitions.pop(task, None)
    own_values = {n: v for n, v in config.get("task_settings", {}).items() if n != task}
    config |= {"tasks": list(names), "definitions": definitions, "task_settings": own_values}
    files: dict[str, object] = {CONFIG_NAME: config, FINISHED_NAME: list(names[:count])}
    if (workdir / RESULTS_NAME).exists():
        results = read_object(workdir / RESULTS_NAME)
        names_there = _entry(results, "tasks", workdir / RESULTS_NAME)
        renamed = [trace.name if name == task else name for name in names_there]
        files[RESULTS_NAME] = results | {"tasks": renamed}
    if (workdir / DATA_NAME).exists():
        data = read_object(workdir / DATA_NAME)
        _entry(data, "tasks", workdir / DATA_NAME).pop(task, None)
        files[DATA_NAME] = data
    return files


def _entry(content: Mapping[str, Any], key: str, path: Path) -> Any:
    """A value that a file must have.

    Raises:
      UserError: it has none.
    """
    if key not in content:
        raise UserError(f"{path} is broken: it lacks '{key}'. Restore it from a copy.")
    return content[key]


def _finished_place(workdir: Path, tasks: Sequence[Task], name: str) -> int:
    """The place of a finished task that was not removed.

    Raises:
      UserError: there is none of this name.
    """
    names = [task.name for task in tasks]
    checkpoints = TaskCheckpoints(workdir, names)
    finished = [
        place
        for place, task in enumerate(tasks)
        if checkpoints.path(place).is_dir() and not task.removed
    ]
    known = [names[place] for place in finished]
    if name in known:
        return finished[known.index(name)]
    what = (
        "was removed from"
        if name in names and tasks[names.index(name)].removed
        else ("has not been trained to its end in" if name in names else "is none of")
    )
    raise UserError(f"task '{name}' {what} {workdir}; finished are {listed(known) or 'none'}")


def _trace_of(task: Task, taken: Collection[str]) -> Task:
    """What is left of a task in the stream: a name that is free, and what shapes depend on."""
    for number in itertools.count(1):
        name = f"{task.name}-removed" + (f"-{number}" if number > 1 else "")
        if name not in taken:
            break
    kept = {field: getattr(task, field) for field in _KEPT_FIELDS}
    return Task(name, source=Removed.name, **kept)
