"""Adversarial training on the input: hand-worked attacks, and the step with them."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import compiled_step, context_with, method_with, random_trees
from streams import assert_bit_equal, logged, stop_after, tiny_settings, training_of
from tiny import (
    ANSWERS,
    OPTIMIZER,
    batch_of,
    context_of,
    frozen_params,
    random_examples,
    random_parameters,
)

from moecl_jax.data.batching import BatchLayout, make_batch
from moecl_jax.errors import UserError
from moecl_jax.methods.adversarial_inputs import (
    AdversarialInputs,
    Prompts,
    attacked_gradient,
    beginning,
    projected,
)
from moecl_jax.methods.forward import forward, membership_of, prompts_of
from moecl_jax.methods.moe_cl import MoeCl
from moecl_jax.methods.next_token import SelfSupervised
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.training.steps import Piece, init_train_state, loss, no_sums, summed, train_piece
from moecl_jax.training.trainer import train

# Two examples; the first has one token, the second two. The last token is no prompt's.
EMBEDDED = jnp.array([[3.0, 4.0], [0.0, 6.0], [8.0, 0.0], [9.0, 9.0]])
MEMBERS = jnp.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
PROMPTS = Prompts(EMBEDDED, MEMBERS, jnp.arange(4, dtype=jnp.uint32))
SLOPES = jnp.array([[0.0, 2.0], [3.0, 0.0], [0.0, 4.0], [5.0, 5.0]])
KEY = jax.random.key(3)


def linear(active, shift):
    """L = w sum slopes (x + d): its gradient with respect to w is the sum."""
    total = jnp.sum(SLOPES * (EMBEDDED + shift))
    return active["w"] * total, {"loss_instruction": total}


def attacked(**values):
    section = AdversarialInputs(**values)
    return attacked_gradient(linear, {"w": jnp.float32(2.0)}, section, PROMPTS, KEY)


# |x| is 5 and 10; with epsilon 0.2 the radii are 1 and 2. Uphill is (0, 1) for the first example
# and (3, 0 | 0, 4) / 5 for the second. sum slopes x = 8 + 0 + 0 + 90; on the surface of the balls
# it has grown by 2 * 1 + 2 * (9 + 16) / 5 = 12.
CLEAN, GROWN = 98.0, 12.0


def test_fgm_goes_to_the_surface_of_each_example_s_ball():
    gradient, metrics = attacked(attack="fgm", epsilon=0.2)
    assert float(gradient["w"]) == pytest.approx(CLEAN + GROWN / 2)
    assert float(metrics["loss_instruction"]) == pytest.approx(CLEAN + GROWN / 2)
    assert float(metrics["loss_attacked"]) == pytest.approx(CLEAN + GROWN)


@pytest.mark.parametrize(
    ("steps", "step_size", "reached"),
    [(1, 0.25, 0.25), (3, 0.25, 0.75), (3, 0.5, 1.0), (1, 1.0, 1.0), (2, 0.0, 0.0)],
)
def test_pgd_goes_step_by_step_and_stays_in_the_ball(steps, step_size, reached):
    gradient, metrics = attacked(attack="pgd", epsilon=0.2, steps=steps, step_size=step_size)
    assert float(metrics["loss_attacked"]) == pytest.approx(CLEAN + reached * GROWN)
    assert float(gradient["w"]) == pytest.approx(CLEAN + reached * GROWN / 2)


def test_freelb_begins_at_random_and_takes_the_mean_of_its_passes():
    radius = np.array([1.0, 2.0])
    first = np.array(beginning(jnp.array(radius), PROMPTS, KEY))
    assert np.all(np.abs(first[0]) <= 1 / np.sqrt(2)) and np.all(np.abs(first[1:3]) <= 1.0)
    assert np.all(first[:3] != 0) and np.all(first[3] == 0)
    second = first + 0.5 * np.array([[0, 1], [6 / 5, 0], [0, 8 / 5], [0, 0]])
    for tokens, most in ((slice(0, 1), 1.0), (slice(1, 3), 2.0)):
        second[tokens] *= min(1.0, most / np.linalg.norm(second[tokens]))
    expected = [CLEAN + np.sum(np.array(SLOPES) * shift) for shift in (first, second)]
    gradient, metrics = attacked(attack="freelb", epsilon=0.2, steps=2)
    assert float(gradient["w"]) == pytest.approx(np.mean(expected), rel=1e-6)
    assert float(metrics["loss_attacked"]) == pytest.approx(expected[1], rel=1e-6)


def test_the_projection_shortens_what_is_too_long_alone():
    shift = jnp.array([[3.0, 4.0], [0.0, 0.3], [0.4, 0.0], [7.0, 7.0]])
    found = projected(shift, jnp.array([2.5, 1.0]), PROMPTS)
    np.testing.assert_allclose(found, [[1.5, 2.0], [0.0, 0.3], [0.4, 0.0], [0.0, 0.0]], rtol=1e-6)


def test_a_flat_loss_moves_nothing():
    def flat(active, shift):
        del shift
        return active["w"], {"loss_instruction": active["w"]}

    section = AdversarialInputs("fgm")
    gradient, metrics = attacked_gradient(flat, {"w": jnp.float32(2.0)}, section, PROMPTS, KEY)
    assert float(gradient["w"]) == 1.0
    assert float(metrics["loss_attacked"]) == 2.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attack": "fgsm"}, "adversarial_inputs.attack = 'fgsm' is not one of off, fgm"),
        ({"epsilon": -1.0}, "adversarial_inputs.epsilon = -1.0 must be at least 0"),
        ({"steps": 0}, "adversarial_inputs.steps = 0 must be at least 1"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(UserError, match=message):
        AdversarialInputs(**values)


def test_weights_of_the_passes_sum_to_one():
    weights = {name: AdversarialInputs(name, steps=4).weights for name in ("fgm", "pgd", "freelb")}
    assert weights == {
        "fgm": (0.5, 0.5),
        "pgd": (0.5, 0.0, 0.0, 0.0, 0.5),
        "freelb": (0.25, 0.25, 0.25, 0.25),
    }
    assert not AdversarialInputs("fgm", epsilon=0).on and not AdversarialInputs().on


# The step

EXAMPLES = random_examples([5, 3, 9, 1, 7])


def with_attack(context, **values):
    return dataclasses.replace(context, attack=AdversarialInputs(**values))


def state_of(context, parameters=None):
    parameters = random_parameters(context) if parameters is None else parameters
    return init_train_state(context.method, OPTIMIZER, parameters, jax.random.key(0))


def test_a_shift_is_that_of_the_words_embeddings():
    context = context_with(method_with(SequentialLora))
    parameters = random_trees(context)
    batch = batch_of(random_examples([4]), "lm", training=True)
    word = int(batch.tokens[0, 1])
    frozen = frozen_params()
    table = frozen["embedder"]["embedding"]
    row = jnp.linspace(-1.0, 1.0, table.shape[1])
    changed = {**frozen, "embedder": {"embedding": table.at[word].add(row)}}
    here = batch.flat(batch.tokens) == word
    shift = jnp.where(here[:, None], row[None], 0.0)
    found, _ = forward(parameters, frozen, batch, context, seeds=None, shift=shift)
    expected, _ = forward(parameters, changed, batch, context, seeds=None)
    real = membership_of(batch).sum(axis=0) > 0
    np.testing.assert_allclose(found[real], expected[real], rtol=1e-5, atol=1e-5)
    unmoved, _ = forward(parameters, frozen, batch, context, seeds=None)
    assert float(jnp.abs(found - unmoved)[real].max()) > 1e-2


@pytest.mark.parametrize("head", ["lm", "classification"])
def test_prompts_are_moved_and_answers_are_not(head):
    context = context_of(head)
    batch = batch_of(EXAMPLES, head, training=True)
    prompts = prompts_of(frozen_params(), batch, context)
    assert prompts.members.sum(axis=1).tolist() == [5, 3, 9, 1, 7]
    table = np.array(frozen_params()["embedder"]["embedding"])
    norms = [np.linalg.norm(table[example.prompt]) for example in EXAMPLES]
    np.testing.assert_allclose(prompts.norms(prompts.embedded), norms, rtol=1e-5)


@pytest.mark.parametrize("kind", [SequentialLora, pytest.param(MoeCl, marks=pytest.mark.slow)])
def test_the_step_s_gradient_is_that_of_the_formula(kind):
    context = context_of("lm", kind, dropout=0.5)
    parameters = random_trees(context)
    batch = batch_of(EXAMPLES, "lm", training=True)
    state = state_of(context, parameters)
    prompts = prompts_of(frozen_params(), batch, context)

    @jax.jit
    def gradients(shift):
        def of(active, moved):
            return loss(active, state, frozen_params(), batch, context, None, moved)

        return jax.grad(of, (0, 1), has_aux=True)(state.active, shift)

    (clean, uphill), metrics = gradients(jnp.zeros(prompts.embedded.shape))
    uphill = np.array(uphill)
    shift = np.zeros_like(uphill)
    table = np.array(frozen_params()["embedder"]["embedding"])
    for member, example in zip(np.array(prompts.members) > 0, EXAMPLES, strict=True):
        length = 0.3 * np.linalg.norm(table[example.prompt]) / np.linalg.norm(uphill[member])
        shift[member] = length * uphill[member]
    (moved, _), attacked_metrics = gradients(jnp.array(shift))
    assert float(attacked_metrics["loss_instruction"]) > float(metrics["loss_instruction"])

    chosen = with_attack(context, attack="fgm", epsilon=0.3)
    after, found = compiled_step(
        state, frozen_params(), batch, jnp.float32(1e-2), context=chosen, optimizer=OPTIMIZER
    )
    expected = jax.tree.map(lambda one, other: 0.1 * (one + other) / 2, clean, moved)
    chex.assert_trees_all_close(after.optimizer_state[1].mu, expected, rtol=1e-4, atol=1e-6)
    for name in ("loss", "loss_instruction", "loss_adversarial"):
        mean = (float(metrics[name]) + float(attacked_metrics[name])) / 2
        assert float(found[name]) == pytest.approx(mean, rel=1e-4, abs=1e-6)
    assert float(found["loss_attacked"]) == pytest.approx(
        float(attacked_metrics["loss_instruction"]), rel=1e-4
    )


@pytest.mark.slow
def test_epsilon_0_is_the_plain_step_and_a_tiny_one_all_but_so():
    context = context_of("lm", dropout=0.5)
    batch, state = batch_of(EXAMPLES, "lm", training=True), state_of(context)

    def step(chosen):
        rate = jnp.float32(1e-2)
        return compiled_step(
            state, frozen_params(), batch, rate, context=chosen, optimizer=OPTIMIZER
        )

    plain, metrics = step(context)
    none, of_none = step(with_attack(context, attack="freelb", epsilon=0.0))
    assert_bit_equal((none.active, none.optimizer_state), (plain.active, plain.optimizer_state))
    assert_bit_equal(of_none, metrics)
    tiny, of_tiny = step(with_attack(context, attack="freelb", epsilon=1e-6))
    chex.assert_trees_all_close(
        tiny.optimizer_state[1].mu, plain.optimizer_state[1].mu, rtol=1e-3, atol=1e-6
    )
    assert float(of_tiny["loss_instruction"]) == pytest.approx(
        float(metrics["loss_instruction"]), rel=1e-4
    )


@pytest.mark.slow
def test_a_batch_in_pieces_is_attacked_as_the_whole_one():
    context = with_attack(context_of("lm", dropout=0.5), attack="freelb", epsilon=0.3)
    context = dataclasses.replace(context, self_supervised=SelfSupervised(weight=0.7))
    step = jax.jit(functools.partial(train_piece, context=context, optimizer=OPTIMIZER))
    layout = BatchLayout(6, True, 16, len(ANSWERS), max(map(len, ANSWERS)))

    def counted(places):
        return sum(len(ANSWERS[EXAMPLES[place].label]) for place in places)

    def stepped(parts):
        state = state_of(context)
        sums, metrics = no_sums(state.active), []
        every = [place for part in parts for place in part]
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            piece = Piece.of(counted(part) / counted(every), len(part) / len(every), last)
            batch = make_batch(
                [EXAMPLES[place] for place in part],
                ANSWERS,
                layout,
                task_index=1,
                class_count=3,
                training=True,
                members=part,
            )
            rate = np.float32(1e-3)
            state, sums, found = step(state, sums, frozen_params(), batch, piece, rate)
            metrics.append(found)
        return state.optimizer_state[1].mu, summed(metrics)

    expected, whole = stepped([list(range(5))])
    found, parts = stepped([[3, 1], [0, 4], [2]])
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-6)
    chex.assert_trees_all_close(parts, whole, rtol=1e-3, atol=1e-5)


# A run


@pytest.mark.slow
def test_an_attacked_run_compiles_no_more_and_is_resumed_bit_for_bit(tmp_path, monkeypatch):
    settings = tiny_settings(
        tmp_path,
        tasks=("two", "five"),
        adversarial_inputs__attack="freelb",
        adversarial_inputs__steps=2,
    ).changed({"task_settings": {"five": {"adversarial_inputs": {"attack": "fgm"}}}})
    run = training_of(settings, tmp_path / "whole")
    _, whole = run.run()
    assert run.steps.step._cache_size() <= len(run.steps.cutter.shapes)
    with monkeypatch.context() as patch:
        stop_after(patch, 17)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "run")
    assert train(settings, tmp_path / "run")["accuracy_matrix"] == whole["accuracy_matrix"]
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    assert all(line["loss_attacked"] > 0 for line in logged(tmp_path / "run"))
