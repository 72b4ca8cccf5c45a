"""Dropout's masks: as many zeros as asked for, and each seed, row and place on its own."""

import jax.numpy as jnp
import numpy as np
import pytest
from randomness import assert_uncorrelated

from moecl_jax.kernels import dropout
from moecl_jax.models.lora import site_seed

ELEMENTS = 2**20


def survivors(rate, seed):
    """Which of 2^20 elements survive."""
    ones = jnp.ones((2**10, 2**10))
    return np.asarray(dropout(ones, rate, jnp.uint32(seed))).ravel() != 0


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_dropout_keeps_the_right_fraction(rate, seed):
    sigma = (rate * (1 - rate) / ELEMENTS) ** 0.5
    assert abs(survivors(rate, seed).mean() - (1 - rate)) < 4 * sigma


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("other", [1, 2, 123456789])
def test_masks_of_two_seeds_are_uncorrelated(rate, other):
    assert_uncorrelated(survivors(rate, 0), survivors(rate, other))


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("distance", [1, 2, 2**10], ids=["next", "after_next", "next_row"])
def test_neighbouring_elements_are_dropped_independently(rate, distance):
    mask = survivors(rate, 7)
    assert_uncorrelated(mask[:-distance], mask[distance:])


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_no_two_rows_or_columns_are_dropped_alike(rate, axis):
    # A row's and a column's hash are added, so that pairs of either are what could be alike.
    mask = survivors(rate, 7).reshape(2**10, 2**10)
    coefficients = np.corrcoef(mask, rowvar=axis == 0)[np.triu_indices(2**10, 1)] * 2**5
    assert abs(coefficients.mean()) < 0.01
    assert abs(coefficients.std() - 1) < 0.01
    assert np.abs(coefficients).max() < 12  # of 523,776


@pytest.mark.parametrize(
    ("one", "other"),
    [((0, 0), (1, 0)), ((0, 1), (1, 1)), ((0, 0), (0, 1)), ((0, 1), (1, 0))],
    ids=["experts_input", "experts_activation", "sites", "expert_and_site"],
)
def test_each_expert_and_site_has_a_mask_of_its_own(one, other):
    seed = jnp.uint32(11)
    assert_uncorrelated(
        survivors(0.3, site_seed(seed, *one)), survivors(0.3, site_seed(seed, *other))
    )


def test_layers_with_consecutive_seeds_share_no_mask():
    first, second = (survivors(0.3, site_seed(jnp.uint32(seed), 0, 0)) for seed in (11, 12))
    assert_uncorrelated(first, second)


def test_dropout_scales_what_it_keeps():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 16)), jnp.float32)
    dropped = np.asarray(dropout(x, 0.2, jnp.uint32(3)))
    left = dropped != 0
    assert 0 < left.sum() < x.size
    np.testing.assert_allclose(dropped[left], np.asarray(x)[left] / 0.8, rtol=1e-6)


def test_dropout_is_the_identity_in_evaluation_and_at_rate_zero():
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, jnp.uint32(3)), x)
    assert site_seed(None, 0, 0) is None


def test_dropout_is_a_function_of_its_seed():
    np.testing.assert_array_equal(survivors(0.5, 3), survivors(0.5, 3))
    assert (survivors(0.5, 3) != survivors(0.5, 4)).any()
