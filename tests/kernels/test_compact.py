"""Batches whose empty slots are left out: the same results of fewer slots."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    ANSWERS,
    OPTIMIZER,
    context_of,
    frozen_params,
    random_examples,
    random_parameters,
)

from moecl_jax.data.batching import (
    BatchLayout,
    computed_count,
    computed_slots,
    make_batch,
    make_mixed_batch,
)
from moecl_jax.methods.mixed import together
from moecl_jax.models.attention import attention_context
from moecl_jax.models.config import DecoderConfig
from moecl_jax.serving.scoring import evaluation_step
from moecl_jax.serving.task_choice import feature_step
from moecl_jax.training.steps import init_train_state, train_step

EXAMPLES = random_examples([40, 3, 41, 2, 39])
GRID = BatchLayout(6, True, 64, len(ANSWERS), max(map(len, ANSWERS)))


def batches(head, training):
    """The same batch with all slots and with those alone that hold a token, or few more."""
    answers = ANSWERS if head == "lm" else ()
    make = functools.partial(make_batch, task_index=1, class_count=3, training=training)
    compact = dataclasses.replace(GRID, compact=True)
    found = [make(EXAMPLES, answers, layout) for layout in (GRID, compact)]
    assert found[1].shape[2] < found[0].shape[2]
    return found


@pytest.mark.parametrize(
    ("filled", "slots", "computed"),
    [
        ([0, 1, 2, 64, 65], 128, [0, 1, 2, 64, 65, *range(3, 30)]),
        (range(64, 97), 128, [*range(64, 97), *range(31)]),
        (range(32), 128, range(32)),
        (range(31), 31, range(31)),
    ],
)
def test_few_more_slots_are_computed_than_hold_a_token(filled, slots, computed):
    count = computed_count(len(filled), slots)
    assert computed_slots(np.array(filled), slots, count).tolist() == list(computed)


def test_few_numbers_of_slots_are_compiled():
    counts = {computed_count(n, 2048) for n in range(512, 1025)}
    assert counts == set(range(512, 1025, 64))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("head", ["lm", "classification"])
def test_computed_slots_hold_every_token_and_positions_point_among_them(head, training):
    grid, compact = batches(head, training)
    for name in ("tokens", "segments", "branches", "positions"):
        chex.assert_trees_all_equal(getattr(grid, name), getattr(compact, name))
    assert np.count_nonzero(compact.flat(compact.segments)) == np.count_nonzero(grid.segments)
    chex.assert_trees_all_equal(
        compact.flat(compact.tokens)[compact.last_token[:5]],
        grid.flat(grid.tokens)[grid.last_token[:5]],
    )
    real = grid.answer_mask > 0
    chex.assert_trees_all_equal(
        compact.slots[compact.answer_positions[real]], grid.answer_positions[real]
    )


@pytest.mark.slow
@pytest.mark.parametrize("head", ["lm", "classification"])
def test_a_step_is_that_of_all_slots(head):
    chosen = context_of(head)
    architecture = dataclasses.replace(chosen.architecture, remat="projections")
    chosen = dataclasses.replace(chosen, architecture=architecture)

    def stepped(batch):
        parameters = random_parameters(chosen)
        state = init_train_state(chosen.method, OPTIMIZER, parameters, jax.random.key(0))
        step = jax.jit(functools.partial(train_step, context=chosen, optimizer=OPTIMIZER))
        state, metrics = step(state, frozen_params(), batch, np.float32(1e-3))
        return state.optimizer_state[1].mu, metrics  # a tenth of the gradient

    grid, compact = map(stepped, batches(head, training=True))
    assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(grid[0])) > 1e-3
    chex.assert_trees_all_close(compact, grid, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("head", ["lm", "classification"])
def test_scores_answers_and_reports_are_those_of_all_slots(head):
    chosen = context_of(head)
    step = jax.jit(functools.partial(evaluation_step, context=chosen))
    grid, compact = (
        step(random_parameters(chosen), frozen_params(), batch)
        for batch in batches(head, training=False)
    )
    chex.assert_trees_all_close(compact, grid, rtol=1e-5, atol=1e-6)


def test_scores_of_a_mixed_batch_are_those_of_all_slots():
    chosen = context_of("lm")
    actives = together([random_parameters(chosen, deviation) for deviation in (0.2, 0.4)])

    step = jax.jit(functools.partial(evaluation_step, context=chosen))

    def scores(layout):
        batch = make_mixed_batch(
            EXAMPLES, [0, 1, 0, 1, 1], [ANSWERS] * 2, layout, class_counts=[3, 3]
        )
        return step(actives, frozen_params(), batch)

    compact = scores(dataclasses.replace(GRID, compact=True))
    chex.assert_trees_all_close(compact, scores(GRID), rtol=1e-5, atol=1e-6)


def test_features_are_those_of_all_slots():
    step = jax.jit(functools.partial(feature_step, architecture=context_of().architecture))
    grid, compact = (
        step(frozen_params(), batch) for batch in batches("classification", training=True)
    )
    chex.assert_trees_all_close(compact, grid, rtol=1e-5, atol=1e-6)


def test_padded_rows_keep_all_slots():
    layout = dataclasses.replace(GRID, compact=True, packed=False)
    batch = make_batch(EXAMPLES, ANSWERS, layout, task_index=1, class_count=3, training=True)
    assert batch.slots is None


def test_rows_and_computed_slots_are_each_others_transpose():
    """Against an explicit matrix of zeros and ones, in values and gradients."""
    config = DecoderConfig(
        vocabulary_size=8, width=8, ffn_width=8, layers=1, heads=1, kv_heads=1, head_width=8
    )
    slots = np.array([0, 1, 4, 5, 6], np.int32)
    grid = jnp.zeros((2, 4), jnp.int32)
    context = attention_context(config, grid, grid, grid, slots)
    matrix = np.zeros((8, 5), np.float32)
    matrix[slots, np.arange(5)] = 1.0
    generator = np.random.default_rng(0)
    flat, rows = generator.normal(size=(5, 3)), generator.normal(size=(8, 3))
    found, back = jax.vjp(context.in_rows, jnp.asarray(flat, jnp.float32))
    chex.assert_trees_all_close(found, matrix @ flat.astype(np.float32))
    chex.assert_trees_all_close(back(jnp.asarray(rows, jnp.float32))[0], matrix.T @ rows)
    found, back = jax.vjp(context.computed, jnp.asarray(rows, jnp.float32))
    chex.assert_trees_all_close(found, matrix.T @ rows)
    chex.assert_trees_all_close(back(jnp.asarray(flat, jnp.float32))[0], matrix @ flat)
