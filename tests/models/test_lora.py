"""New experts: their targets, their first values, and what these depend on."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from randomness import assert_uncorrelated
from tiny import CONFIG

from moecl_jax.models.lora import FFN_TARGETS, init_expert

RANK = 3
SUBSETS = [FFN_TARGETS, ("gate_proj", "down_proj"), ("up_proj",)]


@pytest.mark.parametrize("targets", SUBSETS, ids="-".join)
def test_new_expert_has_the_targets_asked_for(targets):
    expert = init_expert(jax.random.key(0), CONFIG, RANK, targets)
    width, ffn_width = CONFIG.width, CONFIG.ffn_width
    inputs = {"gate_proj": width, "up_proj": width, "down_proj": ffn_width}
    outputs = {"gate_proj": ffn_width, "up_proj": ffn_width, "down_proj": width}
    shapes = jax.tree.map(jnp.shape, expert, is_leaf=lambda node: hasattr(node, "shape"))
    assert shapes == {
        name: {"a": (2, inputs[name], RANK), "b": (2, RANK, outputs[name])} for name in targets
    }
    assert not any(factors["b"].any() for factors in expert.values())


def test_new_expert_has_a_uniform_a():
    expert = init_expert(jax.random.key(0), CONFIG, 512, FFN_TARGETS)
    for name, inputs in (("gate_proj", 16), ("up_proj", 16), ("down_proj", 24)):
        a = np.asarray(expert[name]["a"], np.float64) * inputs**0.5
        sigma = a.size**-0.5
        assert 0.999 < np.abs(a).max() <= 1
        assert abs(a.mean()) < 5 * sigma * (1 / 3) ** 0.5
        # Of u uniform on +-1: var(u^2) = 4/45, var(u^4) = 1/9 - 1/25 = 16/225.
        assert abs((a**2).mean() - 1 / 3) < 5 * sigma * (4 / 45) ** 0.5
        assert abs((a**4).mean() - 1 / 5) < 5 * sigma * (16 / 225) ** 0.5
        assert_uncorrelated(a[0].ravel(), a[1].ravel())
    assert_uncorrelated(expert["gate_proj"]["a"].ravel(), expert["up_proj"]["a"].ravel())


def test_new_expert_is_a_function_of_its_key_and_not_of_the_other_targets():
    key = jax.random.key(0)
    full = init_expert(key, CONFIG, RANK, FFN_TARGETS)
    chex.assert_trees_all_equal(init_expert(key, CONFIG, RANK, FFN_TARGETS), full)
    alone = init_expert(key, CONFIG, RANK, ("up_proj",))
    chex.assert_trees_all_equal(alone["up_proj"], full["up_proj"])
    other = init_expert(jax.random.key(1), CONFIG, RANK, FFN_TARGETS)
    assert (other["up_proj"]["a"] != full["up_proj"]["a"]).all()
