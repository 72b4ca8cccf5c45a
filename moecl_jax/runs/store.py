"""Where a stream's state and history are kept: in the checkpoints of a workdir, or in memory."""

import abc
import copy
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from moecl_jax.data.task import Task
from moecl_jax.errors import UserError
from moecl_jax.methods.parameters import Tree
from moecl_jax.methods.stream import FinishedTask, StartingValues, StreamState
from moecl_jax.models.model import Model
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.runs.features import TaskFeatures
from moecl_jax.runs.history import History
from moecl_jax.runs.log import plain
from moecl_jax.runs.names import CONFIG_NAME
from moecl_jax.runs.settings import Settings
from moecl_jax.runs.workdir import bound_settings, refuse_other_tasks


class Store(abc.ABC):
    """Keeps what a stream has learned.

    Attributes:
      tasks: tasks of the stream in their order.
      starting: starting values of the stream.
      lasting: whether what is kept outlives this process.
    """

    tasks: Sequence[Task]
    starting: StartingValues
    lasting: bool

    @abc.abstractmethod
    def restore(self) -> tuple[StreamState, History | None]:
        """The state after the last finished task, and the history; None if none is finished."""

    @abc.abstractmethod
    def finished_names(self) -> list[str]:
        """Names of the finished tasks in their order."""

    @abc.abstractmethod
    def restore_features(self, state: StreamState) -> TaskFeatures | None:
        """Features of all finished label tasks; None where they were not kept."""

    @abc.abstractmethod
    def has_moment(self, index: int) -> bool:
        """Whether the state of the moment when a task was finished can be restored."""

    @abc.abstractmethod
    def restore_moment(self, index: int) -> StreamState:
        """The state of the moment when a task was finished."""

    @abc.abstractmethod
    def save_finished(
        self,
        state: StreamState,
        history: History,
        features: TaskFeatures | None = None,
        own_features: TaskFeatures | None = None,
    ) -> None:
        """Keeps the state after the task that was finished last, and forgets one inside a task.

        Args:
          state: state after that task.
          history: history with that task's row.
          features: features of all finished label tasks, where they are known.
          own_features: those of that task alone.
        """

    @abc.abstractmethod
    def save_in_progress(self, index: int, tree: Tree, record: Mapping[str, Any]) -> None:
        """Keeps a state inside a task.

        Args:
          index: place of the task.
          tree: arrays of its training.
          record: facts about it, `step` among them.
        """

    @abc.abstractmethod
    def in_progress(self) -> dict[str, Any] | None:
        """The record of the state inside a task, with `task` and `tasks`; None if there is none."""

    @abc.abstractmethod
    def restore_in_progress(self, template: Tree) -> Tree:
        """The arrays of the state inside a task; `template` gives their shapes and dtypes."""


class MemoryStore(Store):
    """Keeps everything in this process alone; a state inside a task is not kept."""

    lasting = False

    def __init__(self) -> None:
        """Empty; the tasks and the starting values are set by whoever trains."""
        self.tasks = ()
        self._known: list[str] = []  # tasks of the stream when the last one was finished
        self._moments: list[StreamState] = []
        self._history: History | None = None
        self._features: TaskFeatures | None = None

    def restore(self) -> tuple[StreamState, History | None]:
        """As `Store` says.

        Raises:
          UserError: the tasks do not begin with those of the training before.
        """
        if self._history is None:
            return self.starting.stream(len(self.tasks)), None
        names = [task.name for task in self.tasks]
        refuse_other_tasks("this training", self._known, names, "Make another Trainer.")
        return self._ready(self._moments[-1]), copy.deepcopy(self._history)

    def finished_names(self) -> list[str]:
        """As `Store` says."""
        return [task.name for task in self.tasks[: len(self._moments)]]

    def restore_features(self, state: StreamState) -> TaskFeatures | None:
        """As `Store` says."""
        if state.finished:
            return self._features
        return TaskFeatures.blank(self.starting.sizes.width)

    def has_moment(self, index: int) -> bool:
        """As `Store` says."""
        return index < len(self._moments)

    def restore_moment(self, index: int) -> StreamState:
        """As `Store` says."""
        return self._ready(self._moments[index])

    def save_finished(
        self,
        state: StreamState,
        history: History,
        features: TaskFeatures | None = None,
        own_features: TaskFeatures | None = None,
    ) -> None:
        """As `Store` says."""
        del own_features  # nothing is rolled back here
        self._known = [task.name for task in self.tasks]
        self._moments.append(state)
        self._history, self._features = copy.deepcopy(history), features

    def save_in_progress(self, index: int, tree: Tree, record: Mapping[str, Any]) -> None:
        """Nothing is kept."""
        del index, tree, record

    def in_progress(self) -> dict[str, Any] | None:
        """There is none."""
        return None

    def restore_in_progress(self, template: Tree) -> Tree:
        """There is none."""
        del template
        raise LookupError("a store in memory keeps nothing inside a task")

    def _ready(self, state: StreamState) -> StreamState:
        return self.starting.extended(state, len(self.tasks))


class _Finished(Mapping[str, FinishedTask | None]):
    """Finished tasks by name, each read when it is first asked for."""

    def __init__(self, names: Sequence[str], read: Callable[[int], FinishedTask | None]) -> None:
        self._places = {name: place for place, name in enumerate(names)}
        self._read = functools.cache(read)

    def __getitem__(self, name: str) -> FinishedTask | None:
        return self._read(self._places[name])

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class DiskStore(Store):
    """Keeps a stream in the checkpoints of a workdir."""

    lasting = True

    def __init__(
        self,
        workdir: Path,
        tasks: Sequence[Task],
        starting: StartingValues,
        model: Model,
        settings: Settings | None = None,
    ):
        """Opens the checkpoints; nothing is created before the first save.

        Args:
          workdir: folder of the run.
          tasks: tasks of the stream in their order.
          starting: starting values of the stream.
          model: frozen model, whose fingerprint checkpoints must have.
          settings: settings of the training, which checkpoints note and must have been made
            with; None in a conversion, which fixes a part of them alone.
        """
        self.tasks, self.starting, self.model = tasks, starting, model
        self.workdir, self.settings = workdir, settings
        self.checkpoints = TaskCheckpoints(workdir, self.names)

    @property
    def names(self) -> list[str]:
        """Names of the tasks in their order."""
        return [task.name for task in self.tasks]

    def restore(self, *, lazily: bool = False) -> tuple[StreamState, History | None]:
        """As `Store` says.

        Args:
          lazily: whether a finished task's own part is read when it is first asked for.

        Raises:
          UserError: the checkpoints were made with another frozen model or other settings, one is
            missing, or one cannot be read.
        """
        count = self.checkpoints.finished_count()
        if not count:
            return self.starting.stream(len(self.tasks)), None
        finished: Mapping[str, FinishedTask | None] = _Finished(self.names[:count], self._own)
        if not lazily:
            finished = dict(finished)
        record = self.checkpoints.finished_record(count - 1)
        self._check(record, count)
        last = self._shared(count - 1)
        history = History.from_record(record).of_first(self._same(record))
        return dataclasses.replace(last, finished=finished), history

    def finished_names(self) -> list[str]:
        """As `Store` says.

        Raises:
          UserError: the checkpoint of one is missing.
        """
        return self.names[: self.checkpoints.finished_count()]

    def restore_features(self, state: StreamState) -> TaskFeatures | None:
        """As `Store` says."""
        finished = self.tasks[: len(state.finished)]
        labelled = [i for i, task in enumerate(finished) if not (task.free_form or task.removed)]
        features = TaskFeatures.blank(self.starting.sizes.width)
        arrays = self.checkpoints.restore_features(len(finished) - 1) if labelled else None
        if arrays is not None:
            return TaskFeatures(tuple(finished[index].name for index in labelled), **arrays)
        for index in labelled:  # after a rollback or a removal
            arrays = self.checkpoints.restore_features(index, own=True)
            if arrays is None:
                return None
            features = features.joined(TaskFeatures((finished[index].name,), **arrays))
        return features

    def has_moment(self, index: int) -> bool:
        """As `Store` says."""
        return self.checkpoints.has_shared(index)

    def restore_moment(self, index: int) -> StreamState:
        """As `Store` says, as NumPy arrays; tasks' own parts are read when they are asked for."""
        finished = _Finished(self.names[: index + 1], self._own)
        return dataclasses.replace(self._shared(index), finished=finished)

    def save_finished(
        self,
        state: StreamState,
        history: History,
        features: TaskFeatures | None = None,
        own_features: TaskFeatures | None = None,
    ) -> None:
        """As `Store` says."""
        index = len(state.finished) - 1
        name = self.names[index]
        done = state.finished[name]
        assert done is not None  # it was finished just now
        shared = {"shared": state.shared}
        if state.memory:
            shared["memory"] = state.memory
        self.checkpoints.save_finished(
            index,
            {"expert": done.expert, "head": done.head},
            shared,
            plain({**dataclasses.asdict(history), **self._facts(name)}),
            features.arrays if features is not None and features.names else None,
            own_features=None if own_features is None else own_features.arrays,
            keep_shared=self.settings.keep_shared if self.settings is not None else 0,
        )

    def save_in_progress(self, index: int, tree: Tree, record: Mapping[str, Any]) -> None:
        """As `Store` says."""
        facts = {"task": self.names[index], **self._facts(self.names[index]), **record}
        self.checkpoints.save_in_progress(self.model.placement.host(tree), facts)

    def in_progress(self) -> dict[str, Any] | None:
        """As `Store` says.

        Raises:
          UserError: it was made with another frozen model or other settings, or cannot be read.
        """
        record = self.checkpoints.in_progress_record()
        if record is not None:
            names = self.names
            count = names.index(record["task"]) + 1 if record["task"] in names else 0
            self._check(record, count)
        return record

    def restore_in_progress(self, template: Tree) -> Tree:
        """As `Store` says, as NumPy arrays."""
        return self.checkpoints.restore_in_progress(template)

    def go_back(self) -> list[str]:
        """Goes back to the newest whole state, and sets aside what is damaged and what follows it.

        Returns:
          Lines that say what was found and what is lost; none if all is whole.
        """
        problems, count = [], 0
        known = len(self.checkpoints.known_finished())
        for index in range(len(self.names)):
            problem = self._problem(self._own, index)
            if problem is not None:
                problems += [problem] if index < known or self._anything_from(index) else []
                break
            count = index + 1
        while count and (problem := self._problem(self._restore_whole, count - 1)):
            problems.append(problem)
            count -= 1
        record: dict[str, Any] | None = None
        problem = self._problem(lambda _: self.checkpoints.check_in_progress(), count)
        if problem is None:
            record = self.checkpoints.in_progress_record()
        else:
            problems.append(problem)
        stale = record is not None and record["task"] not in self.names[count : count + 1]
        aside = self.checkpoints.set_aside_from(count, in_progress=problem is not None or stale)
        if aside is None:
            return problems
        left = ", ".join(self.names[:count]) or "none"
        return [*problems, f"going on after the finished tasks: {left}; the rest is in {aside}"]

    def _facts(self, name: str) -> dict[str, Any]:
        """What every checkpoint notes of the training of the task that made it."""
        facts = {"tasks": self.names, "fingerprint": self.model.fingerprint}
        if self.settings is None:
            return facts
        return {
            **facts,
            "settings": plain(bound_settings(self.settings.for_task(name), self.names)),
        }

    def _check(self, record: Mapping[str, Any], count: int) -> None:
        """Refuses checkpoints that were made with another frozen model or other settings.

        Args:
          record: record of a checkpoint.
          count: number of the first tasks whose definitions must be those of then.

        Raises:
          UserError: the fingerprints or the settings differ.
        """
        ours, theirs = self.model.fingerprint, record["fingerprint"]
        if ours != theirs:
            raise UserError(
                f"the checkpoints were trained on a frozen model with fingerprint {theirs}, and "
                f"{self.model.source} has {ours}. Experts fit only the model they were "
                "trained in: set config.model.path to that model."
            )
        if self.settings is None:
            return
        pairs = zip(record["tasks"][:count], self.names, strict=False)
        kept = [then for then, now in pairs if then == now]  # others were removed
        inside = record.get("task")  # the task that is in training, whose values must stay
        settings = self.settings if inside is None else self.settings.for_task(inside)
        now = plain(bound_settings(settings, kept))
        by_task = settings.by_task
        for key, then in record.get("settings", {}).items():
            if key not in now or now[key] == then or (inside is None and key in by_task):
                continue
            if key in by_task:
                raise UserError(
                    f"training stopped inside task '{inside}' with {key} = {then!r}, and now it is "
                    f"{now[key]!r}. Finish the task with the value of then "
                    f"(--config.task_settings.{inside}.{key}={then}), or drop what was trained of "
                    "it: 'moecl rollback'"
                )
            raise UserError(
                f"the checkpoints in {self.workdir} were trained with {key} = {then!r}, and "
                f"now it is {now[key]!r}. Put the value back, in {CONFIG_NAME} too."
            )

    def _same(self, record: Mapping[str, Any]) -> int:
        """Number of the first tasks that are those of a record; a removed one stays the same."""
        for index, (then, now) in enumerate(zip(record["tasks"], self.tasks, strict=False)):
            if then != now.name and not now.removed:
                return index
        return min(len(record["tasks"]), len(self.tasks))

    def _own(self, index: int) -> FinishedTask | None:
        """A finished task's own part; None if it was removed."""
        if self.tasks[index].removed:
            return None
        return FinishedTask(**self.checkpoints.restore_own(index))

    def _problem(self, read: Callable[[int], Any], index: int) -> str | None:
        """Why something cannot be read; None if it can."""
        try:
            read(index)
        except UserError as error:
            return str(error)
        return None

    def _restore_whole(self, index: int) -> None:
        self.checkpoints.restore_shared(index)
        self.checkpoints.restore_features(index)

    def _anything_from(self, index: int) -> bool:
        paths = map(self.checkpoints.path, range(index, len(self.names)))
        return any(map(os.path.lexists, paths))  # links to nothing too

    def _shared(self, index: int) -> StreamState:
        """The shared tree and the memory of the moment when a task was finished, as NumPy."""
        tree = self.checkpoints.restore_shared(index)
        state = StreamState(tree["shared"], {}, tree.get("memory", {}))
        record = self.checkpoints.finished_record(index)
        if len(record["tasks"]) == len(self.tasks):
            return state
        state = self.starting.extended(state, len(self.tasks))
        shared, memory = jax.tree.map(np.asarray, (state.shared, state.memory))
        return StreamState(shared, {}, memory)
