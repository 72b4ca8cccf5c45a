"""Which examples of other tasks join the batches of a task: nobody's, a memory's, or everybody's.

A method chooses a policy. To write one, subclass `ExamplePolicy` and override what differs:

    @dataclasses.dataclass(frozen=True)
    class FirstExamples(ExamplePolicy):
        count: int
        joined: int = 4

        def stored(self, memory, past, seed):
            return [
                (place, index)
                for place, task in enumerate(past)
                for index in range(len(task.labels))[: self.count]
            ]

`stored` is asked once before each task, and `draw` once a step. Both must be functions of their
arguments alone: a resumed run asks again, and must get the same answer. Examples that were not
stored before a task cannot be stored after it either, if the memory is to be one that forgets.
"""

import dataclasses
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PastTask:
    """What a policy knows of the training examples of an earlier task.

    Attributes:
      name: the task's name.
      labels: `[n]` class of each example, in their order; 0 in a free-form task.
    """

    name: str
    labels: np.ndarray


class ExamplePolicy:
    """A task trains on its own examples alone. Other policies inherit from it.

    Attributes:
      joined: examples of earlier tasks that join each batch, or fewer where fewer are stored.
      joint: whether all tasks are trained at once, each batch being drawn from all of them.
    """

    joined: int = 0
    joint: bool = False

    @property
    def reads_past(self) -> bool:
        """Whether later tasks' training reads examples of finished ones."""
        return self.joint or self.joined > 0

    def stored(
        self,
        memory: Any,  # noqa: ARG002
        past: Sequence[PastTask],  # noqa: ARG002
        seed: int,  # noqa: ARG002
    ) -> list[tuple[int, int]]:
        """The examples of earlier tasks that are kept when a task begins.

        Args:
          memory: the method's memory tree, as it is when the task begins.
          past: the earlier tasks, in the order of training.
          seed: the seed of the run.

        Returns:
          Of each example kept, its task's place in `past` and its own place in that task.
        """
        return []

    def draw(self, seed: int, task: int, step: int, stored: int) -> np.ndarray:
        """Which of the stored examples join the batch of a step.

        Args:
          seed: the seed of the run.
          task: place of the current task in the stream.
          step: steps of the task so far.
          stored: number of the stored examples.

        Returns:
          Places among the stored examples, at most `joined` of them.
        """
        return replayed(seed, task, step, stored, self.joined)


@dataclasses.dataclass(frozen=True)
class BoundedMemory(ExamplePolicy):
    """A memory of a fixed size for the examples of all earlier tasks together.

    Attributes:
      capacity: the most examples that the memory holds.
      joined: examples of the memory that join each batch.

    Raises:
      UserError: a number is below 0.
    """

    capacity: int
    joined: int = dataclasses.field()

    def __post_init__(self) -> None:
        for name in ("capacity", "joined"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"{type(self).__name__}: {name} = {getattr(self, name)} must be at least 0"
                )


@dataclasses.dataclass(frozen=True)
class Reservoir(BoundedMemory):
    """A memory that is a uniform sample of all examples of the earlier tasks."""

    def stored(
        self,
        memory: Any,  # noqa: ARG002
        past: Sequence[PastTask],
        seed: int,
    ) -> list[tuple[int, int]]:
        """A `reservoir` of the earlier tasks' examples."""
        return reservoir(seed, [len(task.labels) for task in past], self.capacity)


@dataclasses.dataclass(frozen=True)
class ClassBalanced(BoundedMemory):
    """A memory with equal shares of each class of each earlier task."""

    def stored(
        self,
        memory: Any,  # noqa: ARG002
        past: Sequence[PastTask],
        seed: int,
    ) -> list[tuple[int, int]]:
        """One random example of each class in turn, until the memory is full.

        The shares differ by one at most, and a class that has fewer examples is kept whole. What is
        kept of a task after some tasks is a part of what was kept before.
        """
        classes = []
        for index, task in enumerate(past):
            for label in np.unique(task.labels):
                generator = np.random.default_rng((seed, index, int(label), *b"balanced"))
                places = generator.permutation(np.flatnonzero(task.labels == label))
                classes.append([(index, int(place)) for place in places])
        turns = zip_longest(*classes)
        return [kept for turn in turns for kept in turn if kept is not None][: self.capacity]


class AllTasks(ExamplePolicy):
    """All tasks are trained at once: the bound that other policies are held against."""

    joint: bool = True


def reservoir(seed: int, counts: Sequence[int], capacity: int) -> list[tuple[int, int]]:
    """A uniform sample of a stream of examples, seen once and in order (Vitter 1985, algorithm R).

    The n-th example (from 1) enters a full memory with probability capacity / n, in the place of
    one drawn at random. What it holds after some tasks does not depend on those that follow.

    Args:
      seed: the seed of the draws.
      counts: for each task, the number of its examples.
      capacity: the most examples that the memory holds.

    Returns:
      Task and place in it of each example kept, at most `capacity`.
    """
    generator = np.random.default_rng((seed, *b"reservoir"))
    kept: list[tuple[int, int]] = []
    seen = 0
    for task, count in enumerate(counts):
        for index in range(count):
            seen += 1
            if len(kept) < capacity:
                kept.append((task, index))
                continue
            slot = int(generator.integers(seen))
            if slot < capacity:
                kept[slot] = (task, index)
    return kept


def replayed(seed: int, task: int, step: int, stored: int, count: int) -> np.ndarray:
    """Places in a memory of `stored` examples that join a step's batch: `count`, or all if fewer.

    A function of seed, task and step alone, so that a resumed run draws what it would have drawn.
    """
    generator = np.random.default_rng((seed, task, step, *b"replay"))
    return generator.choice(stored, size=min(count, stored), replace=False)


def with_response(example: TokenizedExample, answers: Sequence[np.ndarray]) -> TokenizedExample:
    """A label task's example with its answer's ids as its response, so that tasks may mix.

    Without answers, that is with a classification head, and in a free-form task it stays as it is.
    """
    if not answers or example.response is not None:
        return example
    return TokenizedExample(example.prompt, example.label, answers[example.label])
