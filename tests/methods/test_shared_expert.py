"""What becomes of MoE-CL's shared expert: the numbers of each way, and what it is equal to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import trees
from streams import assert_bit_equal
from tiny import CONFIG, LORA

from moecl_jax.methods.base import TaskEnd
from moecl_jax.methods.moe_cl import MoeCl, Options
from moecl_jax.methods.shared_expert import WAYS, packed, unpacked


def expert_of(seed, inputs=(6, 4), rank=2, layers=2):
    """Random factors of an up and a down projection."""
    generator = np.random.default_rng(seed)
    wide, narrow = inputs

    def factors(width, out):
        return {
            "a": generator.standard_normal((layers, width, rank)).astype(np.float32),
            "b": generator.standard_normal((layers, rank, out)).astype(np.float32),
        }

    return {"up_proj": factors(wide, narrow), "down_proj": factors(narrow, wide)}


def end_of(index, moments=None):
    return dataclasses.replace(TaskEnd(index, jax.random.key(0), CONFIG), inputs=lambda: moments)


def test_int8_keeps_each_column_of_a_and_row_of_b_in_its_own_unit():
    a = np.array([[[1.27, 0.0], [-0.5, 0.0], [0.004, 0.0]]], np.float32)
    b = np.array([[[2.54, -0.03], [0.0127, 0.0127]]], np.float32)
    kept = packed({"up_proj": {"a": a, "b": b}})["up_proj"]
    assert kept["a"]["whole"].dtype == np.int8
    np.testing.assert_array_equal(kept["a"]["whole"], [[[127, 0], [-50, 0], [0, 0]]])
    np.testing.assert_array_equal(kept["b"]["whole"], [[[127, -2], [127, 127]]])
    np.testing.assert_allclose(kept["a"]["unit"], [[[0.01, 0.0]]], rtol=1e-6)
    found = unpacked({"up_proj": kept})["up_proj"]
    np.testing.assert_allclose(found["b"], [[[2.54, -0.04], [0.0127, 0.0127]]], rtol=1e-6)


def test_int8_is_within_half_a_unit_of_what_was_kept():
    expert = expert_of(0)
    kept = packed(expert)
    for target, factors in unpacked(kept).items():
        for name, values in factors.items():
            assert np.all(
                np.abs(values - expert[target][name]) <= 0.501 * kept[target][name]["unit"]
            )
    assert_bit_equal(unpacked(expert), expert)


def test_a_frozen_expert_acts_whatever_is_trained_after_the_kth_task():
    way = WAYS["frozen"](Options(shared="frozen", frozen_after=2))
    first, second, third = (expert_of(seed) for seed in range(3))
    memory = way.init_memory(first)
    assert_bit_equal(way.acting(first, memory), first)
    assert_bit_equal(way.kept(first, 0), first)
    carried, memory = way.carried_on(first, memory, end_of(0))
    assert_bit_equal(way.acting(second, memory), second)
    assert way.kept(second, 1) is None
    carried, memory = way.carried_on(second, memory, end_of(1))
    assert_bit_equal((carried, way.acting(third, memory)), (second, second))
    assert way.kept(way.acting(third, memory), 2) is None


def test_merged_numbers_worked_out_by_hand():
    way = WAYS["merged"](Options(shared="merged"))

    def expert(a, b):
        return {"up_proj": {"a": np.array([a], np.float32), "b": np.array([b], np.float32)}}

    # Columns of length 5; B moves from 0 by all of it, then by 1/sqrt 2 of the way from 2 to 4.
    first = expert([[3.0], [4.0]], [[2.0]])
    memory = way.begin(way.init_memory(first))
    assert_bit_equal(way.acting(first, memory), first)
    begun, memory = way.carried_on(first, memory, end_of(0))
    np.testing.assert_allclose(np.abs(begun["up_proj"]["a"]), [[[0.6], [0.8]]], rtol=1e-6)
    np.testing.assert_array_equal(begun["up_proj"]["b"], [[[2.0]]])
    assert_bit_equal(way.acting(begun, memory), first)  # with one task they are one
    second = expert([[0.0], [1.0]], [[4.0]])
    assert_bit_equal(way.acting(second, way.begin(memory)), second)
    _, memory = way.carried_on(second, way.begin(memory), end_of(1))
    merged = way.acting(begun, memory)["up_proj"]
    np.testing.assert_array_equal(merged["a"], second["up_proj"]["a"])
    np.testing.assert_allclose(merged["b"], [[[2 + 2 / np.sqrt(2)]]], rtol=1e-6)


def projected(directions, tasks=2):
    """The way after tasks whose inputs lie in a plane, its memory, the expert and the inputs."""
    way = WAYS["projected"](Options(shared="projected", directions=directions))
    expert, generator = expert_of(5), np.random.default_rng(7)
    memory, seen = way.init_memory(expert), {}
    for index in range(tasks):
        moments = {}
        for target, factors in expert.items():
            layers, inputs, _ = factors["a"].shape
            x = generator.standard_normal((layers, 9, 1)) * generator.standard_normal(
                (layers, 1, inputs)
            )
            moments[target] = np.einsum("lni,lnj->lij", x, x).astype(np.float32) / 9
            seen[target] = np.concatenate([seen.get(target, x), x], axis=1)
        expert, memory = way.carried_on(expert, memory, end_of(index, moments))
    return way, memory, expert, seen


def test_a_projected_expert_is_unchanged_for_inputs_of_earlier_tasks_and_moves_elsewhere():
    way, memory, expert, seen = projected(directions=2)
    acting = way.acting(expert_of(11), memory)
    for target, factors in acting.items():
        before = np.asarray(expert[target]["a"])
        np.testing.assert_allclose(
            seen[target] @ np.asarray(factors["a"]), seen[target] @ before, atol=2e-4
        )
        assert np.abs(factors["a"] - before).max() > 0.1
        np.testing.assert_array_equal(factors["b"], expert[target]["b"])
    # Of the gradient nothing lies along the directions, and nothing reaches B.
    gradient = jax.grad(
        lambda e: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(way.acting(e, memory)))
    )(jax.tree.map(jnp.asarray, expert_of(11)))
    for target, factors in gradient.items():
        assert np.abs(seen[target] @ np.asarray(factors["a"])).max() < 2e-4
        assert np.abs(factors["a"]).max() > 0.1
        np.testing.assert_array_equal(factors["b"], 0.0)


def test_directions_are_the_leading_eigenvectors_of_the_sum_over_tasks():
    _, memory, _, seen = projected(directions=2)
    found = memory["directions"]["hidden"]
    x = seen["up_proj"][:, 9:]  # the first task's stand there twice
    for layer in range(2):
        total = x[layer].T @ x[layer] / 9
        values, vectors = np.linalg.eigh(total)
        np.testing.assert_allclose(found["values"][layer], values[-2:], rtol=1e-3)
        along = np.abs(np.sum(np.asarray(found["vectors"][layer]) * vectors[:, -2:], axis=0))
        np.testing.assert_allclose(along, 1.0, atol=1e-3)


def test_with_no_directions_a_moves_freely_and_with_all_it_cannot():
    new = expert_of(11)
    way, memory, expert, _ = projected(directions=0)
    free = way.acting(new, memory)
    np.testing.assert_allclose(free["up_proj"]["a"], new["up_proj"]["a"], rtol=1e-5, atol=1e-6)
    way, memory, expert, _ = projected(directions=100)
    held = way.acting(new, memory)
    np.testing.assert_allclose(held["up_proj"]["a"], expert["up_proj"]["a"], atol=1e-5)


def test_only_the_ways_that_say_so_ask_for_moments_or_are_settled():
    settled = {way for way in WAYS if MoeCl(LORA, shared=way).traits.settled}
    asking = {way for way in WAYS if MoeCl(LORA, shared=way).traits.reads_moments}
    assert (settled, asking) == ({"snapshot", "frozen"}, {"projected"})


@pytest.mark.parametrize("way", WAYS)
def test_tasks_without_a_copy_share_one_object(way):
    method = MoeCl(LORA, shared=way)
    key = jax.random.key(1)
    memory = method.init_memory(CONFIG, 3)
    parameters = trees(method.init_shared(key, CONFIG, 3), memory)
    experts = [method.init_expert(key, CONFIG) for _ in range(2)]
    one, other = method.adapters(parameters, experts)
    assert one["shared"] is other["shared"]
    assert one["gate"] is other["gate"]
