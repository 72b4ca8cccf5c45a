"""The rules that choose thresholds on validation samples.

A sample is decided for its best label c if the probability of c is at least the threshold t_c.
The precision of a threshold is that among the samples it decides, of any number to come:

    precision_c(t) = P(gold = c | c is the best label and p_c >= t)

The rule `plain` takes the lowest threshold whose precision in the validation samples reaches the
target. It promises nothing: the threshold is picked where chance was kind.

The rule `guaranteed` is Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052) with fixed
sequence testing whose sequence is learned on other samples (its section 3.2 and appendix). With
probability `confidence` over the validation samples, all labels have a precision of at least the
target at once. No assumption is made on the model, its scores, or how precision depends on them;
validation samples and those to come must be drawn alike and independently.

1. Learn. A random fifth of the validation samples, at most 50,000, gives the temperature and, for
   each label, the sequence of thresholds: its distinct probabilities from the one where a precision
   above the target is most significant downwards, and 0 at the end.
2. Test. On the other samples, the thresholds of the sequence are tested one after the other at the
   level d = (1 - confidence) / C, until one fails; the last that has not is taken. A threshold t
   decides n(t) samples, k(t) of them wrongly. Given n(t), k(t) is binomial if the threshold was
   fixed before, so under the hypothesis precision_c(t) < target

       P(p <= d) <= d     for     p = P(Binomial(n(t), 1 - target) <= k(t)),   p = 1 if n(t) = 0.

   So the random number of decided samples needs no correction. The first false rejection must
   happen at the first true hypothesis of the sequence, which is why one level serves for all of
   it; and a label's share d of the errors adds up over the C labels (Bonferroni).

This p is MAPIE's for a risk of zeros and ones (`BinaryClassificationController`, in which its
Hoeffding-Bentkus p-value has become the binomial tail), and the thresholds are those of its
procedure `split_fixed_sequence` for the same sequence: a test compares. It is computed here from
sorted scores, for MAPIE decides all samples once for each threshold.

Because samples are compared with thresholds by >=, those with equal probabilities stay together,
and ties need no further rule.
"""

import dataclasses
import math

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from moecl_jax.decisions.calibration import Calibration, fit_plain_scores, fit_temperature
from moecl_jax.decisions.samples import Samples
from moecl_jax.decisions.thresholds import GUARANTEED, PLAIN, Thresholds, best_labels
from moecl_jax.errors import UserError

FEWEST = 10
"""Fewer validation samples give no threshold at all."""

_LEARN_SHARE = 0.2
_MOST_LEARNED = 50_000


def choose(
    samples: Samples,
    target: float,
    *,
    rule: str = GUARANTEED,
    confidence: float = 0.95,
    temperature: bool = False,
    seed: int = 0,
) -> Thresholds:
    """Chooses thresholds on validation samples. For several targets see `Validation`.

    Args:
      samples: validation samples, with gold labels. The model must not have been trained on them.
      target: precision that each label's decisions should have, above 0 and below 1.
      rule: `guaranteed` or `plain`.
      confidence: probability with which the rule `guaranteed` keeps its promise for all labels.
      temperature: whether probabilities are calibrated by a temperature first.
      seed: chooses the part of the samples that the sequence of thresholds is learned on.

    Raises:
      UserError: gold labels are missing, or a value is out of range.
    """
    validation = Validation(samples, temperature=temperature, seed=seed)
    return validation.choose(target, rule=rule, confidence=confidence)


@dataclasses.dataclass(frozen=True)
class _Ranked:
    """The samples whose best label is one label, by its probability.

    Attributes:
      probabilities: from high to low, `[M]`.
      wrong: how many of the first 0, 1, ..., M are of another label, `[M + 1]`.
    """

    probabilities: NDArray[np.float64]
    wrong: NDArray[np.int64]

    @classmethod
    def of(cls, probabilities: NDArray[np.float64], wrong: NDArray[np.bool_]) -> "_Ranked":
        order = np.argsort(-probabilities)
        return cls(probabilities[order], np.concatenate([[0], np.cumsum(wrong[order])]))

    def counts(
        self, thresholds: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How many samples each threshold decides, and how many of them wrongly."""
        decided = np.searchsorted(-self.probabilities, -thresholds, side="right")
        return decided, self.wrong[decided]

    def distinct(self) -> NDArray[np.float64]:
        """The distinct probabilities, from high to low."""
        return np.unique(self.probabilities)[::-1]


class Validation:
    """Validation samples, sorted once, on which thresholds for any target are chosen.

    Attributes:
      samples: the samples.
      calibration: what makes probabilities of their scores.
    """

    def __init__(self, samples: Samples, *, temperature: bool = False, seed: int = 0) -> None:
        """Splits, calibrates and sorts the samples.

        Args:
          samples: validation samples, with gold labels.
          temperature: whether probabilities are calibrated by a temperature.
          seed: chooses the part that the sequence of thresholds is learned on.

        Raises:
          UserError: gold labels are missing, or plain scores do not tell the labels apart.
        """
        if samples.gold is None:
            raise UserError(
                "the validation samples have no gold labels; name their field by --gold"
            )
        self.samples = samples
        gold = samples.gold
        order = np.random.default_rng(seed).permutation(len(samples))
        count = min(int(_LEARN_SHARE * len(samples)), _MOST_LEARNED)
        learned = order[:count]
        self.calibration = Calibration()
        self._nothing = _why_nothing(samples)
        if self._nothing is None:
            if samples.scores.ndim == 1:
                self.calibration = fit_plain_scores(samples.scores[learned], gold[learned])
            elif temperature:
                self.calibration = fit_temperature(samples.scores[learned], gold[learned])
        elif samples.scores.ndim == 1:
            self.calibration = Calibration(shift=float(np.median(samples.scores)))
        best, probability = best_labels(self.calibration.probabilities(samples.scores))
        to_learn = np.zeros(len(samples), bool)
        to_learn[learned] = True

        def ranked(label: int, part: NDArray[np.bool_]) -> _Ranked:
            chosen = part & (best == label) & (probability >= 0.0)
            return _Ranked.of(probability[chosen], gold[chosen] != label)

        labels = range(len(samples.labels))
        self._all = [ranked(label, np.ones_like(to_learn)) for label in labels]
        self._learned = [ranked(label, to_learn) for label in labels]
        self._tested = [ranked(label, ~to_learn) for label in labels]

    def choose(
        self, target: float, *, rule: str = GUARANTEED, confidence: float = 0.95
    ) -> Thresholds:
        """Chooses the thresholds for a target.

        Args:
          target: precision that each label's decisions should have, above 0 and below 1.
          rule: `guaranteed` or `plain`.
          confidence: probability with which the rule `guaranteed` keeps its promise.

        Raises:
          UserError: a value is out of range.
        """
        if not 0.0 < target < 1.0:
            raise UserError(f"target precision {target}: expected a number above 0 and below 1")
        if not 0.0 < confidence < 1.0:
            raise UserError(f"confidence {confidence}: expected a number above 0 and below 1")
        if rule not in (GUARANTEED, PLAIN):
            raise UserError(f"rule {rule!r}: expected {GUARANTEED!r} or {PLAIN!r}")
        values: list[float | None] = []
        reasons = {}
        level = (1.0 - confidence) / len(self.samples.labels)
        for index, label in enumerate(self.samples.labels):
            if self._nothing is not None:
                value, reason = None, self._nothing
            elif rule == PLAIN:
                value, reason = _plain(self._all[index], target)
            else:
                value, reason = _guaranteed(
                    self._learned[index], self._tested[index], target, level
                )
            values.append(value)
            if value is None:
                reasons[label] = reason
        return Thresholds(
            labels=self.samples.labels,
            values=tuple(values),
            reasons=reasons,
            target=target,
            confidence=confidence if rule == GUARANTEED else None,
            rule=rule,
            calibration=self.calibration,
            samples=len(self.samples),
        )


def p_values(
    decided: NDArray[np.int64], wrong: NDArray[np.int64], target: float
) -> NDArray[np.float64]:
    """P-values of the hypotheses that the precision of thresholds is below the target.

    It is the binomial tail of the module's docstring.

    Args:
      decided: number of samples that each threshold decides, `[M]`.
      wrong: number of those that it decides wrongly, `[M]`.
      target: the precision, from 0 to 1.
    """
    tail = scipy.stats.binom.cdf(wrong, np.maximum(decided, 1), 1.0 - target)
    return np.where(decided > 0, tail, 1.0)


def sequence(ranked: _Ranked, target: float) -> NDArray[np.float64]:
    """The thresholds to test, from high to low, learned on samples that are not tested.

    Args:
      ranked: the samples to learn on that have the label as their best.
      target: the precision, from 0 to 1.

    Returns:
      Thresholds from the most significant one on, and 0; none if there are no samples.
    """
    thresholds = ranked.distinct()
    if not len(thresholds):
        return thresholds
    found = p_values(*ranked.counts(thresholds), target)
    start = len(found) - 1 - int(np.argmin(found[::-1]))  # of equal ones that which decides most
    return np.append(thresholds[start:], 0.0)


def _guaranteed(
    learned: _Ranked, tested: _Ranked, target: float, level: float
) -> tuple[float | None, str]:
    thresholds = sequence(learned, target)
    if not len(thresholds):
        return None, "it is the best label of none of the samples that thresholds are learned on"
    decided, wrong = tested.counts(thresholds)
    failed = np.flatnonzero(p_values(decided, wrong, target) > level)
    last = (int(failed[0]) if len(failed) else len(thresholds)) - 1
    if last >= 0:
        return float(thresholds[last]), ""
    needed = math.ceil(math.log(level) / math.log(target))
    return None, (
        f"of the {decided[0]} samples tested at the first threshold {decided[0] - wrong[0]} are "
        f"right, which does not show a precision of {100 * target:g} %; without an error "
        f"{needed} would be needed"
    )


def _plain(ranked: _Ranked, target: float) -> tuple[float | None, str]:
    thresholds = ranked.distinct()
    if not len(thresholds):
        return None, "it is the best label of no validation sample"
    decided, wrong = ranked.counts(thresholds)
    precision = (decided - wrong) / decided
    reached = np.flatnonzero(decided - wrong >= target * decided - 1e-9)
    if len(reached):
        return float(thresholds[reached[-1]]), ""
    return None, f"its highest precision in the validation samples is {100 * precision.max():.1f} %"


def _why_nothing(samples: Samples) -> str | None:
    """Why the samples give no threshold for any label; None if they may."""
    if len(samples) < FEWEST:
        return f"there are {len(samples)} validation samples, and at least {FEWEST} are needed"
    if samples.gold is not None and len(np.unique(samples.gold)) == 1:
        return f"all validation samples are of the label {samples.labels[samples.gold[0]]}"
    return None
