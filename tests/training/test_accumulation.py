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
from moecl_jax.training.steps import (
    Piece,
    init_train_state,
    no_sums,
    summed,
    train_piece,
    train_step,
)
from moecl_jax.training.task_training import TrainingSteps
from moecl_jax.training.trainer import optimizer_of, train

EXAMPLES = random_examples([5, 3, 9, 1, 7])
WHOLE = BatchLayout(6, True, 16, len(ANSWERS), max(map(len, ANSWERS)))


def batch(head, places, **changes):
    answers = ANSWERS if head == "lm" else ()
    examples = [EXAMPLES[place] for place in places]
    layout = dataclasses.replace(WHOLE, **changes)
    make = functools.partial(make_batch, task_index=1, class_count=3, training=True)
    return make(examples, answers, layout, members=places)


def weights(head, places):
    """What the instruction loss is averaged over: tokens of the answers, or examples."""
    return sum(len(ANSWERS[EXAMPLES[p].label]) if head == "lm" else 1 for p in places)


def stepped(context, head, parts):
    """The optimizer's first moments and the metrics after a batch in these parts."""
    parameters = random_parameters(context)
    state = init_train_state(context.method, OPTIMIZER, parameters, jax.random.key(0))
    step = jax.jit(functools.partial(train_piece, context=context, optimizer=OPTIMIZER))
    sums, metrics = no_sums(state.active), []
    every = [place for part in parts for place in part]
    for number, part in enumerate(parts):
        piece = Piece.of(
            weights(head, part) / weights(head, every),
            len(part) / len(every),
            number == len(parts) - 1,
        )
        rate = np.float32(1e-3)
        state, sums, found = step(state, sums, frozen_params(), batch(head, part), piece, rate)
        metrics.append(found)
    assert all(not leaf.any() for leaf in jax.tree.leaves(sums))
    return state, summed(metrics)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "parts"),
    [
        ("lm", [[0], [1], [2], [3, 4]]),
        ("lm", [[1, 3], [0, 2, 4]]),
        ("classification", [[0, 2, 4], [1, 3]]),
    ],
)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_and_metrics_are_those_of_the_whole_batch(head, parts, dropout):
    chosen = context_of(head, dropout=dropout)
    whole, expected = stepped(chosen, head, [list(range(5))])
    moments = whole.optimizer_state[1].mu  # a tenth of the gradient
    assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(moments)) > 1e-3
    found, metrics = stepped(chosen, head, parts)
    assert found.step == whole.step == 1
    chex.assert_trees_all_close(found.optimizer_state[1].mu, moments, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(metrics, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"packed": False}, {"row_length": 64}, {"compact": True}])
def test_a_batch_in_one_piece_is_the_step_with_the_same_dropout_in_any_layout(changes):
    chosen = context_of("lm", dropout=0.5)
    parameters = random_parameters(chosen)
    state = init_train_state(chosen.method, OPTIMIZER, parameters, jax.random.key(0))
    step = jax.jit(functools.partial(train_step, context=chosen, optimizer=OPTIMIZER))
    every = list(range(5))
    laid_out = batch("lm", every, **changes)
    expected, metrics = step(state, frozen_params(), laid_out, np.float32(1e-3))
    found, of_pieces = stepped(chosen, "lm", [every])
    chex.assert_trees_all_close(
        found.optimizer_state[1].mu, expected.optimizer_state[1].mu, rtol=1e-5, atol=1e-7
    )
    chex.assert_trees_all_close(of_pieces, metrics, rtol=1e-5, atol=1e-7)


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
