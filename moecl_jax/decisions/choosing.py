"""The rules that choose thresholds on validation samples.

A sample is decided for its best label c if the probability of c is at least the threshold t_c.
The precision of a threshold is that among the samples it decides, of any number to come:

    precision_c(t) = P(gold = c | c is the best label and p_c >= t)

The rule `plain` takes the lowest threshold whose precision in the validation samples reaches the
target. It promises nothing: the threshold is picked where chance was kind.

The rule `guaranteed` is Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052). With
probability `confidence` over the validation samples, all labels have a precision of at least the
target at once. Nothing is assumed of the model, its scores, or how precision depends on them;
validation samples and those to come must be drawn alike and independently.

1. Learn. A random fifth of the validation samples, at most 50,000, gives the calibration and, for
   each label, the candidates: its distinct probabilities from high to low, and 0. Two of them are
   starts: the one where a precision above the target is most significant, and one that decides
   half as many samples (but enough to pass with one error or two).
2. Test. The other samples test the candidates from the first start on. A threshold t decides n(t)
   of them, k(t) wrongly. It was fixed before, so given n(t) the errors k(t) are binomial, and under
   the hypothesis precision_c(t) < target

       P(p <= d) <= d     for     p = P(Binomial(n(t), 1 - target) <= k(t)),   p = 1 if n(t) = 0.

   So the random number of decided samples needs no correction.
3. The errors that are allowed, 1 - confidence, are shared equally by the C labels (Bonferroni), and
   d = (1 - confidence) / C of a label by its two starts. A candidate that passes hands on what it
   was allowed:

       allowed_m = (d / 2 at a start, else 0) + (allowed_{m-1} if candidate m - 1 passed, else 0)

   and passes if p_m <= allowed_m. This fallback procedure (Wiens 2003, Pharmaceutical Statistics 2)
   keeps the probability that any candidate passes wrongly below d, however the tests depend on each
   other; it is one of the graphical procedures (Bretz et al. 2009) that Learn then Test names, and
   fixed sequence testing if there is one start. The lowest candidate that passes is the threshold.

The p-value is MAPIE's for a risk of zeros and ones (`BinaryClassificationController`, in which the
Hoeffding-Bentkus p-value has become the binomial tail), and a test compares both p-values and
thresholds. MAPIE 1.6 rounds n (k / n) up, which by floating point is sometimes k + 1; so its
thresholds are now and then a little higher. It is computed here from sorted scores, because MAPIE
decides all samples anew for each threshold.

Because samples are compared with thresholds by >=, those with equal probabilities stay together,
and ties need no further rule.
"""

import dataclasses
import math

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from moecl_jax.decisions.calibration import (
    Calibration,
    check_plain_scores,
    fit_plain_scores,
    fit_temperature,
)
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
      seed: chooses the part of the samples that candidates are learned on.

    Raises:
      UserError: gold labels are missing, or a value is out of range.
    """
    validation = Validation(samples, temperature=temperature, seed=seed)
    return validation.choose(target, rule=rule, confidence=confidence)


@dataclasses.dataclass(frozen=True)
class _Ranked:
    """The samples whose best label is one label, by its probability.

    Attributes:
      probabilities: probabilities of the label from high to low, `[M]`.
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
      tested: whether a sample tests candidates, `[N]`; the calibration and the candidates are
        learned on the others.
    """

    def __init__(self, samples: Samples, *, temperature: bool = False, seed: int = 0) -> None:
        """Splits, calibrates and sorts the samples.

        Args:
          samples: validation samples, with gold labels.
          temperature: whether probabilities are calibrated by a temperature.
          seed: chooses the part that candidates are learned on.

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
                check_plain_scores(samples.scores, gold)
                self.calibration = fit_plain_scores(samples.scores[learned], gold[learned])
            elif temperature:
                self.calibration = fit_temperature(samples.scores[learned], gold[learned])
        elif samples.scores.ndim == 1:
            self.calibration = Calibration(shift=float(np.median(samples.scores)))
        best, probability = best_labels(self.calibration.probabilities(samples.scores))
        self.tested = np.ones(len(samples), bool)
        self.tested[learned] = False

        def ranked(label: int, part: NDArray[np.bool_]) -> _Ranked:
            chosen = part & (best == label) & (probability >= 0.0)
            return _Ranked.of(probability[chosen], gold[chosen] != label)

        labels = range(len(samples.labels))
        self._all = [ranked(label, np.ones_like(self.tested)) for label in labels]
        self._tested = [ranked(label, self.tested) for label in labels]
        self._learned = [ranked(label, ~self.tested) for label in labels]

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
                plan = self.plan(index, target, level)
                value, reason = _guaranteed(*plan, self._tested[index], target, level)
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

    def plan(
        self, label: int, target: float, level: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What the rule `guaranteed` tests for a label, which the tested samples do not change.

        Args:
          label: index of the label.
          target: the precision, from 0 to 1.
          level: probability with which a threshold may be chosen wrongly.

        Returns:
          The candidates from high to low, and the share of the level that each has of its own.
        """
        learned = self._learned[label]
        thresholds = np.append(learned.distinct(), 0.0)
        shares = np.zeros(len(thresholds))
        decided, wrong = learned.counts(thresholds)
        found = p_values(decided, wrong, target)
        start = len(found) - 1 - int(np.argmin(found[::-1]))  # of equal ones the lowest
        here_for_one_there = np.sum(~self.tested) / np.sum(self.tested)
        fewest = max(decided[start] / 2, 2 * _needed(target, level) * here_for_one_there)
        earlier = min(int(np.searchsorted(decided, fewest)), start)
        for place in (earlier, start):
            shares[place] += level / 2
        return thresholds[earlier:], shares[earlier:]


def _needed(target: float, level: float) -> float:
    """The number of decisions without an error that show a precision of the target."""
    return math.log(level) / math.log(target)


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


def _guaranteed(
    thresholds: NDArray[np.float64],
    shares: NDArray[np.float64],
    tested: _Ranked,
    target: float,
    level: float,
) -> tuple[float | None, str]:
    decided, wrong = tested.counts(thresholds)
    found = p_values(decided, wrong, target)
    handed_on, passed = 0.0, None
    for place, (p, share) in enumerate(zip(found, shares, strict=True)):
        allowed = share + handed_on
        handed_on = allowed if p <= allowed else 0.0
        if handed_on:
            passed = place
    if passed is not None:
        return float(thresholds[passed]), ""
    needed = math.ceil(_needed(target, level))
    if decided[-1] < needed:
        return None, (
            f"it is the best label of {decided[-1]} tested samples, and at least {needed} right "
            f"decisions without an error are needed to show a precision of {100 * target:g} %"
        )
    best = int(np.argmin(found))
    return None, (
        f"at the most promising threshold {decided[best] - wrong[best]} of {decided[best]} tested "
        f"samples are right, which does not show a precision of {100 * target:g} %"
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
