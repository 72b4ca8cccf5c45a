"""Which task a text belongs to, from the text alone: Gaussians over the frozen model's features.

A text's feature is the mean of the frozen decoder's final hidden states over the text's tokens,
without a template, which would name the task. Of a task's training texts only sums are kept. With
x the features, T tasks, mu_t and n_t a task's mean and count, and n = sum_t n_t - T:

    S     = 1/n sum_t sum_{x of t} (x - mu_t)(x - mu_t)^T         pooled covariance
    R     = V^-1/2 S V^-1/2,  V = diag(S)                          its correlations
    R'    = (1 - rho) R + rho I                                    shrunk, so that D > n works
    rho   = min(1, ((1 - 2/D) tr(R^2) + tr(R)^2) / ((n + 1 - 2/D) (tr(R^2) - tr(R)^2 / D)))
    task  = argmin_t (x - mu_t)^T (V^1/2 R' V^1/2)^-1 (x - mu_t)

That is linear discriminant analysis with equal priors (Hastie, Tibshirani and Friedman, The
Elements of Statistical Learning, 2nd edition, eq. 4.10), its covariance shrunk towards its diagonal
by the oracle-approximating estimate (Chen, Wiesel, Eldar and Hero 2010, arXiv 0907.4698, eq. 23),
which needs no more of the data than S.

Axes: n texts, T tasks, D width.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class TaskFeatures:
    """What is known of T tasks' features.

    Attributes:
      names: names of the tasks.
      means: `[T, D]` float32, mean of each task's features.
      counts: `[T]` int32, number of each task's texts.
      scatter: `[D, D]` float32, sum of (x - mu)(x - mu)^T over the texts of all tasks, each about
        its own task's mean.
    """

    names: tuple[str, ...]
    means: np.ndarray
    counts: np.ndarray
    scatter: np.ndarray

    @classmethod
    def blank(cls, width: int, names: Sequence[str] = ()) -> "TaskFeatures":
        """Of these tasks without a text."""
        count = len(names)
        return cls(
            tuple(names),
            np.zeros((count, width), np.float32),
            np.zeros(count, np.int32),
            np.zeros((width, width), np.float32),
        )

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint holds: all but the names."""
        return {"means": self.means, "counts": self.counts, "scatter": self.scatter}

    @classmethod
    def of(cls, name: str, features: np.ndarray) -> "TaskFeatures":
        """Of one task, given the features `[n, D]` of its texts."""
        wide = features.astype(np.float64)
        mean = wide.mean(axis=0)
        centred = wide - mean
        return cls(
            (name,),
            mean[None].astype(np.float32),
            np.array([len(features)], np.int32),
            (centred.T @ centred).astype(np.float32),
        )

    def joined(self, others: "TaskFeatures") -> "TaskFeatures":
        """With those of further tasks; so in any order of tasks they are sums of each task's."""
        return TaskFeatures(
            (*self.names, *others.names),
            np.concatenate([self.means, others.means]),
            np.concatenate([self.counts, others.counts]),
            self.scatter + others.scatter,
        )

    def choose(self, features: np.ndarray) -> np.ndarray:
        """Index of each text's task, `[n]`; `features` is `[n, D]`."""
        centre, weights, bias = self._discriminants
        scores = (features - centre) @ weights + bias
        return np.asarray(scores.argmax(axis=1))

    @functools.cached_property
    def _discriminants(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centre `[1, D]`, weights `[D, T]` and bias `[1, T]` of the linear discriminants.

        Up to a term that all tasks share, the squared distance to a task's mean is
        -2 (x^T Sigma^-1 mu - mu^T Sigma^-1 mu / 2).
        """
        means = self.means.astype(np.float64)
        centre = means.mean(axis=0, keepdims=True)
        free = max(int(self.counts.sum()) - len(self.names), 1)
        covariance = self.scatter.astype(np.float64) / free
        deviation = np.sqrt(np.diag(covariance))[None]
        deviation = np.where(deviation > 0, deviation, 1.0)  # of a feature that never varies
        correlation = shrink(covariance / (deviation * deviation.T), free)
        scaled = (means - centre) / deviation
        solved = np.linalg.solve(correlation, scaled.T)
        bias = -0.5 * np.einsum("td,dt->t", scaled, solved)
        return centre, solved / deviation.T, bias[None]


def shrink(correlation: np.ndarray, count: int) -> np.ndarray:
    """Correlations `[D, D]` shrunk towards the identity by the module's rho.

    Args:
      correlation: `[D, D]`, correlations of a sample.
      count: n, its degrees of freedom.
    """
    width = len(correlation)
    squares, trace = float((correlation**2).sum()), float(np.trace(correlation)) ** 2
    spread = (count + 1 - 2 / width) * (squares - trace / width)
    rho = min(1.0, ((1 - 2 / width) * squares + trace) / spread) if spread > 0 else 1.0
    return (1 - rho) * correlation + rho * np.eye(width)
