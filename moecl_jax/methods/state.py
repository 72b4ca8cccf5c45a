"""What is trained now and what is finished.

A stream holds the trees that all tasks share and, for each finished task, its own trees as NumPy
arrays in host memory: they cannot be trained again, and cost no device memory.
"""

import dataclasses
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.errors import UserError
from moecl_jax.methods.base import Method, TaskEnd, Tree
from moecl_jax.models.heads import init_head
from moecl_jax.training.steps import Active, Head

_SHARED, _EXPERT, _HEAD, _TRAINING, _FINISH = range(5)  # streams of random numbers


@flax.struct.dataclass
class Finished:
    """A finished task's own part: its expert, and its head cut to its classes, as NumPy."""

    expert: Tree
    head: Tree


@dataclasses.dataclass(frozen=True)
class Stream:
    """Shared trees and memory of the moment and the finished tasks by name, in their order."""

    shared: Tree
    finished: Mapping[str, Finished]
    memory: Tree = dataclasses.field(default_factory=dict)

    @property
    def last_head(self) -> Tree | None:
        """The head of the task that was finished last."""
        return list(self.finished.values())[-1].head if self.finished else None


@dataclasses.dataclass(frozen=True)
class Initializer:
    """All random starting values, functions of seed and task index alone.

    Attributes:
      method: whose trees these are.
      seed: of the run.
      head: "lm" or "classification".
      classes: classes of the widest task.
      shared_head: whether one classification head is carried on from task to task.
    """

    method: Method
    seed: int
    head: Head
    classes: int
    shared_head: bool = False

    def shared(self, task_count: int) -> Tree:
        """The shared trees before the first of `task_count` tasks."""
        return self.method.init_shared(self._key(_SHARED, 0), task_count)

    def extend(self, shared: Tree, task_count: int) -> Tree:
        """Shared trees of a shorter stream, ready for `task_count` tasks."""
        return self.method.extend_shared(shared, self._key(_SHARED, 0), task_count)

    def stream(self, task_count: int) -> Stream:
        """The stream before the first of `task_count` tasks."""
        return Stream(self.shared(task_count), {}, self.method.init_memory(task_count))

    def begin(
        self,
        shared: Tree,
        task_index: int,
        last_head: Tree | None = None,
        memory: Tree | None = None,
    ) -> Active:
        """What is trained when a task begins, or stands for one that has not begun.

        Args:
          shared: the shared trees of the moment.
          task_index: place of the task.
          last_head: of the task finished last, with which a shared head goes on.
          memory: the memory of the moment; empty as a default.
        """
        expert = self.method.init_task_expert(self._key(_EXPERT, task_index))
        head: Tree = {}
        if self.head == "classification" and self.shared_head and last_head is not None:
            head = _padded(last_head, self.classes)
        elif self.head == "classification":
            key = self._key(_HEAD, 0 if self.shared_head else task_index)
            head = init_head(key, self.method.config.width, self.classes)
        return Active(shared, expert, head, {} if memory is None else memory)

    def finish(self, active: Active, task_index: int, importance: Tree) -> Active:
        """What a task's trees and memory become when it is finished: see `Method.finish_task`."""
        shared, expert, memory = self.method.finish_task(
            active.shared,
            active.expert,
            active.memory,
            TaskEnd(task_index, self._key(_FINISH, task_index), importance),
        )
        return Active(shared, expert, active.head, memory)

    def training_key(self, task_index: int) -> jax.Array:
        """Key of a task's training; steps fold their number in."""
        return self._key(_TRAINING, task_index)

    def _key(self, purpose: int, index: int) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), purpose), index)


def finish(stream: Stream, name: str, active: Active, class_count: int) -> Stream:
    """The stream after a task: its shared trees and memory carried on, its own parts set aside."""
    if name in stream.finished:
        raise UserError(f"task '{name}' is finished already; it cannot be trained again")
    head = jax.tree.map(lambda kernel: np.asarray(kernel)[:, :class_count], active.head)
    done = Finished(jax.tree.map(np.asarray, active.expert), head)
    return Stream(active.shared, {**stream.finished, name: done}, active.memory)


def look_up(stream: Stream, name: str, classes: int, *, shared_head: bool = False) -> Active:
    """A finished task's parts with the shared trees of the moment, on the device.

    Args:
      stream: the stream.
      name: a finished task.
      classes: the head is padded with zeros to this many; they are masked out.
      shared_head: whether the head is that of the task finished last, or the task's own.
    """
    done = stream.finished[name]
    expert = jax.tree.map(jnp.asarray, done.expert)
    head = _padded(stream.last_head if shared_head else done.head, classes)
    shared, memory = jax.tree.map(jnp.asarray, (stream.shared, stream.memory))
    return Active(shared, expert, head, memory)


def _padded(head: Tree, classes: int) -> Tree:
    """A head's kernel `[D, C]` as `[D, classes]` on the device; `{}` of the LM head as it is."""
    return jax.tree.map(
        lambda kernel: jnp.pad(kernel, ((0, 0), (0, classes - kernel.shape[1]))), head
    )
