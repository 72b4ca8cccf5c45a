"""Formulas of the baselines, in values and gradients, against hand-worked numbers and float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from streams import assert_bit_equal
from tiny import (
    ANSWERS,
    CONFIG,
    SETTINGS,
    TASK_INDEX,
    TASKS,
    batch_of,
    frozen_params,
    learner,
    random_examples,
    randomised,
)

from moecl_jax.errors import UserError
from moecl_jax.kernels import as_bits
from moecl_jax.methods import METHODS, Ewc, Lwf, SequentialFull
from moecl_jax.methods.base import TaskEnd, View
from moecl_jax.methods.lwf import distillation
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.methods.state import Initializer
from moecl_jax.models.lora import TARGETS
from moecl_jax.training.steps import (
    evaluation_step,
    forward,
    importance_step,
    init_train_state,
    instruction_loss,
    loss,
    output_logits,
    train_step,
)

LENGTHS = [3, 9, 1, 6]
SCALE = SETTINGS.scale
compiled_step = jax.jit(train_step, static_argnames="learner")


def method_of(kind, **options):
    return kind(SETTINGS, CONFIG, kind.Options(**options))


def learner_of(method, head="lm"):
    return dataclasses.replace(learner(head), method=method)


def random_trees(learner, **memory):
    """All trees random, the memory's too but for what is given; no B is zero."""
    initializer = Initializer(learner.method, 0, learner.head, len(ANSWERS))

    def begin():
        start = initializer.stream(TASKS)
        return initializer.begin(start.shared, TASK_INDEX, memory=start.memory)

    active = randomised(jax.eval_shape(begin), 0.3)
    return dataclasses.replace(active, memory={**active.memory, **memory})


def loss_of(learner, active, batch):
    """L and metrics as functions of what is trained, without a task's beginning."""
    state = init_train_state(learner, active, jax.random.key(0))
    state = dataclasses.replace(state, memory=active.memory)
    return lambda trained: loss(trained, state, frozen_params(), batch, learner)


def view(memory, **parts):
    """A view with what a penalty needs alone."""
    names = [field.name for field in dataclasses.fields(View)]
    return View(**{**dict.fromkeys(names), "memory": memory, **parts})


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.fixture(scope="module")
def batch():
    return batch_of(random_examples(LENGTHS), "lm", training=True)


# EWC


def test_ewc_penalty_and_gradient_by_hand():
    method = method_of(Ewc, weight=2.0)
    memory = {"fisher": {"x": jnp.array([3.0, 0.5])}, "anchor": {"x": jnp.array([0.0, 4.0])}}
    shared = {"x": jnp.array([1.0, 2.0])}
    value, gradient = jax.value_and_grad(lambda s: method.penalty(s, view(memory))[0])(shared)
    assert float(value) == 0.5 * 2.0 * (3.0 * 1.0 + 0.5 * 4.0)
    np.testing.assert_array_equal(gradient["x"], [6.0, -2.0])
    at_anchor = jax.grad(lambda s: method.penalty(s, view(memory))[0])(memory["anchor"])
    assert not np.any(at_anchor["x"])


def test_ewc_fisher_information_runs_over_the_tasks():
    method = method_of(Ewc, decay=0.5)
    memory = {"fisher": {"x": jnp.array([4.0])}, "anchor": {"x": jnp.array([0.0])}}
    shared = {"x": jnp.array([7.0])}
    carried, _, memory = method.finish_task(
        shared, {}, memory, TaskEnd(1, jax.random.key(0), {"x": jnp.array([3.0])})
    )
    assert carried is shared
    assert float(memory["fisher"]["x"][0]) == 0.5 * 4.0 + 3.0
    assert float(memory["anchor"]["x"][0]) == 7.0


@pytest.mark.parametrize("head", ["lm", "classification"])
def test_importance_is_the_squared_slope_of_an_example_s_log_likelihood(head):
    """Against finite differences of the log-probability that the evaluation finds."""
    ewc = learner_of(method_of(Ewc), head)
    active = random_trees(ewc)
    for example in random_examples([5, 3, 4])[1:]:  # labels 1 and 2, of several tokens
        alone = batch_of([example], head, training=True)
        importance = importance_step(active, frozen_params(), alone, learner=ewc)
        asked = batch_of([example], head, training=False)

        @jax.jit
        def log_probability(shared, asked=asked, label=example.label):
            chosen = dataclasses.replace(active, shared=shared)
            scores, _, _ = evaluation_step(chosen, frozen_params(), asked, learner=ewc)
            return scores[0, label] if head == "lm" else jax.nn.log_softmax(scores[0])[label]

        for name, factor, place in (
            ("gate_proj", "a", (0, 2, 1)),
            ("up_proj", "b", (1, 1, 3)),
            ("down_proj", "b", (1, 0, 7)),
        ):
            ends = []
            for step in (0.01, -0.01):
                moved = jax.tree.map(lambda leaf: leaf, active.shared)
                leaf = moved["expert"][name][factor]
                moved["expert"][name][factor] = leaf.at[place].add(step)
                ends.append(float(log_probability(moved)))
            slope = (ends[0] - ends[1]) / 0.02
            got = float(importance["expert"][name][factor][place])
            assert got == pytest.approx(slope**2, rel=0.02, abs=1e-6), (name, factor)


# LwF


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_and_its_gradient(temperature):
    generator = np.random.default_rng(0)
    teacher, student = generator.normal(scale=3, size=(2, 2, 1, 3, 5)).astype(np.float32)
    mask = np.array([[[1, 1, 0]], [[1, 0, 0]]], np.float32)

    def shares(logits):
        exponents = np.exp(wide(logits) / temperature)
        return exponents / exponents.sum(axis=-1, keepdims=True)

    taught, learnt = shares(teacher), shares(student)
    divergence = (taught * np.log(taught / learnt)).sum(axis=-1)
    value, gradient = jax.value_and_grad(distillation, argnums=1)(
        teacher, student, mask, temperature
    )
    expected = temperature**2 * (divergence * mask).sum() / 3
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    slope = temperature * (learnt - taught) * wide(mask)[..., None] / 3
    np.testing.assert_allclose(gradient, slope, atol=1e-6)


def test_distillation_by_hand():
    # softmax (1/2, 1/2) of the teacher and (4/5, 1/5) of the student at T = 2.
    teacher, student = jnp.zeros((1, 1, 1, 2)), 2 * jnp.log(jnp.array([[[[4.0, 1.0]]]]))
    value = distillation(teacher, student, jnp.ones((1, 1, 1)), 2.0)
    assert float(value) == pytest.approx(4 * 0.5 * (np.log(5 / 8) + np.log(5 / 2)), rel=1e-6)


def test_lwf_s_first_task_has_no_teacher(batch):
    lwf, plain = learner_of(method_of(Lwf)), learner_of(method_of(SequentialLora))
    active = random_trees(lwf, finished=jnp.zeros(()))
    trained = dataclasses.replace(active, memory={})
    gradients, metrics = jax.grad(loss_of(lwf, active, batch), has_aux=True)(trained)
    expected, _ = jax.grad(loss_of(plain, trained, batch), has_aux=True)(trained)
    assert float(metrics["loss"]) == float(metrics["loss_instruction"])  # the term is exactly 0
    assert_bit_equal(gradients, expected)


def test_lwf_s_teacher_is_the_model_before_the_task(batch):
    lwf = learner_of(method_of(Lwf, weight=0.4, temperature=3.0))
    active = random_trees(lwf, finished=jnp.ones(()))
    trained = dataclasses.replace(active, memory={})
    _, metrics = loss_of(lwf, active, batch)(trained)
    logits = []
    for shared in (active.memory["teacher"], active.shared):
        chosen = dataclasses.replace(active, shared=shared)
        hidden, _ = forward(chosen, frozen_params(), batch, lwf, seeds=None)
        logits.append(output_logits(chosen, hidden, frozen_params(), batch, lwf))
    expected = 0.4 * float(distillation(*logits, batch.answer_mask, 3.0))
    assert expected > 1e-3
    term = float(metrics["loss"] - metrics["loss_instruction"])
    assert term == pytest.approx(expected, abs=2e-6)

    state = init_train_state(lwf, active, jax.random.key(0))
    assert_bit_equal(state.memory["teacher"], active.shared)
    _, metrics = loss(state.active, state, frozen_params(), batch, lwf)
    assert float(metrics["loss"] - metrics["loss_instruction"]) == pytest.approx(0, abs=1e-6)
    _, _, memory = lwf.method.finish_task(
        active.shared, {}, state.memory, TaskEnd(0, jax.random.key(0), {})
    )
    assert float(memory["finished"]) == 2.0


# All weights


@pytest.mark.slow
def test_a_step_on_all_weights_is_adamw_s_own(batch):
    full = learner_of(method_of(SequentialFull))
    frozen, active = frozen_params(), random_trees(full)
    shapes = jax.tree.map(jnp.zeros_like, active.shared)
    assert jax.tree.map(jnp.shape, shapes["difference"]) == jax.tree.map(jnp.shape, frozen)
    active = dataclasses.replace(active, shared=shapes)

    def plain_loss(parameters):
        hidden, _ = forward(active, parameters, batch, full, seeds=None)
        return instruction_loss(output_logits(active, hidden, parameters, batch, full), batch, full)

    adam, weights = optax.adamw(1e-3, weight_decay=0.0), frozen
    moments = adam.init(weights)
    state = init_train_state(full, active, jax.random.key(0))
    for step in range(3):
        updates, moments = adam.update(jax.grad(plain_loss)(weights), moments, weights)
        weights = optax.apply_updates(weights, updates)
        state, _ = train_step(state, frozen, batch, jnp.float32(1e-3), learner=full)
        ours = full.method.parameters(frozen, state.active.shared)
        if step == 0:
            assert_bit_equal(ours, weights)
        for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(weights), strict=True):
            np.testing.assert_allclose(left, right, atol=1e-6, rtol=0)
    for before, after in zip(jax.tree.leaves(frozen), jax.tree.leaves(ours), strict=True):
        assert np.any(before != after)


def test_steps_smaller_than_bfloat16_s_rounding_are_not_lost():
    method = method_of(SequentialFull)
    ones = jnp.ones((3,), jnp.bfloat16)
    for loaded in (ones, as_bits({"x": ones})["x"]):
        for difference, expected in ((1e-3, 1.0), (8e-3, 1.0078125)):
            shared = {"difference": {"x": jnp.full((3,), difference)}}
            weights = method.parameters({"x": loaded}, shared)["x"]
            assert weights.dtype == jnp.bfloat16
            np.testing.assert_array_equal(weights.astype(jnp.float32), [expected] * 3)


# All methods


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("joint", "replay")])
def test_each_method_s_loss_falls_and_its_memory_stays(name):
    """Joint training and replay have the step of sequential LoRA."""
    method = METHODS[name](dataclasses.replace(SETTINGS, targets=TARGETS), CONFIG)
    chosen = learner_of(method)
    initializer = Initializer(method, 0, "lm", len(ANSWERS))
    stream = initializer.stream(TASKS)
    state = init_train_state(
        chosen, initializer.begin(stream.shared, 0, memory=stream.memory), jax.random.key(0)
    )
    memory, batch = state.memory, batch_of(random_examples(LENGTHS), "lm", training=True)
    losses = []
    for _ in range(8):
        state, metrics = compiled_step(
            state, frozen_params(), batch, jnp.float32(5e-2), learner=chosen
        )
        losses.append(float(metrics["loss_instruction"]))
    assert losses[-1] < 0.9 * losses[0]
    assert_bit_equal(state.memory, memory)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("o_lora", {"weight": -1.0}, "weight = -1.0 must be at least 0"),
        ("o_lora", {"form": "cubed"}, "form = 'cubed' is not one of absolute, squared"),
        ("mocl", {"match": -1.0}, "match = -1.0 must be at least 0"),
        ("replay", {"memory": -1}, "memory = -1 must be at least 0"),
        ("ewc", {"decay": 2.0}, "decay = 2.0 must be between 0 and 1"),
        ("ewc", {"examples": 0}, "examples = 0 must be at least 1"),
        ("lwf", {"temperature": 0.0}, "temperature = 0.0 must be above 0"),
    ],
)
def test_options_out_of_range_are_named(name, option, message):
    with pytest.raises(UserError, match=message):
        METHODS[name].Options(**option)
