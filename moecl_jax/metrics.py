"""Continual-learning metrics over the accuracy matrix.

`R[i][j]` is the test accuracy on task j after training task i, tasks in the order of training, and
`b[j]` the accuracy on task j before any training. Indices are 0-based and T is the number of tasks.
The definitions follow Lopez-Paz and Ranzato (GEM, 2017; average accuracy, backward and forward
transfer) and Chaudhry et al. (Riemannian Walk, 2018; forgetting).

The examples below share one matrix of T = 3 tasks:

    R = [[0.9, 0.5, 0.4],        b = [0.5, 0.5, 0.3]
         [0.8, 0.7, 0.5],
         [0.6, 0.8, 0.9]]

With a single task there is nothing to transfer or to forget: the functions then return NaN, and
`summarize` None.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def average_accuracy(accuracy: ArrayLike) -> float:
    """Mean accuracy over all tasks at the end of the stream.

        acc = mean_j R[T-1][j]

    Example: (0.6 + 0.8 + 0.9) / 3 = 0.7667.

    Args:
      accuracy: `R`, `[T, T]`.

    Returns:
      The mean of the last row.

    Raises:
      ValueError: if `R` is not square, is empty or has an entry that is not finite.
    """
    return float(_checked_matrix(accuracy)[-1].mean())


def backward_transfer(accuracy: ArrayLike) -> float:
    """How much later training changed the tasks trained earlier; negative where they got worse.

        bwt = mean_{j < T-1} (R[T-1][j] - R[j][j])

    Example: ((0.6 - 0.9) + (0.8 - 0.7)) / 2 = -0.1.

    Args:
      accuracy: `R`, `[T, T]`.

    Returns:
      The backward transfer, NaN if T = 1.

    Raises:
      ValueError: if `R` is not square, is empty or has an entry that is not finite.
    """
    matrix = _checked_matrix(accuracy)
    if len(matrix) == 1:
        return math.nan
    return float((matrix[-1] - np.diagonal(matrix))[:-1].mean())


def forward_transfer(accuracy: ArrayLike, random_init: ArrayLike) -> float:
    """How much the earlier tasks helped a task before its own training.

        fwt = mean_{j > 0} (R[j-1][j] - b[j])

    Example: ((0.5 - 0.5) + (0.5 - 0.3)) / 2 = 0.1.

    Args:
      accuracy: `R`, `[T, T]`.
      random_init: `b`, `[T]`.

    Returns:
      The forward transfer, NaN if T = 1.

    Raises:
      ValueError: if `R` is not square, `b` has another length, either is empty, or an entry is not
        finite.
    """
    matrix = _checked_matrix(accuracy)
    baseline = np.asarray(random_init, dtype=np.float64)
    if baseline.shape != matrix.shape[:1]:
        raise ValueError(
            f"random_init must have one entry for each of the {len(matrix)} tasks, "
            f"but its shape is {baseline.shape}"
        )
    if not np.isfinite(baseline).all():
        raise ValueError(f"random_init has an entry that is not finite: {baseline.tolist()}")
    if len(matrix) == 1:
        return math.nan
    return float((np.diagonal(matrix, offset=1) - baseline[1:]).mean())


def forgetting(accuracy: ArrayLike) -> float:
    """How far each earlier task fell, at the end, from the best it had been since its training.

        forgetting = mean_{j < T-1} (max_{j <= i < T-1} R[i][j] - R[T-1][j])

    Example: ((max(0.9, 0.8) - 0.6) + (0.7 - 0.8)) / 2 = 0.1. A task that has only improved counts
    as negative, as here the second one.

    Args:
      accuracy: `R`, `[T, T]`.

    Returns:
      The forgetting, NaN if T = 1.

    Raises:
      ValueError: if `R` is not square, is empty or has an entry that is not finite.
    """
    matrix = _checked_matrix(accuracy)
    earlier = range(len(matrix) - 1)
    if not earlier:
        return math.nan
    return float(np.mean([matrix[j:-1, j].max() - matrix[-1, j] for j in earlier]))


def summarize(accuracy: ArrayLike, random_init: ArrayLike) -> dict[str, float | None]:
    """All metrics, as `results.json` holds them.

    Example: `{"acc": 0.7667, "bwt": -0.1, "fwt": 0.1, "forgetting": 0.1}`.

    Args:
      accuracy: `R`, `[T, T]`.
      random_init: `b`, `[T]`.

    Returns:
      Python floats under `acc`, `bwt`, `fwt` and `forgetting`; None, JSON's null, for what a single
      task leaves undefined.

    Raises:
      ValueError: if `R` is not square, `b` has another length, either is empty, or an entry is not
        finite.
    """
    values = {
        "acc": average_accuracy(accuracy),
        "bwt": backward_transfer(accuracy),
        "fwt": forward_transfer(accuracy, random_init),
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
    if not np.isfinite(matrix).all():
        raise ValueError(f"the accuracy matrix has entries that are not finite: {matrix.tolist()}")
    return matrix
