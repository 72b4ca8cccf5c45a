"""InfLoRA: subspaces by hand and against singular vectors, what is trained, what stays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import compiled_step, context_with, loss_of, method_with, random_trees, trees
from streams import assert_bit_equal
from tiny import CONFIG, LORA, OPTIMIZER, TASKS, batch_of, frozen_params, random_examples

from moecl_jax.methods import TaskEnd, TaskStart
from moecl_jax.methods.inf_lora import InfLora
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.methods.subspace import leading, without
from moecl_jax.models.lora import projection_sizes
from moecl_jax.training.steps import init_train_state

WIDTHS = {name: width for name, (width, _) in projection_sizes(CONFIG).items()}


def moments_of(seed, rank=None):
    """Random second moments of what goes into the FFN's projections, of this rank at most."""
    generator, found = np.random.default_rng(seed), {}
    for name in ("gate_proj", "down_proj"):
        width = WIDTHS[name]
        rows = generator.standard_normal((CONFIG.layers, rank or 2 * width, width))
        found[name] = np.einsum("lni,lnj->lij", rows, rows).astype(np.float32)
    return {**found, "up_proj": found["gate_proj"]}


def start_of(index, moments):
    return TaskStart(index, jax.random.key(index), CONFIG, lambda: moments)


def end_of(index, moments):
    return TaskEnd(index, jax.random.key(index), CONFIG, inputs=lambda: moments)


# Subspaces


@pytest.mark.parametrize(
    ("share", "left"),
    [
        (0.0, [1, 1, 1]),
        (0.5, [0, 1, 1]),  # of 9 + 4 + 1 = 14 the first holds 9
        (0.7, [0, 0, 1]),
        (0.95, [0, 0, 0]),
        (1.0, [0, 0, 0]),
    ],
)
def test_directions_that_hold_the_share_by_hand(share, left):
    moment = np.diag([9.0, 4.0, 1.0]).astype(np.float32)
    found = without(np.eye(3, dtype=np.float32), moment, share)
    np.testing.assert_allclose(found, np.diag(left), atol=1e-6)


@pytest.mark.parametrize(
    ("share", "left"),
    [
        (0.5, [0, 1, 1]),  # the first, which was taken before, holds 6 of 10 already
        (0.6, [0, 1, 1]),
        (0.7, [0, 1, 0]),
        (0.95, [0, 0, 0]),
    ],
)
def test_what_earlier_tasks_took_counts(share, left):
    free, moment = np.diag([0.0, 1.0, 1.0]), np.diag([6.0, 1.0, 3.0])
    found = without(free.astype(np.float32), moment.astype(np.float32), share)
    np.testing.assert_allclose(found, np.diag(left), atol=1e-6)


def test_leading_directions_by_hand():
    free, moment = np.diag([0.0, 1.0, 1.0]), np.diag([9.0, 1.0, 3.0])
    found = leading(free.astype(np.float32), moment.astype(np.float32), 3)
    # The first is taken; so the third comes first, and there is no third direction.
    np.testing.assert_allclose(np.abs(found), [[0, 0, 0], [0, 1, 0], [1, 0, 0]], atol=1e-6)


def test_directions_are_the_singular_vectors_of_the_projected_inputs():
    generator = np.random.default_rng(0)
    inputs, earlier = generator.standard_normal((9, 30)), generator.standard_normal((9, 2))
    basis = np.linalg.qr(earlier)[0]
    free = np.eye(9) - basis @ basis.T
    vectors, values, _ = np.linalg.svd(free @ inputs, full_matrices=False)
    found = leading(free, inputs @ inputs.T, 4).astype(np.float64)
    np.testing.assert_allclose(found @ found.T, vectors[:, :4] @ vectors[:, :4].T, atol=1e-6)
    np.testing.assert_allclose(found.T @ basis, 0.0, atol=1e-6)

    total, held = (inputs**2).sum(), ((basis @ basis.T @ inputs) ** 2).sum()
    for share in (0.3, 0.5, 0.8, 0.99):
        kept = without(free, inputs @ inputs.T, share)
        more = np.trace(free) - np.trace(kept)
        count = round(more)
        assert more == pytest.approx(count, abs=1e-5)
        reached = [held + (values[:some] ** 2).sum() for some in range(8)]
        assert count == next(some for some in range(8) if reached[some] >= share * total)
        np.testing.assert_allclose(kept @ kept, kept, atol=1e-5)
        np.testing.assert_allclose(kept @ vectors[:, :count], 0.0, atol=1e-5)
        np.testing.assert_allclose(kept @ basis, 0.0, atol=1e-5)


# The method


def test_a_comes_from_the_task_s_inputs_and_only_b_is_trained():
    method, moments = method_with(InfLora), moments_of(0)
    parameters = trees(
        method.init_shared(jax.random.key(0), CONFIG, TASKS), method.init_memory(CONFIG, TASKS)
    )
    context = context_with(method)
    state = init_train_state(method, OPTIMIZER, parameters, jax.random.key(0), start_of(0, moments))
    assert {name: b.shape[1] for name, b in state.active.shared["b"].items()} == dict.fromkeys(
        LORA.targets, LORA.rank
    )
    assert list(state.active.shared) == ["b"]
    for name, a in state.memory["reduction"].items():
        for layer in range(CONFIG.layers):
            vectors = np.linalg.svd(moments[name][layer])[0][:, : LORA.rank]
            expected = vectors @ vectors.T / 3.0
            np.testing.assert_allclose(a[layer] @ a[layer].T, expected, atol=1e-5)
    batch = batch_of(random_examples([3, 9, 1, 6]), "lm", training=True)
    memory, losses = jax.tree.map(np.array, state.memory), []
    for _ in range(20):
        state, metrics = compiled_step(
            state, frozen_params(), batch, jnp.float32(1e-1), context=context, optimizer=OPTIMIZER
        )
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]
    assert_bit_equal(state.memory, memory)


def test_the_first_task_trains_b_of_a_lora_whose_a_is_fixed():
    method, plain = method_with(InfLora), SequentialLora(LORA)
    parameters = random_trees(context_with(method))
    empty = method.init_memory(CONFIG, TASKS)
    parameters = parameters.replace(memory={**empty, "reduction": parameters.memory["reduction"]})
    expert = {
        name: {"a": parameters.memory["reduction"][name], "b": b}
        for name, b in parameters.shared["b"].items()
    }
    batch = batch_of(random_examples([3, 9, 1, 6]), "lm", training=True)
    (ours, _), slopes = jax.value_and_grad(
        loss_of(context_with(method), parameters, batch), has_aux=True
    )(parameters.replace(memory={}))
    (theirs, _), others = jax.value_and_grad(
        loss_of(context_with(plain), trees({"expert": expert}), batch), has_aux=True
    )(trees({"expert": expert}))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
    for name, slope in slopes.shared["b"].items():
        np.testing.assert_allclose(slope, others.shared["expert"][name]["b"], rtol=1e-4, atol=1e-6)
        assert np.abs(slope).max() > 1e-4


def test_finishing_a_task_changes_no_answer_and_keeps_later_ones_out_of_its_inputs():
    method = method_with(InfLora, threshold=0.9)
    shared = method.init_shared(jax.random.key(0), CONFIG, TASKS)
    memory = method.init_memory(CONFIG, TASKS)
    for index in range(2):
        moments = moments_of(index, rank=3)
        begun = method.begin_task(trees(shared, memory), start_of(index, moments))
        trained = jax.tree.map(lambda leaf, i=index: leaf + 0.1 * (i + 1), shared)
        before = method.adapter(trees(trained, begun))["expert"]
        finished = method.finish_task(trees(trained, begun), end_of(index, moments))
        after = method.adapter(finished)["expert"]
        for name in before:
            products = [
                np.einsum("lir,lro->lio", *(np.float64(each[name][key]) for key in "ab"))
                for each in (before, after)
            ]
            np.testing.assert_allclose(*products, rtol=1e-6, atol=1e-9)
            assert np.abs(products[0]).max() > 0.01
        assert jax.tree.map(jnp.shape, finished.memory) == jax.tree.map(jnp.shape, memory)
        shared, memory = finished.shared, finished.memory
    # The second task's A in the memory has nothing of what the first one's inputs mostly are.
    for name, factors in memory["expert"].items():
        own = np.asarray(factors["a"])[:, :, LORA.rank : 2 * LORA.rank]
        reached = np.einsum("lia,lij,ljb->lab", own, moments_of(0, rank=3)[name], own)
        others = np.einsum("lia,lij,ljb->lab", own, moments_of(1, rank=3)[name], own)
        total = np.trace(moments_of(0, rank=3)[name], axis1=1, axis2=2)
        assert np.all(np.trace(reached, axis1=1, axis2=2) <= 0.1 * total / 3.0)
        assert np.all(np.trace(others, axis1=1, axis2=2) > 0.1)


def test_the_share_grows_over_the_stream():
    method = method_with(InfLora, threshold=0.4)
    memory = method.init_memory(CONFIG, TASKS)
    shared = method.init_shared(jax.random.key(0), CONFIG, TASKS)
    moments, taken = moments_of(0), []
    for index in range(TASKS):  # 0.4, 0.6 and 0.8 of the same energy
        memory = method.finish_task(trees(shared, memory), end_of(index, moments)).memory
        taken.append(np.asarray(memory["free"]["input_moment"]))
    values = np.linalg.eigvalsh(moments["up_proj"].astype(np.float64))[:, ::-1]
    for free, share in zip(taken, (0.4, 0.6, 0.8), strict=True):
        for layer, of_layer in enumerate(values):
            needed = np.searchsorted(np.cumsum(of_layer), share * of_layer.sum()) + 1
            assert np.trace(free[layer]) == pytest.approx(CONFIG.width - needed, abs=1e-4)


def test_only_what_is_adapted_is_kept():
    method = InfLora(dataclasses.replace(LORA, targets=("up_proj",)))
    memory = method.init_memory(CONFIG, TASKS)
    assert list(memory["free"]) == ["input_moment"]
    assert list(memory["reduction"]) == ["up_proj"]
