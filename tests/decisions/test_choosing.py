"""Thresholds by both rules: their promise, by simulation, and cases that have no threshold."""

import math
import time

import numpy as np
import pytest
from scipy.special import expit
from scored import LABELS, POPULATIONS, binary, calibrated, three

from moecl_jax.decisions import GUARANTEED, PLAIN, Samples, Validation, choose, strip
from moecl_jax.decisions.calibration import fit_plain_scores, fit_temperature
from moecl_jax.decisions.choosing import p_values
from moecl_jax.errors import UserError


def tail(wrong, decided, target):
    """P(Binomial(decided, 1 - target) <= wrong), term by term."""
    return math.fsum(
        math.comb(decided, k) * (1 - target) ** k * target ** (decided - k)
        for k in range(wrong + 1)
    )


def test_p_values_are_binomial_tails():
    decided, wrong = (np.array(column) for column in zip(*CASES, strict=True))
    for target in (0.75, 0.9, 0.99):
        expected = [tail(k, n, target) if n else 1.0 for n, k in CASES]
        np.testing.assert_allclose(p_values(decided, wrong, target), expected, rtol=1e-9)


CASES = [(0, 0), (1, 0), (1, 1), (7, 2), (36, 0), (100, 4), (100, 10), (300, 300), (1000, 71)]


def test_a_p_value_is_rarely_small_where_the_precision_is_below_the_target():
    """Also where the number of decided samples is random: P(p <= d) <= d."""
    generator = np.random.default_rng(0)
    decided = generator.poisson(60, 40_000)
    wrong = generator.binomial(decided, 0.1)
    found = p_values(decided, wrong, 0.9)
    for level in (0.01, 0.05, 0.2):
        assert np.mean(found <= level) < level + 3 * math.sqrt(level / 40_000)


def kept(population, rule, repeats, *, temperature=False):
    """In how many of some validation sets all labels have a precision of 0.9, and the mean rate."""
    draw, truth_of = POPULATIONS[population]
    scores = draw(np.random.default_rng(10_000), 40_000).scores
    truth = truth_of(scores)
    reached, rates = 0, []
    for seed in range(repeats):
        samples = draw(np.random.default_rng(seed), 1500 * truth.shape[1])
        found = choose(samples, 0.9, rule=rule, temperature=temperature, seed=seed)
        decided = found.indices(scores)
        of_each = [truth[decided == label, label] for label in range(truth.shape[1])]
        reached += all(shares.mean() >= 0.899 for shares in of_each if len(shares))
        rates.append(np.mean(decided >= 0))
    return reached, np.mean(rates)


@pytest.mark.parametrize("population", POPULATIONS)
def test_the_guarantee_is_kept_in_95_of_100_validation_sets_and_the_plain_rule_s_is_not(population):
    reached, rate = kept(population, GUARANTEED, 100)
    plain, plain_rate = kept(population, PLAIN, 100)
    assert reached >= 95
    assert plain < 70
    assert plain_rate / 3 < rate < plain_rate  # it is not kept by deciding nothing


def test_the_guarantee_is_kept_with_a_temperature():
    reached, rate = kept("three labels", GUARANTEED, 40, temperature=True)
    assert reached >= 38
    assert rate > 0.2


def test_the_plain_rule_takes_the_lowest_threshold_that_reaches_the_target():
    for seed in range(20):
        samples = calibrated(np.random.default_rng(seed), 150)
        samples = binary(samples.scores[:, 1].round(2), samples.gold)  # with ties
        found = choose(samples, 0.85, rule=PLAIN)
        for label in (0, 1):
            p = samples.scores[:, label]
            right = samples.gold == label
            reached = [t for t in np.unique(p[p > 0.5]) if right[p >= t].mean() >= 0.85]
            assert found.values[label] == (min(reached) if reached else None)


def test_what_the_plain_rule_decides_reaches_the_target_exactly():
    # 9 of the 10 surest are right, and 0.9 is not exact in floating point.
    p = np.linspace(0.99, 0.9, 10)
    samples = binary(np.append(p, [0.6] * 5), [1] * 9 + [0] * 6)
    assert choose(samples, 0.9, rule=PLAIN).values[1] == pytest.approx(0.9)


def test_samples_with_equal_probabilities_stay_together():
    # The tie as a whole is right in 5 of 10 samples: none of it may be decided.
    samples = binary([0.9] * 20 + [0.8] * 10, [1] * 20 + [1, 0] * 5)
    assert choose(samples, 0.9, rule=PLAIN).values[1] == 0.9
    many = binary([0.9] * 400 + [0.8] * 200, [1] * 400 + [1, 0] * 100)
    assert choose(many, 0.9).values[1] == 0.9


def test_equally_likely_labels_are_never_decided():
    samples = binary([0.5] * 50 + [0.9] * 50, [1] * 99 + [0])
    for rule in (GUARANTEED, PLAIN):
        found = choose(samples, 0.6, rule=rule)
        assert found.values[0] is None
        assert "best label of" in found.reasons["ham"]
        assert strip(samples, found).total.decided in (0, 50)
        assert found.decide([[0.5, 0.5]]) == [None]


@pytest.mark.parametrize("rule", [GUARANTEED, PLAIN])
def test_a_target_out_of_reach_is_said(rule):
    generator = np.random.default_rng(0)
    samples = binary(generator.random(500), generator.random(500) < 0.5)
    found = choose(samples, 0.98, rule=rule)
    assert found.values == (None, None)
    for label in LABELS:
        assert "98 %" in found.reasons[label] or "highest precision" in found.reasons[label]
    assert strip(samples, found).total.decided == 0


def test_too_few_samples_for_a_guarantee_say_how_many_are_needed():
    samples = binary([0.01, 0.99] * 20, [0, 1] * 20)
    found = choose(samples, 0.9)
    assert found.values == (None, None)
    # 0.9^36 is the first power of 0.9 below 0.025, the level of each of two labels.
    assert 0.9**36 <= 0.025 < 0.9**35
    assert all("36" in reason for reason in found.reasons.values())
    assert None not in choose(binary([0.01, 0.99] * 100, [0, 1] * 100), 0.9).values


@pytest.mark.parametrize("rule", [GUARANTEED, PLAIN])
def test_one_label_and_fewer_than_ten_samples_give_nothing(rule):
    alike = binary(np.linspace(0.1, 0.9, 100), [1] * 100)
    few = binary([0.1] * 4 + [0.9] * 5, [0] * 4 + [1] * 5)
    for samples, reason in ((alike, "of the label spam"), (few, "there are 9 validation samples")):
        found = choose(samples, 0.9, rule=rule)
        assert found.values == (None, None)
        assert all(reason in text for text in found.reasons.values())
        assert found.decide([[0.0, 1.0]]) == [None]
    plain_scores = Samples(
        [str(n) for n in range(20)], LABELS, np.arange(20.0) - 5, alike.gold[:20]
    )
    assert choose(plain_scores, 0.9, rule=rule).values == (None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 1.0}, "target precision 1.0"),
        ({"target": 0.0}, "target precision 0.0"),
        ({"target": math.nan}, "target precision nan"),
        ({"target": 0.9, "confidence": 1.0}, "confidence 1.0"),
        ({"target": 0.9, "rule": "best"}, "rule 'best'"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        choose(calibrated(np.random.default_rng(0), 20), **options)


def test_validation_samples_need_gold_labels():
    with pytest.raises(UserError, match="no gold labels"):
        choose(binary([0.5], None), 0.9)


def test_the_same_seed_gives_the_same_thresholds():
    samples = calibrated(np.random.default_rng(0), 3000)
    assert choose(samples, 0.9, seed=1) == choose(samples, 0.9, seed=1)
    assert None not in choose(samples, 0.9, seed=1).values


def test_a_higher_target_or_confidence_does_not_decide_more():
    validation = Validation(calibrated(np.random.default_rng(0), 20_000))
    for rule in (GUARANTEED, PLAIN):
        values = [validation.choose(t, rule=rule).values for t in (0.8, 0.85, 0.9, 0.95)]
        assert np.all(np.diff(np.array(values), axis=0) >= 0)
    sure = validation.choose(0.9, confidence=0.999).values
    assert np.all(np.array(sure) >= np.array(validation.choose(0.9).values))


def test_the_temperature_is_found():
    generator = np.random.default_rng(0)
    samples = three(generator, 50_000)
    found = fit_temperature(samples.scores, samples.gold)
    assert found.temperature == pytest.approx(2.0, rel=0.03)
    truth = POPULATIONS["three labels"][1](samples.scores)
    np.testing.assert_allclose(found.probabilities(samples.scores), truth, atol=0.01)


def test_the_curve_of_plain_scores_is_found():
    generator = np.random.default_rng(0)
    scores = generator.normal(300.0, 40.0, 50_000)
    gold = (generator.random(50_000) < expit((scores - 330.0) / 12.0)).astype(np.int64)
    found = fit_plain_scores(scores, gold)
    assert found.shift == pytest.approx(330.0, abs=1.0)
    assert found.temperature == pytest.approx(12.0, rel=0.05)


def test_plain_scores_that_part_the_labels_have_a_finite_curve():
    found = fit_plain_scores(np.arange(20.0), (np.arange(20) >= 12).astype(np.int64))
    assert found.shift == pytest.approx(11.5, abs=0.5)
    assert 0.0 < found.temperature < 5.0


def test_plain_scores_that_tell_nothing_are_refused():
    gold = np.arange(20) % 2
    ids = [str(number) for number in range(20)]
    for scores in (np.full(20, 3.0), -5.0 * gold):
        with pytest.raises(UserError, match="--positive"):
            choose(Samples(ids, LABELS, scores, gold), 0.9)


def test_a_few_plain_scores_that_fall_by_chance_are_parted_at_their_mean():
    found = fit_plain_scores(np.array([1.0, 3.0]), np.array([1, 0]))
    assert (found.shift, found.temperature) == (2.0, 1.0)
    assert fit_plain_scores(np.full(3, 7.0), np.array([1, 0, 0])).shift == 7.0
    # Whichever samples are learned on, small sets give thresholds or reasons, and no error.
    scores = np.append(np.arange(10.0), np.arange(6.0, 16.0))
    samples = Samples([str(n) for n in range(20)], LABELS, scores, np.arange(20) // 10)
    plain = [choose(samples, 0.8, rule=PLAIN, seed=seed).values for seed in range(30)]
    assert any(None not in values for values in plain)


@pytest.mark.slow
def test_a_million_scores_take_less_than_two_seconds_of_the_processor():
    samples = calibrated(np.random.default_rng(0), 1_000_000)
    began = time.process_time()
    validation = Validation(samples, temperature=True)
    for rule in (GUARANTEED, PLAIN):
        found = strip(samples, validation.choose(0.9, rule=rule))
    assert time.process_time() - began < 2.0
    assert found.total.decided > 100_000
