"""Subspaces of earlier tasks' inputs, out of whose way a new task is kept.

As in gradient projection memory (arXiv 2103.09762): a task adds to the subspace the fewest further
directions with which it holds a given share of the energy of the task's inputs. Here the space that
is left is kept, as the projection onto it: F = I - M M^T with an orthonormal basis M of the
subspace. So its shape never changes. With R = mean x x^T of a task's inputs, its energy is the
trace of R, and that of what is left F R F.

Computed in float64, once a task.

Axes: I width of the inputs.
"""

import numpy as np

ROUNDING = 1e-9  # share of the energy that is no more than rounding


def leading(free: np.ndarray, moment: np.ndarray, count: int) -> np.ndarray:
    """The directions `[I, count]`, orthonormal, of the inputs' most energy in what is left.

    Directions that are no longer there are zero.

    Args:
      free: F `[I, I]`.
      moment: R `[I, I]`.
      count: number of directions, at most I.
    """
    values, vectors = _left(free, moment)
    there = np.arange(len(values)) < _rank(free)
    return (free @ (vectors * there))[:, :count].astype(np.float32)


def without(free: np.ndarray, moment: np.ndarray, share: float) -> np.ndarray:
    """F `[I, I]` less the fewest directions that, with those taken before, hold the share.

    Args:
      free: F `[I, I]` before.
      moment: R `[I, I]`.
      share: share of the energy from 0 to 1.
    """
    values, vectors = _left(free, moment)
    total = np.trace(moment, dtype=np.float64)
    held = total - values.sum()
    missing = share * total - held - ROUNDING * total
    count = int(np.searchsorted(np.cumsum(values), missing)) + 1 if missing > 0 else 0
    taken = vectors[:, : min(count, _rank(free))]
    return (free - taken @ taken.T).astype(np.float32)


def _left(free: np.ndarray, moment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, descending and none negative, and eigenvectors of F R F."""
    wide = np.asarray(free, np.float64)
    values, vectors = np.linalg.eigh(wide @ moment @ wide)
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]


def _rank(free: np.ndarray) -> int:
    """Number of directions that are left: the trace of the projection."""
    return round(float(np.trace(free)))
