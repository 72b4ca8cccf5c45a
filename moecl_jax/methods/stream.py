"""The state of a stream of tasks: what all tasks share now, and the finished tasks.

Finished tasks' trees wait as NumPy arrays in host memory: they cannot be trained again, and cost no
device memory.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.errors import UserError
from moecl_jax.methods.base import Method, TaskEnd, TaskStart
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.heads import init_head
from moecl_jax.models.lora import FFN_TARGETS, projection_sizes

Head = Literal["lm", "classification"]
_SHARED, _EXPERT, _HEAD, _TRAINING, _FINISH, _BEGIN = range(6)  # purposes of random numbers


@flax.struct.dataclass
class FinishedTask:
    """A finished task's own part: its expert, and its head cut to its classes, as NumPy."""

    expert: Tree
    head: Tree


@dataclasses.dataclass(frozen=True)
class StreamState:
    """The state of a stream between two tasks.

    Attributes:
      shared: tree that all tasks share, as it is now.
      finished: finished tasks by name, in their order; None stands for one that was removed.
      memory: the method's memory, as it is now.
    """

    shared: Tree
    finished: Mapping[str, FinishedTask | None]
    memory: Tree = dataclasses.field(default_factory=dict)

    @property
    def answering(self) -> list[str]:
        """Names of the finished tasks that were not removed, in their order."""
        return [name for name, done in self.finished.items() if done is not None]

    @property
    def last_head(self) -> Tree | None:
        """The head of the task that was finished last; None before the first."""
        heads = [done.head for done in self.finished.values() if done is not None]
        return heads[-1] if heads else None

    def after(self, name: str, parameters: TaskParameters, class_count: int) -> "StreamState":
        """The state after a task: shared tree and memory carried on, its own parts set aside.

        Raises:
          UserError: the task is finished already.
        """
        if name in self.finished:
            raise UserError(f"task '{name}' is finished already; it cannot be trained again")
        head = jax.tree.map(lambda kernel: np.asarray(kernel)[:, :class_count], parameters.head)
        done = FinishedTask(jax.tree.map(np.asarray, parameters.expert), head)
        return StreamState(parameters.shared, {**self.finished, name: done}, parameters.memory)


@dataclasses.dataclass(frozen=True)
class StartingValues:
    """Starting values of a stream: functions of the seed and a task's index alone.

    Attributes:
      method: method whose trees these are.
      sizes: sizes of the frozen decoder.
      seed: seed of the run.
      head: "lm" or "classification".
      classes: number of classes of the widest task.
      shared_head: whether one classification head is carried on from task to task.
      continues: for the name of each task that continues an earlier one, the name of that one.
    """

    method: Method
    sizes: DecoderConfig
    seed: int
    head: Head
    classes: int
    shared_head: bool = False
    continues: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def shared(self, task_count: int) -> Tree:
        """The shared tree before the first of `task_count` tasks."""
        return self.method.init_shared(self._key(_SHARED, 0), self.sizes, task_count)

    def stream(self, task_count: int) -> StreamState:
        """The state before the first of `task_count` tasks."""
        memory = self.method.init_memory(self.sizes, task_count)
        return StreamState(self.shared(task_count), {}, memory)

    def extended(self, saved: StreamState, task_count: int) -> StreamState:
        """The state of a stream, made ready for `task_count` tasks."""
        fresh = self.stream(task_count)
        shared = in_corner(saved.shared, fresh.shared)
        return StreamState(shared, saved.finished, in_corner(saved.memory, fresh.memory))

    def begin(
        self,
        shared: Tree,
        task_index: int,
        last_head: Tree | None = None,
        memory: Tree | None = None,
    ) -> TaskParameters:
        """The parameters of a task that begins, or stands for one that has not begun.

        Args:
          shared: the shared tree as it is now.
          task_index: place of the task.
          last_head: head of the task finished last, with which a shared head goes on.
          memory: the memory as it is now; empty as a default.
        """
        known = {} if memory is None else memory
        expert = self.method.init_expert(self._key(_EXPERT, task_index), self.sizes)
        expert = self.method.start_expert(expert, known)
        head: Tree = {}
        if self.head == "classification" and self.shared_head and last_head is not None:
            head = _padded(last_head, self.classes)
        elif self.head == "classification":
            key = self._key(_HEAD, 0 if self.shared_head else task_index)
            head = init_head(key, self.sizes.width, self.classes)
        return TaskParameters(shared, expert, head, known)

    def first(self, name: str) -> str:
        """Name of the task that a task continues, or its own where it continues none."""
        return self.continues.get(name, name)

    def answering(self, state: StreamState, name: str) -> FinishedTask | None:
        """The finished task that answers for a task; None if there is none.

        Of a task and those that continue it, that is the one that was finished last.
        """
        for other in reversed(list(state.finished)):
            done = state.finished[other] if self.first(other) == self.first(name) else None
            if done is not None:
                return done
        return None

    def to_train(self, state: StreamState, name: str, index: int) -> TaskParameters:
        """The parameters with which the training of a task begins.

        Those of a task that continues another are what answers for that one.

        Raises:
          UserError: the method cannot go on with what it has made of a finished task.
        """
        begun = self.begin(state.shared, index, state.last_head, state.memory)
        if self.answering(state, name) is None:
            return begun
        went_on = self.method.continue_task(self.task(state, name, index))
        shapes = [
            jax.tree.map(jnp.shape, (tree.shared, tree.expert, tree.head))
            for tree in (begun, went_on)
        ]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"task '{name}' continues '{self.first(name)}', and method '{self.method.name}' "
                "cannot go on with a task that was finished; train it as a task of its own"
            )
        return went_on

    def task(self, state: StreamState, name: str, index: int) -> TaskParameters:
        """The parameters that answer for a task: finished ones, or those it starts from.

        They are on the device; a finished head is padded with zeros, which are masked out.
        """
        done = self.answering(state, name)
        if done is None:
            return self.begin(state.shared, index, state.last_head, state.memory)
        expert = jax.tree.map(jnp.asarray, done.expert)
        head = _padded(state.last_head if self.shared_head else done.head, self.classes)
        shared, memory = jax.tree.map(jnp.asarray, (state.shared, state.memory))
        return TaskParameters(shared, expert, head, memory)

    def task_start(self, index: int) -> TaskStart:
        """What is known of a task's beginning without its examples; all moments are zero."""
        return TaskStart(index, self._key(_BEGIN, index), self.sizes, self._no_inputs)

    def task_end(self, index: int) -> TaskEnd:
        """What is known of a task's end without its examples; all moments are zero."""
        return TaskEnd(
            index,
            self._key(_FINISH, index),
            self.sizes,
            inputs=self._no_inputs,
            queries=lambda: np.zeros((0, self.sizes.width), np.float32),
            seed=self.seed,
        )

    def training_key(self, task_index: int) -> jax.Array:
        """Key of a task's training; each step folds its number in."""
        return self._key(_TRAINING, task_index)

    def _no_inputs(self) -> Tree:
        layers, widths = self.sizes.layers, projection_sizes(self.sizes)
        return {
            target: np.zeros((layers, widths[target][0], widths[target][0]), np.float32)
            for target in self.method.lora.targets
            if target in FFN_TARGETS
        }

    def _key(self, purpose: int, index: int) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), purpose), index)


def in_corner(saved: Tree, fresh: Tree) -> Tree:
    """`saved` put into the leading corner of `fresh`, leaf by leaf.

    Example: rows `[2, D]` of two tasks and fresh `[3, D]` give the two and the third fresh row.
    A tree of another structure than `fresh` stays as it is, and so does a leaf that does not fit.
    """
    structures: list[Any] = [jax.tree.structure(tree) for tree in (saved, fresh)]
    if structures[0] != structures[1]:
        return saved

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        fits = old.ndim == new.ndim and np.all(np.less_equal(old.shape, new.shape))
        if old.shape == new.shape or not fits:
            return old
        return jnp.asarray(new).at[tuple(map(slice, old.shape))].set(old)

    return jax.tree.map(put, saved, fresh)


def _padded(head: Tree, classes: int) -> Tree:
    """A head's kernel `[D, C]` as `[D, classes]` on the device; `{}` of the LM head as it is."""
    return jax.tree.map(
        lambda kernel: jnp.pad(kernel, ((0, 0), (0, classes - kernel.shape[1]))), head
    )
