"""Whether scores are still those on which thresholds rest.

Scores of texts that are answered are compared with those of validation texts, in windows of 64,
128, ..., 4096, 4096, ... texts in the order of their coming, each text once. The two-sample test of
Kolmogorov and Smirnov asks of each label's probability whether both samples have one distribution
(of two labels one probability tells the other). With p_k the least p-value of the C tests of the
window k = 1, 2, ..., a drift is told when

    C k (k + 1) p_k <= alpha

The windows and labels have 1 / (k (k + 1)) and 1 / C as their shares of alpha, which add up to 1.
So by the union bound a drift is told falsely with a probability of at most alpha, however long the
service runs and however often somebody looks, if texts are drawn like the validation texts and
independently of each other. The windows are there so that a late change is not hidden among all
the texts before it.

Source: scipy.stats.ks_2samp; J. L. Hodges, The significance probability of the Smirnov two-sample
test, Arkiv foer Matematik 3 (1958), for exact p-values, which are too large where scores are tied.

Axes: n texts, C labels.
"""

import dataclasses

import numpy as np
import scipy.stats

FEWEST = 64
"""Texts of the first window, and validation texts without which nothing is compared."""

MOST = 4096
"""Texts of the largest window."""

ALPHA = 0.01
"""Probability that a drift is ever told of a task that has none."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found so far.

    Attributes:
      reference: number of validation texts.
      texts: number of texts that were answered.
      tested: number of those that were compared, in whole windows.
      p_value: the least C k (k + 1) p_k, at most 1: whether it was reached by chance. 1 before the
        first window.
      drifted: whether a drift is told; it stays so.
    """

    reference: int
    texts: int = 0
    tested: int = 0
    p_value: float = 1.0
    drifted: bool = False


class Drift:
    """Compares the scores of one task's texts with those of its validation texts.

    Attributes:
      found: what was found so far, replaced as a whole.
    """

    def __init__(self, reference: np.ndarray, *, alpha: float = ALPHA):
        """Begins with the probabilities `[n, C]` of validation texts, C at least 2.

        Args:
          reference: probabilities of validation texts, at least one.
          alpha: probability that a drift is ever told where there is none.
        """
        self._reference = _told(np.asarray(reference, np.float64))
        self._alpha = alpha
        self._window: list[np.ndarray] = []
        self._windows = 0
        self.found = Found(len(reference))

    def add(self, probabilities: np.ndarray) -> None:
        """Takes the probabilities `[C]` of a text that was answered, in the order of the labels."""
        self._window.append(np.asarray(probabilities, np.float64))
        found = dataclasses.replace(self.found, texts=self.found.texts + 1)
        if len(self._window) == min(FEWEST << self._windows, MOST):
            found = self._tested(found, _told(np.stack(self._window)))
            self._window = []
        self.found = found

    def _tested(self, found: Found, window: np.ndarray) -> Found:
        """What is found with one more window `[n, C']`."""
        self._windows += 1
        # All labels have equally many texts: the largest distance has the least p-value, and the
        # exact one of that takes up to 0.2 s.
        farthest = max(zip(self._reference.T, window.T, strict=True), key=_distance)
        least = float(scipy.stats.ks_2samp(*farthest).pvalue)
        share = window.shape[1] * self._windows * (self._windows + 1)
        p_value = min(found.p_value, least * share)
        return dataclasses.replace(
            found,
            tested=found.tested + len(window),
            p_value=p_value,
            drifted=p_value <= self._alpha,
        )


def _distance(pair: tuple[np.ndarray, np.ndarray]) -> float:
    return float(scipy.stats.ks_2samp(*pair, method="asymp").statistic)


def _told(probabilities: np.ndarray) -> np.ndarray:
    """The columns of `[n, C]` that are tested: of two labels one."""
    return probabilities[:, 1:] if probabilities.shape[1] == 2 else probabilities
