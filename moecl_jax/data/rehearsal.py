"""Examples of other tasks to train on beside a task's own: a reservoir of earlier ones, or all."""

from collections.abc import Sequence

import numpy as np

from moecl_jax.data.tokenize import TokenizedExample


def reservoir(seed: int, counts: Sequence[int], capacity: int) -> list[tuple[int, int]]:
    """A uniform sample of a stream of examples, seen once and in order (Vitter 1985, algorithm R).

    The n-th example (from 1) enters a full memory with probability capacity / n, in the place of
    one drawn at random. What it holds after some tasks does not depend on those that follow.

    Args:
      seed: of the draws.
      counts: examples of each task.
      capacity: of the memory.

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
