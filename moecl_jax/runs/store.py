"""Where a stream's state and history are kept: in the checkpoints of a workdir, or in memory."""

import abc
import copy
import dataclasses
from collections.abc import Mapping, Sequence
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
from moecl_jax.runs.workdir import refuse_other_tasks


class Store(abc.ABC):
    """Keeps what a stream has learned.

    Attributes:
      tasks: tasks of the stream in their order.
      starting: starting values of the stream.
    """

    tasks: Sequence[Task]
    starting: StartingValues

    @abc.abstractmethod
    def restore(self) -> tuple[StreamState, History | None]:
        """The state after the last finished task, and the history; None if none is finished."""

    @abc.abstractmethod
    def restore_features(self, state: StreamState) -> TaskFeatures | None:
        """Features of all finished label tasks; None where they were not kept."""

    @abc.abstractmethod
    def has_moment(self, index: int) -> bool:
        """Whether the state of the moment when a task was finished can be restored."""

    @abc.abstractmethod
    def restore_moment(self, index: int) -> StreamState:
        """The state of the moment when a task was finished, with that task's own part."""

    @abc.abstractmethod
    def save_finished(
        self, state: StreamState, history: History, features: TaskFeatures | None = None
    ) -> None:
        """Keeps the state after the task that was finished last, and forgets one inside a task.

        Args:
          state: state after that task.
          history: history with that task's row.
          features: features of all finished label tasks, where they are known.
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
        self, state: StreamState, history: History, features: TaskFeatures | None = None
    ) -> None:
        """As `Store` says."""
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


class DiskStore(Store):
    """Keeps a stream in the checkpoints of a workdir."""

    def __init__(
        self,
        workdir: Path,
        tasks: Sequence[Task],
        starting: StartingValues,
        model: Model,
        keep_shared: int = 0,
    ):
        """Opens the checkpoints; nothing is created before the first save.

        Args:
          workdir: folder of the run.
          tasks: tasks of the stream in their order.
          starting: starting values of the stream.
          model: frozen model, whose fingerprint checkpoints must have.
          keep_shared: number of the newest tasks with which shared trees are kept; 0: all.
        """
        self.tasks, self.starting, self.model = tasks, starting, model
        self.checkpoints = TaskCheckpoints(workdir)
        self.keep_shared = keep_shared

    @property
    def names(self) -> list[str]:
        """Names of the tasks in their order."""
        return [task.name for task in self.tasks]

    def restore(self) -> tuple[StreamState, History | None]:
        """As `Store` says.

        Raises:
          UserError: the checkpoints were made with another frozen model, or cannot be read.
        """
        finished: dict[str, FinishedTask] = {}
        history = None
        for index, name in enumerate(self.names):
            record = self.checkpoints.finished_record(index, name)
            if record is None:
                break
            self.check_fingerprint(record)
            history = History.from_record(record)
            finished[name] = FinishedTask(**self.checkpoints.restore_own(index, name))
        if history is None:
            return self.starting.stream(len(self.tasks)), None
        last = self._shared(len(finished) - 1)
        return dataclasses.replace(last, finished=finished), history

    def restore_features(self, state: StreamState) -> TaskFeatures | None:
        """As `Store` says."""
        labelled = {task.name for task in self.tasks if not task.free_form}
        names = tuple(name for name in state.finished if name in labelled)
        if not names:
            return TaskFeatures.blank(self.starting.sizes.width)
        index = len(state.finished) - 1
        arrays = self.checkpoints.restore_features(index, self.names[index])
        return None if arrays is None else TaskFeatures(names, **arrays)

    def has_moment(self, index: int) -> bool:
        """As `Store` says."""
        return self.checkpoints.has_shared(index, self.names[index])

    def restore_moment(self, index: int) -> StreamState:
        """As `Store` says, as NumPy arrays and with that task alone."""
        name = self.names[index]
        own = FinishedTask(**self.checkpoints.restore_own(index, name))
        return dataclasses.replace(self._shared(index), finished={name: own})

    def save_finished(
        self, state: StreamState, history: History, features: TaskFeatures | None = None
    ) -> None:
        """As `Store` says."""
        index = len(state.finished) - 1
        name = self.names[index]
        done = state.finished[name]
        shared = {"shared": state.shared}
        if state.memory:
            shared["memory"] = state.memory
        facts = {"tasks": self.names, "fingerprint": self.model.fingerprint}
        self.checkpoints.save_finished(
            index,
            name,
            {"expert": done.expert, "head": done.head},
            shared,
            plain({**dataclasses.asdict(history), **facts}),
            features.arrays if features is not None and features.names else None,
            keep_shared=self.keep_shared,
        )

    def save_in_progress(self, index: int, tree: Tree, record: Mapping[str, Any]) -> None:
        """As `Store` says."""
        facts = {
            "task": self.names[index],
            "tasks": self.names,
            "fingerprint": self.model.fingerprint,
        }
        self.checkpoints.save_in_progress(self.model.placement.host(tree), {**facts, **record})

    def in_progress(self) -> dict[str, Any] | None:
        """As `Store` says.

        Raises:
          UserError: it was made with another frozen model.
        """
        record = self.checkpoints.in_progress_record()
        if record is not None:
            self.check_fingerprint(record)
        return record

    def restore_in_progress(self, template: Tree) -> Tree:
        """As `Store` says, as NumPy arrays."""
        return self.checkpoints.restore_in_progress(template)

    def check_fingerprint(self, record: Mapping[str, Any]) -> None:
        """Refuses checkpoints that were made with another frozen model.

        Raises:
          UserError: the fingerprints differ.
        """
        ours, theirs = self.model.fingerprint, record["fingerprint"]
        if ours != theirs:
            raise UserError(
                f"the checkpoints were trained on a frozen model with fingerprint {theirs}, and "
                f"{self.model.source} has {ours}. Experts fit only the model they were "
                "trained in: set config.model.path to that model."
            )

    def _shared(self, index: int) -> StreamState:
        """The shared tree and the memory of the moment when a task was finished, as NumPy."""
        tree = self.checkpoints.restore_shared(index, self.names[index])
        state = StreamState(tree["shared"], {}, tree.get("memory", {}))
        record = self.checkpoints.finished_record(index, self.names[index]) or {}
        if len(record["random_init"]) == len(self.tasks):
            return state
        state = self.starting.extended(state, len(self.tasks))
        shared, memory = jax.tree.map(np.asarray, (state.shared, state.memory))
        return StreamState(shared, {}, memory)
