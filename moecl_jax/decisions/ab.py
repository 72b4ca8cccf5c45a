"""Two systems on the same samples: how much more one of them decides at equal precision.

Each arm gets its own thresholds, chosen by the same rule on the same half of the samples, and both
are counted on the other half. Intervals of the gain resample samples, each with both arms'
outcomes (a paired bootstrap).
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from moecl_jax.decisions.choosing import Validation
from moecl_jax.decisions.samples import Samples, halves
from moecl_jax.decisions.stripping import Estimate, Row, outcomes_of, resample, row
from moecl_jax.decisions.thresholds import GUARANTEED, PLAIN, UNDECIDED, Thresholds
from moecl_jax.errors import UserError, listed

RULES = (GUARANTEED, PLAIN)
CURVE_TARGETS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99)
"""Targets of the curve of rates, beside the one that was asked for."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Both arms' decisions for one label, or for all of them together.

    Attributes:
      baseline: decisions of the baseline.
      candidate: decisions of the candidate.
      gain: rate of the candidate less that of the baseline, as a fraction of all samples.
      relative: the gain as a share of the baseline's rate; NaN if the baseline decides nothing.
    """

    baseline: Row
    candidate: Row
    gain: Estimate
    relative: Estimate


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one rule gives.

    Attributes:
      baseline: thresholds of the baseline.
      candidate: thresholds of the candidate.
      total: decisions for all labels together.
      labels: decisions for each label.
      moves: number of test samples by the baseline's decision (row) and the candidate's (column),
        `[C + 1, C + 1]`; the last of each is none.
      changed: places, among the test samples, of those that the arms decide differently.
      decisions: index of the label that each test sample is decided for by the baseline and the
        candidate, `[N, 2]`; `UNDECIDED` for none.
      curve: target, and total rates of baseline and candidate at it, from low to high targets.
    """

    baseline: Thresholds
    candidate: Thresholds
    total: Pair
    labels: dict[str, Pair]
    moves: NDArray[np.int64]
    changed: NDArray[np.int64]
    decisions: NDArray[np.int64]
    curve: Sequence[tuple[float, float, float]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two systems on the same samples.

    Attributes:
      target: the precision that was asked for.
      confidence: how sure the rule `guaranteed` is.
      validation: number of samples that thresholds were chosen on.
      test: samples that were counted, with the candidate's scores and gold labels.
      left_out: number of samples that only one system has scored.
      positive: label that a number stood for, where a system's scores were one; else None.
      rules: what each rule gives, `guaranteed` first.
    """

    target: float
    confidence: float
    validation: int
    test: Samples
    left_out: int
    positive: str | None
    rules: Mapping[str, Outcome]


def compare(
    baseline: Samples,
    candidate: Samples,
    target: float,
    *,
    confidence: float = 0.95,
    temperature: bool = False,
    seed: int = 0,
) -> Comparison:
    """Compares two systems on the samples that both have scored.

    Args:
      baseline: samples with the baseline's scores.
      candidate: samples with the candidate's scores. One of the two must have gold labels.
      target: precision that each label's decisions should have, above 0 and below 1.
      confidence: probability with which the rule `guaranteed` keeps its promise, for each arm.
      temperature: whether probabilities are calibrated by a temperature first.
      seed: chooses the half of the samples that thresholds are chosen on.

    Raises:
      UserError: the samples do not fit together; says where.
    """
    arms, left_out = _matched(baseline, candidate)
    first, second = halves(len(arms[0]), seed)
    if not len(first):
        raise UserError(f"both systems have scored {len(arms[0])} samples; more are needed")
    fitted = [Validation(arm.take(first), temperature=temperature, seed=seed) for arm in arms]
    tests = [arm.take(second) for arm in arms]

    def chosen(at: float, rule: str) -> list[Thresholds]:
        return [arm.choose(at, rule=rule, confidence=confidence) for arm in fitted]

    def rates(at: float, rule: str) -> tuple[float, float, float]:
        first, second = (
            float(np.mean(found.indices(test.scores) != UNDECIDED))
            for test, found in zip(tests, chosen(at, rule), strict=True)
        )
        return at, first, second

    rules = {}
    for rule in RULES:
        curve = [rates(at, rule) for at in sorted({*CURVE_TARGETS, target})]
        rules[rule] = _outcome(tests, chosen(target, rule), curve, seed)
    positive = baseline.positive or candidate.positive
    return Comparison(target, confidence, len(first), tests[1], left_out, positive, rules)


def _outcome(
    tests: Sequence[Samples],
    thresholds: Sequence[Thresholds],
    curve: Sequence[tuple[float, float, float]],
    seed: int,
) -> Outcome:
    (before, kinds), (after, _) = (
        outcomes_of(test, found) for test, found in zip(tests, thresholds, strict=True)
    )
    joint = np.bincount(before * kinds + after, minlength=kinds * kinds)
    counts = joint.reshape(kinds, kinds)
    drawn = resample(joint, seed).reshape(-1, kinds, kinds)

    def pair(labels: list[int]) -> Pair:
        rows = [row(counts.sum(axis), drawn.sum(axis + 1), labels, True) for axis in (1, 0)]
        places = [2 * label + wrong for label in labels for wrong in (0, 1)]
        base = drawn[:, places].sum(axis=(1, 2)) / counts.sum()
        gains = drawn[:, :, places].sum(axis=(1, 2)) / counts.sum() - base
        rate, gain = rows[0].rate.value, rows[1].rate.value - rows[0].rate.value
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = float(np.divide(gain, rate))
            relatives = gains / base
        return Pair(rows[0], rows[1], Estimate.of(gain, gains), Estimate.of(relative, relatives))

    labels = thresholds[0].labels
    none = len(labels)
    sides = np.stack([before // 2, after // 2], axis=1)  # the outcome "none" is 2C
    moves = np.bincount(sides[:, 0] * (none + 1) + sides[:, 1], minlength=(none + 1) ** 2)
    return Outcome(
        baseline=thresholds[0],
        candidate=thresholds[1],
        total=pair(list(range(len(labels)))),
        labels={label: pair([index]) for index, label in enumerate(labels)},
        moves=moves.reshape(none + 1, none + 1),
        changed=np.flatnonzero(sides[:, 0] != sides[:, 1]),
        decisions=np.where(sides == none, UNDECIDED, sides),
        curve=curve,
    )


def _matched(baseline: Samples, candidate: Samples) -> tuple[tuple[Samples, Samples], int]:
    """The samples that both systems have scored, in the candidate's order, with gold labels."""
    places = _places(baseline, "baseline")
    _places(candidate, "candidate")
    both = [(places[name], place) for place, name in enumerate(candidate.ids) if name in places]
    if not both:
        raise UserError(
            "no sample has the same id in both files; name the field that tells samples apart "
            "with --id"
        )
    left_out = len(baseline) + len(candidate) - 2 * len(both)
    here, there = np.array(both, np.int64).T
    first, second = baseline.take(here), candidate.take(there)
    if set(first.labels) != set(second.labels):
        raise UserError(
            f"the baseline has the labels {listed(first.labels)}, the candidate "
            f"{listed(second.labels)}"
        )
    first = _reordered(first, second.labels)
    if first.gold is not None and second.gold is not None:
        differing = np.flatnonzero(first.gold != second.gold)
        if len(differing):
            raise UserError(
                f"sample {second.ids[differing[0]]}: its gold label is "
                f"{second.labels[first.gold[differing[0]]]} in the baseline's file, and "
                f"{second.labels[second.gold[differing[0]]]} in the candidate's "
                f"({len(differing)} such samples)"
            )
    gold = first.gold if second.gold is None else second.gold
    if gold is None:
        raise UserError("neither file has gold labels; name their field by --gold")
    return (dataclasses.replace(first, gold=gold), dataclasses.replace(second, gold=gold)), left_out


def _places(samples: Samples, arm: str) -> dict[str, int]:
    places = {name: place for place, name in enumerate(samples.ids)}
    if len(places) < len(samples):
        (twice, _), *_ = collections.Counter(samples.ids).most_common(1)
        raise UserError(f"the {arm}'s file has several samples of the id {twice}")
    return places


def _reordered(samples: Samples, labels: tuple[str, ...]) -> Samples:
    """The same samples with their labels in another order."""
    if samples.labels == labels:
        return samples
    order = [samples.labels.index(label) for label in labels]
    gold = None if samples.gold is None else np.argsort(order)[samples.gold]
    scores = -samples.scores if samples.scores.ndim == 1 else samples.scores[:, order]
    return dataclasses.replace(samples, labels=labels, scores=scores, gold=gold)
