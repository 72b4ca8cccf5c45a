"""From a system's scores to probabilities of labels: a temperature, or a logistic curve.

    temperature   p'_c = softmax(log(p) / T)_c               Guo et al. 2017, arXiv 1706.04599
    plain scores  p' = 1 / (1 + exp(-(s - shift) / T))       Platt 1999, for two labels

Both are fitted by maximum likelihood. N is the number of samples, C of labels.
"""

import dataclasses

import numpy as np
import scipy.optimize
import scipy.special
from numpy.typing import NDArray

from moecl_jax.errors import UserError

_LEAST = 1e-15
"""A probability below this is taken for this, where its logarithm is needed."""
_WIDEST = 6.0
"""Temperatures are sought from exp(-6) to exp(6)."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Makes probabilities of a system's scores.

    Attributes:
      temperature: what log-probabilities are divided by; 1 leaves probabilities as they are.
      shift: the score at which both labels are equally likely; None if scores are probabilities.
    """

    temperature: float = 1.0
    shift: float | None = None

    def probabilities(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probabilities `[N, C]` of scores.

        Args:
          scores: probabilities `[N, C]`, or plain scores `[N]` of the second of two labels.
        """
        if self.shift is not None:
            margins = (scores - self.shift) / self.temperature
            return scipy.special.expit(np.stack([-margins, margins], axis=1))
        if self.temperature == 1.0:
            return scores
        return scipy.special.softmax(_logarithms(scores) / self.temperature, axis=1)


def fit_temperature(probabilities: NDArray[np.float64], gold: NDArray[np.int64]) -> Calibration:
    """The temperature under which gold labels are likeliest.

    Args:
      probabilities: probability of each label, `[N, C]`.
      gold: index of each sample's label, `[N]`.
    """
    logits = _logarithms(probabilities)
    rows = np.arange(len(gold))

    def loss(log_temperature: float) -> float:
        scaled = logits * np.exp(-log_temperature)
        total = scipy.special.logsumexp(scaled, axis=1)
        return float(np.mean(total - scaled[rows, gold]))

    found = scipy.optimize.minimize_scalar(loss, bounds=(-_WIDEST, _WIDEST), method="bounded")
    return Calibration(float(np.exp(found.x)))


def fit_plain_scores(scores: NDArray[np.float64], gold: NDArray[np.int64]) -> Calibration:
    """The logistic curve under which gold labels are likeliest.

    The targets are Platt's, (n1 + 1) / (n1 + 2) and 1 / (n0 + 2), so that scores which part the
    labels without an error have a finite curve. Where a few samples have a curve that falls, by
    chance, the labels part at the mean of the scores.

    Args:
      scores: any finite numbers, higher where the second label is likelier, `[N]`.
      gold: 0 or 1, `[N]`.
    """
    middle, spread = float(np.mean(scores)), float(np.std(scores))
    if spread == 0.0:
        return Calibration(shift=middle)
    standard = (scores - middle) / spread
    ones = float(np.sum(gold))
    targets = np.where(gold == 1, (ones + 1) / (ones + 2), 1 / (len(gold) - ones + 2))

    def loss(curve: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = curve[0] * standard + curve[1]
        value = np.mean(np.logaddexp(0.0, margins) - targets * margins)
        errors = scipy.special.expit(margins) - targets
        return float(value), np.array([np.mean(errors * standard), np.mean(errors)])

    slope, offset = scipy.optimize.minimize(loss, np.array([1.0, 0.0]), jac=True).x
    if slope <= 0.0:
        return Calibration(spread, middle)
    return Calibration(float(spread / slope), float(middle - spread * offset / slope))


def check_plain_scores(scores: NDArray[np.float64], gold: NDArray[np.int64]) -> None:
    """Refuses scores that are not higher, in the mean, where the second label is true.

    Args:
      scores: plain scores, `[N]`.
      gold: 0 or 1, both of them present, `[N]`.

    Raises:
      UserError: says what to do.
    """
    if np.mean(scores[gold == 1]) <= np.mean(scores[gold == 0]):
        raise UserError(
            "scores are not higher for the positive label in the validation samples; name the "
            "label that high scores stand for with --positive, or turn the scores around"
        )


def _logarithms(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(np.maximum(probabilities, _LEAST))
