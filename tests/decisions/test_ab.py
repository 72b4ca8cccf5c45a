"""Two systems on the same samples, against counts by hand and scipy's paired bootstrap."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
from scipy.special import expit
from scored import LABELS, binary

from moecl_jax.decisions import GUARANTEED, PLAIN, Samples, choose, compare, strip
from moecl_jax.errors import UserError

TARGET = 0.9


def arms(count=4000, seed=0, noise=1.5):
    """A candidate whose scores tell the truth, and a baseline that sees them blurred."""
    generator = np.random.default_rng(seed)
    z = generator.normal(0.0, 2.5, count)
    gold = generator.random(count) < expit(z)
    blurred = z + generator.normal(0.0, noise, count)
    return binary(expit(blurred), gold), binary(expit(z), gold)


@pytest.fixture(scope="module")
def found():
    return compare(*arms(), TARGET, seed=5)


def test_an_arm_is_what_strip_gives_for_it_alone(found):
    for arm, samples in zip(("baseline", "candidate"), arms(), strict=True):
        validation, test = samples.halves(5)
        for rule in (GUARANTEED, PLAIN):
            thresholds = choose(validation, TARGET, rule=rule, seed=5)
            outcome = found.rules[rule]
            assert getattr(outcome, arm) == thresholds
            alone = strip(test, thresholds)
            for row, pair in (
                (alone.total, outcome.total),
                *((alone.labels[label], outcome.labels[label]) for label in LABELS),
            ):
                both = getattr(pair, arm)
                assert (both.decided, both.wrong) == (row.decided, row.wrong)
                assert both.rate.low == pytest.approx(row.rate.low, abs=0.004)


def test_the_gain_is_the_difference_of_rates_with_scipys_paired_interval(found):
    outcome = found.rules[PLAIN]
    before, after = (outcome.decisions >= 0).astype(float).T
    pair = outcome.total
    assert pair.gain.value == pytest.approx(after.mean() - before.mean())
    assert pair.relative.value == pytest.approx(after.mean() / before.mean() - 1)

    def reference(statistic):
        return scipy.stats.bootstrap(
            (before, after),
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=3000,
            batch=500,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval

    for estimate, expected in (
        (pair.gain, reference(lambda b, a, axis: a.mean(axis) - b.mean(axis))),
        (pair.relative, reference(lambda b, a, axis: a.mean(axis) / b.mean(axis) - 1)),
    ):
        width = expected.high - expected.low
        assert estimate.low == pytest.approx(expected.low, abs=0.1 * width)
        assert estimate.high == pytest.approx(expected.high, abs=0.1 * width)
    # Samples in pairs vary less than two lots of samples would.
    apart = np.sqrt(pair.baseline.rate.value * 0.5 / 2000 + pair.candidate.rate.value * 0.5 / 2000)
    assert pair.gain.high - pair.gain.low < 2 * 1.96 * apart


def test_the_better_arm_decides_more(found):
    for outcome in found.rules.values():
        assert outcome.total.gain.low > 0.0
        targets, baseline, candidate = np.array(outcome.curve).T
        assert TARGET in targets
        assert np.all(np.diff(targets) > 0)
        assert candidate.sum() > baseline.sum()
        at = list(targets).index(TARGET)
        assert baseline[at] == pytest.approx(outcome.total.baseline.rate.value)
        assert candidate[at] == pytest.approx(outcome.total.candidate.rate.value)


def test_moves_and_changed_samples_are_those_of_the_decisions(found):
    for outcome in found.rules.values():
        assert outcome.moves.sum() == len(found.test) == 2000
        for row, first in enumerate((0, 1, -1)):
            for column, second in enumerate((0, 1, -1)):
                same = np.all(outcome.decisions == (first, second), axis=1)
                assert outcome.moves[row, column] == same.sum()
        differ = outcome.decisions[:, 0] != outcome.decisions[:, 1]
        np.testing.assert_array_equal(outcome.changed, np.flatnonzero(differ))


def test_equal_arms_gain_nothing():
    _, candidate = arms(600)
    for outcome in compare(candidate, candidate, 0.8).rules.values():
        gain = outcome.total.gain
        assert (gain.value, gain.low, gain.high) == (0.0, 0.0, 0.0)
        assert not len(outcome.changed)


def test_a_baseline_needs_ids_and_scores_alone_in_any_order_and_range(found):
    baseline, candidate = arms()
    plain = 40 + 7 * np.log(baseline.scores[:, 1] / baseline.scores[:, 0])
    order = np.random.default_rng(3).permutation(len(baseline))[:3900]
    other = Samples(
        ["extra", *(baseline.ids[n] for n in order)], LABELS, np.append(0, plain[order]), None
    )
    result = compare(other, candidate, TARGET)
    assert result.left_out == 101
    assert result.validation + len(result.test) == 3900
    # The rates are about those of the same scores as probabilities.
    for rule in (GUARANTEED, PLAIN):
        rate = result.rules[rule].total.baseline.rate.value
        assert rate == pytest.approx(found.rules[rule].total.baseline.rate.value, abs=0.08)


def test_the_order_of_labels_does_not_matter(found):
    baseline, candidate = arms()
    turned = Samples(baseline.ids, LABELS[::-1], baseline.scores[:, ::-1], 1 - baseline.gold)
    result = compare(turned, candidate, TARGET, seed=5)
    for rule in (GUARANTEED, PLAIN):
        assert result.rules[rule].total == found.rules[rule].total
        np.testing.assert_array_equal(result.rules[rule].moves, found.rules[rule].moves)


def test_plain_scores_turn_with_the_labels():
    baseline, candidate = arms(1000)
    plain = np.log(baseline.scores[:, 1] / baseline.scores[:, 0]) * 5
    first = Samples(baseline.ids, LABELS, plain, None)
    second = Samples(baseline.ids, LABELS[::-1], -plain, None)
    results = [compare(arm, candidate, 0.8).rules[PLAIN] for arm in (first, second)]
    np.testing.assert_array_equal(results[0].decisions, results[1].decisions)


def test_samples_that_do_not_fit_are_refused():
    baseline, candidate = arms(50)
    replace = dataclasses.replace
    gold = candidate.gold.copy()
    gold[3] = 1 - gold[3]
    for other, message in (
        (replace(baseline, ids=[f"x{n}" for n in range(50)]), "no sample has the same id"),
        (replace(baseline, ids=["7", *baseline.ids[1:]]), "several samples of the id 7"),
        (replace(baseline, labels=("a", "b")), "labels a, b.*ham, spam"),
        (replace(baseline, gold=gold), r"sample 3: its gold label.*\(1 such"),
    ):
        with pytest.raises(UserError, match=message):
            compare(other, candidate, TARGET)
    with pytest.raises(UserError, match="neither file has gold labels"):
        compare(replace(baseline, gold=None), replace(candidate, gold=None), TARGET)
    with pytest.raises(UserError, match="1 samples"):
        compare(*(arm.take(np.array([0])) for arm in (baseline, candidate)), TARGET)
