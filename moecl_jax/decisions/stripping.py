"""What thresholds give on test samples: the share that is decided, and the precision reached.

Intervals are percentile bootstraps over the samples. What is counted of a sample is one of a few
outcomes (decided for a label rightly or wrongly, or not decided), so resampling N samples with
replacement is one draw of a multinomial of N with the shares of the outcomes, whatever N is.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from moecl_jax.decisions.samples import Samples
from moecl_jax.decisions.thresholds import UNDECIDED, Thresholds
from moecl_jax.errors import UserError

RESAMPLES = 2000
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and the 95% interval in which it lies; NaN where it is not known.

    Attributes:
      value: the number.
      low: lower end.
      high: upper end.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, value: float, resampled: NDArray[np.float64]) -> "Estimate":
        """The interval of a number from its values in resamples, of which NaN are left out."""
        known = resampled[np.isfinite(resampled)]
        if not math.isfinite(value) or not known.size:
            return cls()
        tails = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
        low, high = np.percentile(known, tails)
        return cls(value, float(low), float(high))


@dataclasses.dataclass(frozen=True)
class Row:
    """The decisions for one label, or for all of them together.

    Attributes:
      decided: number of samples decided.
      wrong: number of those that are wrong; None if gold labels are not known.
      rate: share of all samples that is decided.
      precision: share of the decided samples that is right; NaN if none is decided, or gold labels
        are not known.
    """

    decided: int
    wrong: int | None
    rate: Estimate
    precision: Estimate


@dataclasses.dataclass(frozen=True)
class Stripped:
    """What thresholds give on test samples.

    Attributes:
      samples: number of test samples.
      total: decisions for all labels together.
      labels: decisions for each label.
    """

    samples: int
    total: Row
    labels: dict[str, Row]


def strip(samples: Samples, thresholds: Thresholds, *, seed: int = 0) -> Stripped:
    """Decides test samples, and counts what was decided and how well.

    Args:
      samples: test samples, other than those the thresholds were chosen on; without gold labels
        precision is not known.
      thresholds: the thresholds.
      seed: chooses the resamples of the bootstrap.

    Raises:
      UserError: there are no samples, or they have other labels.
    """
    outcomes, kinds = outcomes_of(samples, thresholds)
    counts = np.bincount(outcomes, minlength=kinds)
    drawn = resample(counts, seed)
    gold = samples.gold is not None
    rows = {
        label: row(counts, drawn, [index], gold) for index, label in enumerate(thresholds.labels)
    }
    everything = list(range(len(thresholds.labels)))
    return Stripped(len(samples), row(counts, drawn, everything, gold), rows)


def outcomes_of(samples: Samples, thresholds: Thresholds) -> tuple[NDArray[np.int64], int]:
    """The outcome of each sample, and how many outcomes there are.

    With C labels outcome 2c is a right decision for label c, 2c + 1 a wrong one, and 2C none.

    Args:
      samples: test samples; without gold labels all decisions count as right.
      thresholds: the thresholds.

    Raises:
      UserError: there are no samples, or they have other labels.
    """
    if not len(samples):
        raise UserError("there are no test samples")
    if samples.labels != thresholds.labels:
        raise UserError(
            f"the test samples have the labels {samples.labels}, and the thresholds "
            f"{thresholds.labels}"
        )
    if (samples.scores.ndim == 1) != (thresholds.calibration.shift is not None):
        raise UserError(
            "the test samples have probabilities and the validation samples plain scores, or the "
            "other way round; all scores of both must be from 0 to 1, or neither are probabilities"
        )
    decided = thresholds.indices(samples.scores)
    wrong = 0 if samples.gold is None else (decided != samples.gold).astype(np.int64)
    none = 2 * len(thresholds.labels)
    return np.where(decided == UNDECIDED, none, 2 * decided + wrong), none + 1


def resample(counts: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Counts of each outcome in `RESAMPLES` resamples, `[RESAMPLES, K]`.

    Args:
      counts: number of samples with each outcome, `[K]`.
      seed: chooses the resamples.
    """
    total = counts.sum()
    return np.random.default_rng(seed).multinomial(total, counts / total, size=RESAMPLES)


def row(counts: NDArray[np.int64], drawn: NDArray[np.int64], labels: list[int], gold: bool) -> Row:
    """The decisions for some labels together.

    Args:
      counts: number of samples with each outcome, `[K]`.
      drawn: the same in each resample, `[RESAMPLES, K]`.
      labels: indices of the labels.
      gold: whether gold labels are known.
    """
    right, wrong = [2 * label for label in labels], [2 * label + 1 for label in labels]

    def figures(of: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        decided = of[..., right + wrong].sum(axis=-1)
        with np.errstate(invalid="ignore"):
            return decided / of.sum(axis=-1), of[..., right].sum(axis=-1) / decided

    (rate, precision), (rates, precisions) = figures(counts), figures(drawn)
    return Row(
        decided=int(counts[right + wrong].sum()),
        wrong=int(counts[wrong].sum()) if gold else None,
        rate=Estimate.of(float(rate), rates),
        precision=Estimate.of(float(precision), precisions) if gold else Estimate(),
    )
