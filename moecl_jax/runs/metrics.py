"""Continual-learning metrics over the accuracy matrix.

`R[i][j]` is the test accuracy on task j after training task i, tasks in the order of training, and
`b[j]` the accuracy on task j before any training. Indices are 0-based and T is the number of tasks.
The definitions follow Lopez-Paz and Ranzato (GEM, 2017; average accuracy, backward and forward
transfer) and Chaudhry et al. (Riemannian Walk, 2018; forgetting).

The examples below share one matrix of T = 3 tasks:

    R = [[0.9, 0.5, 0.4],        b = [0.5, 0.5, 0.3]
         [0.8, 0.7, 0.5],
         [0.6, 0.8, 0.9]]

An entry that was not measured is NaN, or None: the rows of tasks that were trained before a
checkpoint was converted, the columns of tasks without test data. A mean is over what is known.
Where nothing is, as in the transfer between tasks when there is one task, the functions return NaN
and `summarize` None.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def average_accuracy(accuracy: ArrayLike) -> float:
    """Mean accuracy over all tasks at the end of the stream.

        acc = mean_j R[T-1][j]          over the known

    Example: (0.6 + 0.8 + 0.9) / 3 = 0.7667.

    Args:
      accuracy: `R`, `[T, T]`.

    Returns:
      The mean of the last row, NaN if it is unknown.

    Raises:
      ValueError: if `R` is not square, is empty or has an infinite entry.
    """
    last = _checked_matrix(accuracy)[-1]
    return _mean(last[~np.isnan(last)])


def backward_transfer(accuracy: ArrayLike) -> float:
    """How much later training changed the tasks trained earlier; negative where they got worse.

        bwt = mean_{j < T-1} (R[T-1][j] - R[j][j])

    Where R[j][j] is unknown, the first R[i][j] known, j <= i < T-1, stands for it.

    Example: ((0.6 - 0.9) + (0.8 - 0.7)) / 2 = -0.1.

    Args:
      accuracy: `R`, `[T, T]`.

    Returns:
      The backward transfer, NaN if no entry is known that it needs, as for T = 1.

    Raises:
      ValueError: if `R` is not square, is empty or has an infinite entry.
    """
    matrix = _checked_matrix(accuracy)
    return _mean([matrix[-1, task] - before[0] for task, before in _known_before(matrix)])


def forward_transfer(accuracy: ArrayLike, random_init: ArrayLike) -> float:
    """How much the earlier tasks helped a task before its own training.

        fwt = mean_{j > 0} (R[j-1][j] - b[j])

    Example: ((0.5 - 0.5) + (0.5 - 0.3)) / 2 = 0.1.

    Args:
      accuracy: `R`, `[T, T]`.
      random_init: `b`, `[T]`.

    Returns:
      The forward transfer, NaN if no entry is known that it needs, as for T = 1.

    Raises:
      ValueError: if `R` is not square, `b` has another length, either is empty, or an entry is
        infinite.
    """
    matrix = _checked_matrix(accuracy)
    baseline = np.asarray(random_init, dtype=np.float64)
    if baseline.shape != matrix.shape[:1]:
        raise ValueError(
            f"random_init must have one entry for each of the {len(matrix)} tasks, "
            f"but its shape is {baseline.shape}"
        )
    if np.isinf(baseline).any():
        raise ValueError(f"random_init has an infinite entry: {baseline.tolist()}")
    differences = np.diagonal(matrix, offset=1) - baseline[1:]
    return _mean(differences[~np.isnan(differences)])


def forgetting(accuracy: ArrayLike) -> float:
    """How far each earlier task fell, at the end, from the best it had been since its training.

        forgetting = mean_{j < T-1} (max_{j <= i < T-1} R[i][j] - R[T-1][j])      over the known

    Example: ((max(0.9, 0.8) - 0.6) + (0.7 - 0.8)) / 2 = 0.1. A task that has only improved counts
    as negative, as here the second one.

    Args:
      accuracy: `R`, `[T, T]`.

    Returns:
      The forgetting, NaN if no entry is known that it needs, as for T = 1.

    Raises:
      ValueError: if `R` is not square, is empty or has an infinite entry.
    """
    matrix = _checked_matrix(accuracy)
    return _mean([before.max() - matrix[-1, task] for task, before in _known_before(matrix)])


def comparable(
    accuracy: ArrayLike, random_init: ArrayLike, scored: ArrayLike, scored_random_init: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`R` and `b` in which what is known before a task's own training does not depend on a format.

    A language model that was never shown a task writes none of its labels, so that its accuracy by
    exact match is 0 whatever it knows of the task. Before a task's own training (`b`, and `R` above
    its diagonal) the accuracy of the best-scored label therefore takes its place, in each task that
    has labels to score. There an entry that was not measured is NaN, and never an exact match.

    Args:
      accuracy: `R`, `[T, T]`, by exact match.
      random_init: `b`, `[T]`, by exact match.
      scored: `R` by the best-scored label, `[T, T]`; NaN in the columns of free-form tasks.
      scored_random_init: `b` by the best-scored label, `[T]`.

    Returns:
      The two, `[T, T]` and `[T]`.
    """
    matrix, baseline = np.array(accuracy, np.float64), np.array(random_init, np.float64)
    by_score = np.asarray(scored, np.float64)
    baseline_by_score = np.asarray(scored_random_init, np.float64)
    labelled = ~(np.isnan(by_score).all(axis=0) & np.isnan(baseline_by_score))
    before = np.triu(np.ones(matrix.shape, bool), k=1) & labelled
    return np.where(before, by_score, matrix), np.where(labelled, baseline_by_score, baseline)


def summarize(
    accuracy: ArrayLike,
    random_init: ArrayLike,
    scored: ArrayLike | None = None,
    scored_random_init: ArrayLike | None = None,
) -> dict[str, float | None]:
    """All metrics, as `results.json` holds them.

    Example: `{"acc": 0.7667, "bwt": -0.1, "fwt": 0.1, "forgetting": 0.1}`.

    Args:
      accuracy: `R`, `[T, T]`.
      random_init: `b`, `[T]`.
      scored: `R` by the best-scored label where `R` is by exact match; see `comparable`, whose
        values `fwt` is of.
      scored_random_init: `b` by the best-scored label, given with `scored`.

    Returns:
      Python floats under `acc`, `bwt`, `fwt` and `forgetting`; None, JSON's null, where nothing is
      known that a metric needs.

    Raises:
      ValueError: if `R` is not square, `b` has another length, either is empty, or an entry is
        infinite.
    """
    before = np.asarray(accuracy, np.float64), np.asarray(random_init, np.float64)
    if scored is not None and scored_random_init is not None:
        before = comparable(*before, scored, scored_random_init)
    values = {
        "acc": average_accuracy(accuracy),
        "bwt": backward_transfer(accuracy),
        "fwt": forward_transfer(*before),
        "forgetting": forgetting(accuracy),
    }
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _checked_matrix(accuracy: ArrayLike) -> NDArray[np.float64]:
    matrix = np.asarray(accuracy, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(
            "the accuracy matrix must be square with a row and a column a task, "
            f"but its shape is {matrix.shape}"
        )
    if np.isinf(matrix).any():
        raise ValueError(f"the accuracy matrix has infinite entries: {matrix.tolist()}")
    return matrix


def _known_before(matrix: NDArray[np.float64]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Tasks whose last entry is known, each with its earlier known ones since its training."""
    for task in range(len(matrix) - 1):
        before = matrix[task:-1, task]
        before = before[~np.isnan(before)]
        if len(before) and not np.isnan(matrix[-1, task]):
            yield task, before


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    """The mean; NaN, without a warning, of nothing."""
    return float(np.mean(values)) if np.size(values) else math.nan
