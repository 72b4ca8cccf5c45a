"""Next tokens as an auxiliary loss: which they are, hand-worked means, and the step with them."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import compiled_step, context_with, loss_of, method_with, random_trees
from streams import assert_bit_equal
from tiny import (
    ANSWERS,
    CONFIG,
    OPTIMIZER,
    batch_of,
    context_of,
    frozen_params,
    random_examples,
    random_parameters,
)

from moecl_jax.data.batching import BatchLayout, make_batch
from moecl_jax.methods.forward import forward, vocabulary_logits
from moecl_jax.methods.moe_cl import MoeCl
from moecl_jax.methods.next_token import (
    SelfSupervised,
    mean_over_examples,
    next_token_losses,
    next_tokens,
)
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.training.steps import init_train_state

EXAMPLES = random_examples([5, 3, 9, 1, 7])


def with_weight(context, weight):
    return dataclasses.replace(context, self_supervised=SelfSupervised(weight=weight))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("head", ["lm", "classification"])
def test_the_next_tokens_are_those_of_the_prompts(head, packed, compact):
    layout = BatchLayout(6, packed, 16, 3, max(map(len, ANSWERS)), compact=compact)
    answers = ANSWERS if head == "lm" else ()
    batch = make_batch(EXAMPLES, answers, layout, task_index=1, class_count=3, training=True)
    tokens, follows = next_tokens(batch)
    segments, now = batch.flat(batch.segments), batch.flat(batch.tokens)
    for place, example in enumerate(EXAMPLES, start=1):
        here = np.flatnonzero((segments == place) & (np.array(follows) > 0))
        assert now[here].tolist() == example.prompt[:-1].tolist()
        assert np.array(tokens)[here].tolist() == example.prompt[1:].tolist()
    assert float(follows.sum()) == sum(len(example.prompt) - 1 for example in EXAMPLES)


def test_the_mean_is_over_each_example_s_tokens_then_over_examples():
    losses = jnp.array([1.0, 3.0, 0.0, 4.0, 0.0, 0.0])
    follows = jnp.array([1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    membership = jnp.array(
        [[1.0, 1.0, 1.0, 0, 0, 0], [0, 0, 0, 1.0, 1.0, 0], [0, 0, 0, 0, 0, 1.0], [0.0] * 6]
    )
    weights = jnp.array([1.0, 1.0, 1.0, 0.0])
    # 2 of the first, 4 of the second; the third has one token, after which none follows
    found = mean_over_examples(losses, follows, membership, weights)
    assert float(found) == pytest.approx((2 + 4 + 0) / 3)


def test_equal_logits_cost_the_logarithm_of_the_vocabulary():
    batch = batch_of(EXAMPLES, "lm", training=True)
    hidden = jnp.zeros((batch.flat(batch.tokens).shape[0], 4))
    losses, follows = next_token_losses(hidden, batch, lambda states: jnp.zeros((len(states), 23)))
    np.testing.assert_allclose(losses, math.log(23) * np.array(follows), rtol=1e-6)


def test_chunks_give_the_losses_and_gradients_of_the_whole():
    examples = random_examples([60, 90, 80, 70, 41, 50], seed=2)
    layout = BatchLayout(6, False, 128, 3, 4)
    batch = make_batch(examples, (), layout, task_index=0, class_count=3, training=True)
    count = batch.tokens.size
    assert count > 2 * 256 and count % 256
    generator = np.random.default_rng(0)
    hidden = jnp.array(generator.normal(size=(count, 6)), jnp.float32)
    table = jnp.array(generator.normal(size=(6, CONFIG.vocabulary_size)), jnp.float32)

    def in_chunks(states):
        return next_token_losses(states, batch, lambda chunk: chunk @ table)[0].sum()

    def whole(states):
        tokens, follows = next_tokens(batch)
        log_probabilities = jax.nn.log_softmax(states @ table)
        return -(log_probabilities[jnp.arange(count), tokens] * follows).sum()

    found, expected = (jax.value_and_grad(of)(hidden) for of in (in_chunks, whole))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "head"), [(MoeCl, "lm"), (SequentialLora, "classification")])
def test_the_loss_is_that_of_each_prompt_alone(kind, head):
    context = context_with(method_with(kind), head)
    parameters = random_trees(context)
    batch = batch_of(EXAMPLES, head, training=True, batch_size=6)
    losses = []
    for example in EXAMPLES:
        alone = batch_of([example], head, training=True)
        hidden, _ = forward(parameters, frozen_params(), alone, context, seeds=None)
        logits = vocabulary_logits(parameters, hidden, frozen_params(), context)
        rows = jax.nn.log_softmax(logits[: len(example.prompt) - 1])
        chosen = rows[jnp.arange(len(rows)), example.prompt[1:]]
        losses.append(-float(chosen.mean()) if len(rows) else 0.0)
    plain, metrics = loss_of(context, parameters, batch)(parameters)
    total, found = loss_of(with_weight(context, 0.5), parameters, batch)(parameters)
    assert float(found["loss_next_token"]) == pytest.approx(np.mean(losses), rel=1e-4)
    assert float(total - plain) == pytest.approx(0.5 * np.mean(losses), rel=1e-3)
    assert float(found["loss_instruction"]) == float(metrics["loss_instruction"])
    assert "loss_next_token" not in metrics


def test_weight_0_is_the_plain_step():
    context = context_of("lm", dropout=0.5)
    state = init_train_state(
        context.method, OPTIMIZER, random_parameters(context), jax.random.key(0)
    )
    batch = batch_of(EXAMPLES, "lm", training=True)
    plain, none = (
        compiled_step(
            state, frozen_params(), batch, jnp.float32(1e-2), context=chosen, optimizer=OPTIMIZER
        )
        for chosen in (context, with_weight(context, 0.0))
    )
    for name in ("active", "optimizer_state"):
        assert_bit_equal(getattr(none[0], name), getattr(plain[0], name))
    assert_bit_equal(none[1], plain[1])
