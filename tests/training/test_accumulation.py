"""A batch in parts: the step is that of the whole batch."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
from streams import evaluator_of, logged, tiny_settings
from tiny import (
    ANSWERS,
    OPTIMIZER,
    context_of,
    frozen_params,
    random_examples,
    random_parameters,
)

from moecl_jax.data.batching import BatchLayout, make_batch
from moecl_jax.errors import UserError
from moecl_jax.training.steps import init_train_state, train_step
from moecl_jax.training.task_training import TrainingSteps
from moecl_jax.training.trainer import optimizer_of, train

EXAMPLES = random_examples([5, 3, 9, 1, 7])
WHOLE = BatchLayout(6, True, 16, len(ANSWERS), max(map(len, ANSWERS)))


def batch(head, parts, count=5):
    layout = dataclasses.replace(WHOLE, parts=parts)
    answers = ANSWERS if head == "lm" else ()
    return make_batch(EXAMPLES[:count], answers, layout, task_index=1, class_count=3, training=True)


@functools.cache
def compiled_step(context):
    return jax.jit(functools.partial(train_step, context=context, optimizer=OPTIMIZER))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "parts", "count"), [("lm", 4, 5), ("lm", 4, 1), ("classification", 2, 5)]
)
def test_gradients_and_metrics_are_those_of_the_whole_batch(head, parts, count):
    chosen = context_of(head)

    def stepped(batch):
        parameters = random_parameters(chosen)
        state = init_train_state(chosen.method, OPTIMIZER, parameters, jax.random.key(0))
        step = compiled_step(chosen)
        state, metrics = step(state, frozen_params(), batch, np.float32(1e-3))
        return state.optimizer_state[1].mu, metrics  # a tenth of the gradient

    expected = stepped(batch(head, 1, count))
    largest = max(float(abs(leaf).max()) for leaf in jax.tree.leaves(expected[0]))
    assert largest > 1e-3
    found = stepped(batch(head, parts, count))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-7)


def test_parts_are_near_equal_and_have_rows_of_one_length():
    parted = batch("lm", 4)
    assert parted.weights.tolist() == [[1, 0], [1, 0], [1, 0], [1, 1]]
    assert parted.tokens.shape == (4, 1, 16)
    assert (parted.segments.max(axis=(1, 2)) == [1, 1, 1, 2]).all()
    few = batch("lm", 4, count=1)
    assert few.weights.sum(axis=1).tolist() == [1, 0, 0, 0]
    assert few.tokens.shape == (4, 1, 16)


@pytest.mark.slow
def test_a_run_in_parts_is_the_same_run(tmp_path):
    settings = tiny_settings(tmp_path, tasks=("two",), epochs=1, lora__dropout=0.0, batch__size=6)
    train(settings, tmp_path / "whole")
    train(settings.changed({"batch": {"accumulation_steps": 3}}), tmp_path / "parts")
    for whole, parts in zip(logged(tmp_path / "whole"), logged(tmp_path / "parts"), strict=True):
        for name in ("loss", "loss_instruction", "gradient_norm"):
            np.testing.assert_allclose(parts[name], whole[name], rtol=1e-3, atol=1e-4)


def test_more_parts_than_examples_are_refused(tmp_path):
    settings = tiny_settings(tmp_path, batch__size=2, batch__accumulation_steps=3)
    evaluator = evaluator_of(settings)
    with pytest.raises(UserError, match="accumulation_steps = 3 exceeds the 2 examples of a"):
        TrainingSteps.compile(evaluator, (), optimizer_of(settings))
