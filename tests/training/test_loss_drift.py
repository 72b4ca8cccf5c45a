"""Drift on the loss: where it is found, what is none, and a detector that goes on."""

import math

import numpy as np
import pytest

from moecl_jax.training.drift import Drift, bounded

pytest.importorskip("river")


def losses_of(means, seed=0):
    generator = np.random.default_rng(seed)
    noise = generator.normal(np.repeat(means, 300), 0.1).clip(0, 1)
    return [float(x) for x in noise.astype(np.float32)]


def found(drift, losses):
    return [place for place, loss in enumerate(losses) if drift.rises(loss)]


def test_a_loss_counts_against_guessing():
    assert bounded(math.log(2), 4) == 0.5
    assert bounded(math.log(4), 4) == 1.0
    assert bounded(0.0, 4) == 0.0
    assert bounded(100.0, 4) == 1.0
    assert bounded(math.log(2), 1) == 1.0


def test_a_rise_is_found_once_and_soon():
    [place] = found(Drift(0.002), losses_of([0.2, 0.6]))
    assert 300 <= place < 364


def test_a_fall_and_noise_are_no_drift():
    assert found(Drift(0.002), losses_of([0.6, 0.2])) == []
    assert found(Drift(0.002), losses_of([0.4, 0.4, 0.4])) == []


@pytest.mark.parametrize("cut", [1, 250, 310, 500])
def test_a_detector_goes_on_where_another_one_was(cut):
    losses = losses_of([0.2, 0.6, 0.3, 0.7])
    whole, first = Drift(0.002), Drift(0.002)
    expected = found(whole, losses)
    before = found(first, losses[:cut])
    second = Drift(0.002, first.losses)
    assert before + [cut + place for place in found(second, losses[cut:])] == expected
    assert len(expected) == 2
    assert second.losses == whole.losses == losses
