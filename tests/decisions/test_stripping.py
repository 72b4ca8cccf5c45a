"""Shares and precisions of test samples, against counts by hand and scipy's bootstrap."""

import math

import numpy as np
import pytest
import scipy.stats
from scored import binary, calibrated, thresholds

from moecl_jax.decisions import strip
from moecl_jax.errors import UserError


def test_counts_by_hand():
    #           ham, right   ham, wrong   none   tie    spam, right   spam, wrong
    p = np.array([0.05] * 3 + [0.1] * 1 + [0.3] + [0.5] + [0.7] * 2 + [0.99] * 2)
    gold = np.array([0, 0, 0, 1, 0, 1, 1, 1, 0, 0])
    found = strip(binary(p, gold), thresholds((0.9, 0.6)))
    assert found.samples == 10
    ham, spam, total = found.labels["ham"], found.labels["spam"], found.total
    assert (ham.decided, ham.wrong, ham.rate.value, ham.precision.value) == (4, 1, 0.4, 0.75)
    assert (spam.decided, spam.wrong, spam.rate.value, spam.precision.value) == (4, 2, 0.4, 0.5)
    assert (total.decided, total.wrong, total.rate.value, total.precision.value) == (
        8,
        3,
        0.8,
        0.625,
    )


def test_intervals_are_those_of_scipys_bootstrap_over_samples():
    samples = calibrated(np.random.default_rng(0), 500, spread=1.5)
    found = strip(samples, thresholds((0.8, 0.85)))
    decided = samples.scores[:, 1] >= 0.85
    right = decided & (samples.gold == 1)

    def reference(statistic, *values):
        return scipy.stats.bootstrap(
            values,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=4000,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval

    rate = reference(lambda d, axis: d.mean(axis), decided.astype(float))
    precision = reference(
        lambda r, d, axis: r.sum(axis) / d.sum(axis), right.astype(float), decided.astype(float)
    )
    row = found.labels["spam"]
    for estimate, expected in ((row.rate, rate), (row.precision, precision)):
        width = expected.high - expected.low
        assert estimate.low == pytest.approx(expected.low, abs=0.08 * width)
        assert estimate.high == pytest.approx(expected.high, abs=0.08 * width)
        assert estimate.low < estimate.value < estimate.high


def test_without_gold_labels_rates_are_known_and_precisions_not():
    found = strip(binary([0.05, 0.7, 0.8], None), thresholds())
    assert (found.total.decided, found.total.wrong) == (3, None)
    assert found.total.rate.value == 1.0
    assert math.isnan(found.total.precision.value)


def test_where_nothing_is_decided_there_is_no_precision():
    found = strip(binary([0.4, 0.7], [0, 1]), thresholds((None, None)))
    assert (found.total.decided, found.total.rate.value, found.total.rate.high) == (0, 0.0, 0.0)
    assert math.isnan(found.total.precision.value)
    assert math.isnan(found.total.precision.low)


def test_samples_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="no test samples"):
        strip(binary([], []), thresholds())
    with pytest.raises(UserError, match="labels"):
        strip(binary([0.5], [0], ("a", "b")), thresholds())
