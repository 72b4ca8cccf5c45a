"""SLAO: the basis a task begins at, the merge, and what it reduces to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import compiled_step, context_with, method_with, random_trees, trees, wide
from streams import assert_bit_equal
from tiny import CONFIG, LORA, OPTIMIZER, TASKS, batch_of, frozen_params, random_examples

from moecl_jax.methods import TaskEnd, TaskStart
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.methods.slao import Slao, orthonormal
from moecl_jax.training.steps import init_train_state

START = TaskStart(0, jax.random.key(0), CONFIG)


def end_of(index):
    return TaskEnd(index, jax.random.key(index), CONFIG)


def test_orthonormal_basis_by_hand():
    # (3, 4) has length 5; of (1, 7) the part beside it is (1, 7) - 31/25 (3, 4) = (-68, 51) / 25.
    a = jnp.array([[[3.0, 1.0], [4.0, 7.0]], [[-2.0, 0.0], [0.0, -0.5]]])
    expected = [[[0.6, -0.8], [0.8, 0.6]], [[-1.0, 0.0], [0.0, -1.0]]]
    np.testing.assert_allclose(orthonormal(a), expected, atol=1e-6)


def test_orthonormal_basis_is_that_of_gram_and_schmidt():
    a = np.random.default_rng(0).standard_normal((3, 9, 4))
    found = orthonormal(a.astype(np.float32))
    for layer, basis in zip(a, np.asarray(found), strict=True):
        vectors = []
        for column in layer.T:
            rest = column - sum((column @ other) * other for other in vectors)
            vectors.append(rest / np.linalg.norm(rest))
        np.testing.assert_allclose(basis, np.stack(vectors, axis=1), atol=1e-5)


def test_merge_by_hand():
    method = method_with(Slao)
    memory = {"merged": {"up_proj": factors([0.0, 0.0], 0.0)}, "training": jnp.ones(())}
    merged = []
    for index, b in enumerate(([4.0, 8.0], [2.0, 0.0], [0.0, 3.0])):
        shared = {"expert": {"up_proj": factors(b, float(index))}}
        finished = method.finish_task(trees(shared, memory), end_of(index))
        memory = finished.memory
        merged.append(np.asarray(memory["merged"]["up_proj"]["b"][0, 0]))
        np.testing.assert_array_equal(
            memory["merged"]["up_proj"]["a"], shared["expert"]["up_proj"]["a"]
        )
        assert float(memory["training"]) == 0.0
        following = finished.shared["expert"]["up_proj"]
        np.testing.assert_array_equal(following["b"], shared["expert"]["up_proj"]["b"])
        np.testing.assert_allclose(following["a"][0].T @ following["a"][0], [[1.0]], atol=1e-6)
    half, third = 2**-0.5, 3**-0.5
    second = [4.0 + half * (2.0 - 4.0), 8.0 + half * (0.0 - 8.0)]
    np.testing.assert_array_equal(merged[0], [4.0, 8.0])  # lambda(1) = 1
    np.testing.assert_allclose(merged[1], second, rtol=1e-6)
    expected = [second[0] * (1 - third), second[1] + third * (3.0 - second[1])]
    np.testing.assert_allclose(merged[2], expected, rtol=1e-6)


def factors(b, shift):
    return {"a": jnp.array([[[1.0 + shift], [2.0]]]), "b": jnp.array([[b]])}


def test_the_merged_lora_answers_but_for_a_task_in_training():
    method = method_with(Slao)
    parameters = random_trees(context_with(method), training=jnp.zeros(()))
    assert_bit_equal(method.adapter(parameters)["expert"], parameters.memory["merged"])
    begun = parameters.replace(memory=method.begin_task(parameters, START))
    assert_bit_equal(method.adapter(begun)["expert"], parameters.shared["expert"])
    assert float(begun.memory["training"]) == 1.0


@pytest.mark.parametrize("index", [0, 1])
def test_training_is_that_of_sequential_lora_from_the_same_start(index):
    """The first task's from LoRA's own start, later ones' from an orthonormal A."""
    slao, plain = (
        context_with(method_with(Slao)),
        context_with(SequentialLora(LORA)),
    )
    shared = random_trees(slao).shared
    memory = slao.method.init_memory(CONFIG, TASKS)
    if index:
        finished = slao.method.finish_task(trees(shared, memory), end_of(0))
        shared, memory = finished.shared, finished.memory
        for leaves in shared["expert"].values():
            products = np.einsum("lia,lib->lab", leaves["a"], leaves["a"])
            expected = np.broadcast_to(np.eye(LORA.rank), products.shape)
            np.testing.assert_allclose(products, expected, atol=1e-5)
    batch = batch_of(random_examples([3, 9, 1, 6]), "lm", training=True)
    states = [
        init_train_state(slao.method, OPTIMIZER, trees(shared, memory), jax.random.key(0), START),
        init_train_state(plain.method, OPTIMIZER, trees(shared), jax.random.key(0)),
    ]
    for _ in range(3):
        found = []
        for place, context in enumerate((slao, plain)):
            states[place], metrics = compiled_step(
                states[place],
                frozen_params(),
                batch,
                jnp.float32(1e-2),
                context=context,
                optimizer=OPTIMIZER,
            )
            found.append(float(metrics["loss"]))
        assert found[0] == pytest.approx(found[1], rel=1e-6)
    ours, theirs = (state.active.shared for state in states)
    for left, right, begun in zip(*map(jax.tree.leaves, (ours, theirs, shared)), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6, rtol=0)
        assert np.abs(left - begun).max() > 0


def test_of_one_task_the_merge_is_the_lora_that_was_trained():
    method = method_with(Slao)
    parameters = random_trees(context_with(method))
    memory = method.init_memory(CONFIG, TASKS)
    finished = method.finish_task(parameters.replace(memory=memory), end_of(0))
    assert_bit_equal(wide(method.adapter(finished)["expert"]), wide(parameters.shared["expert"]))
