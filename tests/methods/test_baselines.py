"""Formulas of the baselines, in values and gradients, against hand-worked numbers and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from formulas import (
    LENGTHS,
    compiled_step,
    context_with,
    inputs_of,
    loss_of,
    method_with,
    random_trees,
    trees,
    wide,
)
from streams import assert_bit_equal
from tiny import (
    CONFIG,
    OPTIMIZER,
    TASKS,
    batch_of,
    frozen_params,
    method_of,
    random_examples,
    starting_of,
)

from moecl_jax.errors import UserError
from moecl_jax.kernels import as_bits
from moecl_jax.methods import METHODS, TaskEnd, TaskStart
from moecl_jax.methods.ewc import Ewc
from moecl_jax.methods.forward import forward, instruction_loss, output_logits
from moecl_jax.methods.lwf import Lwf, distillation
from moecl_jax.methods.sequential_full import SequentialFull
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.models.lora import TARGETS
from moecl_jax.serving.scoring import evaluation_step
from moecl_jax.training.steps import gradient_step, init_train_state, loss, train_step


@pytest.fixture(scope="module")
def batch():
    return batch_of(random_examples(LENGTHS), "lm", training=True)


# EWC


def test_ewc_penalty_and_gradient_by_hand():
    method = method_with(Ewc, weight=2.0)
    memory = {"fisher": {"x": jnp.array([3.0, 0.5])}, "anchor": {"x": jnp.array([0.0, 4.0])}}
    shared = {"x": jnp.array([1.0, 2.0])}

    def penalty(shared):
        found = method.penalty(trees(shared, memory), inputs_of())
        assert found.reported is None and not found.metrics  # the term is what is logged
        return found.term

    value, gradient = jax.value_and_grad(penalty)(shared)
    assert float(value) == 0.5 * 2.0 * (3.0 * 1.0 + 0.5 * 4.0)
    np.testing.assert_array_equal(gradient["x"], [6.0, -2.0])
    at_anchor = jax.grad(penalty)(memory["anchor"])
    assert not np.any(at_anchor["x"])


def test_ewc_fisher_information_runs_over_the_tasks():
    method = method_with(Ewc, decay=0.5, examples=7)
    memory = {"fisher": {"x": jnp.array([4.0])}, "anchor": {"x": jnp.array([0.0])}}
    shared = {"x": jnp.array([7.0])}
    asked = []

    def mean_of_gradients(count, transform):
        asked.append(count)
        return jax.tree.map(lambda leaf: (transform(leaf) + transform(-leaf)) / 2, {"x": slope})

    slope = jnp.array([-3.0])
    end = TaskEnd(1, jax.random.key(0), CONFIG, mean_of_gradients=mean_of_gradients)
    after = method.finish_task(trees(shared, memory), end)
    assert asked == [7]
    assert after.shared is shared
    assert float(after.memory["fisher"]["x"][0]) == 0.5 * 4.0 + 9.0  # squares, not slopes
    assert float(after.memory["anchor"]["x"][0]) == 7.0


@pytest.mark.parametrize("head", ["lm", "classification"])
def test_importance_is_the_squared_slope_of_an_example_s_log_likelihood(head):
    """Against finite differences of the log-probability that the evaluation finds."""
    ewc = context_with(method_with(Ewc), head)
    active = random_trees(ewc)
    for example in random_examples([5, 3, 4])[1:]:  # labels 1 and 2, of several tokens
        alone = batch_of([example], head, training=True)
        importance = gradient_step(
            active, frozen_params(), alone, context=ewc, transform=jnp.square
        )
        asked = batch_of([example], head, training=False)

        @jax.jit
        def log_probability(shared, asked=asked, label=example.label):
            chosen = active.replace(shared=shared)
            scores, _, _ = evaluation_step(chosen, frozen_params(), asked, context=ewc)
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
    lwf, plain = (context_with(method_with(kind)) for kind in (Lwf, SequentialLora))
    active = random_trees(lwf, finished=jnp.zeros(()))
    trained = active.replace(memory={})
    gradients, metrics = jax.grad(loss_of(lwf, active, batch), has_aux=True)(trained)
    expected, _ = jax.grad(loss_of(plain, trained, batch), has_aux=True)(trained)
    assert float(metrics["loss"]) == float(metrics["loss_instruction"])  # the term is exactly 0
    assert_bit_equal(gradients, expected)


def test_lwf_s_teacher_is_the_model_before_the_task(batch):
    lwf = context_with(method_with(Lwf, weight=0.4, temperature=3.0))
    active = random_trees(lwf, finished=jnp.ones(()))
    trained = active.replace(memory={})
    _, metrics = loss_of(lwf, active, batch)(trained)
    logits = []
    for shared in (active.memory["teacher"], active.shared):
        chosen = active.replace(shared=shared)
        hidden, _ = forward(chosen, frozen_params(), batch, lwf, seeds=None)
        logits.append(output_logits(chosen, hidden, frozen_params(), batch, lwf))
    expected = 0.4 * float(distillation(*logits, batch.answer_mask, 3.0))
    assert expected > 1e-3
    term = float(metrics["loss"] - metrics["loss_instruction"])
    assert term == pytest.approx(expected, abs=2e-6)

    start = TaskStart(0, jax.random.key(1), CONFIG)
    state = init_train_state(lwf.method, OPTIMIZER, active, jax.random.key(0), start)
    assert_bit_equal(state.memory["teacher"], active.shared)
    _, metrics = loss(state.active, state, frozen_params(), batch, lwf)
    assert float(metrics["loss"] - metrics["loss_instruction"]) == pytest.approx(0, abs=1e-6)
    end = TaskEnd(0, jax.random.key(0), CONFIG)
    after = lwf.method.finish_task(trees(active.shared, state.memory), end)
    assert float(after.memory["finished"]) == 2.0


# All weights


@pytest.mark.slow
def test_a_step_on_all_weights_is_adamw_s_own(batch):
    full = context_with(method_with(SequentialFull))
    frozen, active = frozen_params(), random_trees(full)
    shapes = jax.tree.map(jnp.zeros_like, active.shared)
    assert jax.tree.map(jnp.shape, shapes["difference"]) == jax.tree.map(jnp.shape, frozen)
    active = active.replace(shared=shapes)

    def plain_loss(parameters):
        hidden, _ = forward(active, parameters, batch, full, seeds=None)
        return instruction_loss(output_logits(active, hidden, parameters, batch, full), batch, full)

    adam, weights = optax.adamw(1e-3, weight_decay=0.0), frozen
    moments = adam.init(weights)
    state = init_train_state(full.method, OPTIMIZER, active, jax.random.key(0))
    for step in range(3):
        updates, moments = adam.update(jax.grad(plain_loss)(weights), moments, weights)
        weights = optax.apply_updates(weights, updates)
        state, _ = train_step(
            state, frozen, batch, jnp.float32(1e-3), context=full, optimizer=OPTIMIZER
        )
        ours = full.method.llm_weights(frozen, state.active.shared)
        if step == 0:
            assert_bit_equal(ours, weights)
        for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(weights), strict=True):
            np.testing.assert_allclose(left, right, atol=1e-6, rtol=0)
    for before, after in zip(jax.tree.leaves(frozen), jax.tree.leaves(ours), strict=True):
        assert np.any(before != after)


def test_steps_smaller_than_bfloat16_s_rounding_are_not_lost():
    method = method_with(SequentialFull)
    ones = jnp.ones((3,), jnp.bfloat16)
    for loaded in (ones, as_bits({"x": ones})["x"]):
        for difference, expected in ((1e-3, 1.0), (8e-3, 1.0078125)):
            shared = {"difference": {"x": jnp.full((3,), difference)}}
            weights = method.llm_weights({"x": loaded}, shared)["x"]
            assert weights.dtype == jnp.bfloat16
            np.testing.assert_array_equal(weights.astype(jnp.float32), [expected] * 3)


# All methods


TRAINED = {name for name, method in METHODS.items() if method.traits.trains}


@pytest.mark.parametrize("name", sorted(TRAINED - {"joint", "replay", "inf_lora"}))
def test_each_method_s_loss_falls_and_its_memory_stays(name):
    """Joint training and replay have the step of sequential LoRA; InfLoRA begins with inputs."""
    method = method_of(METHODS[name], targets=TARGETS)
    chosen = context_with(method)
    starting = starting_of(chosen)
    stream = starting.stream(TASKS)
    begun = starting.begin(stream.shared, 0, memory=stream.memory)
    start = starting.task_start(0)
    state = init_train_state(method, OPTIMIZER, begun, jax.random.key(0), start)
    memory, batch = state.memory, batch_of(random_examples(LENGTHS), "lm", training=True)
    losses = []
    for _ in range(8):
        state, metrics = compiled_step(
            state, frozen_params(), batch, jnp.float32(5e-2), context=chosen, optimizer=OPTIMIZER
        )
        losses.append(float(metrics["loss_instruction"]))
    assert losses[-1] < 0.9 * losses[0]
    assert_bit_equal(state.memory, memory)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("o_lora", {"weight": -1.0}, "o_lora.weight = -1.0 must be at least 0"),
        ("o_lora", {"form": "cubed"}, "o_lora.form = 'cubed' is not one of absolute, squared"),
        ("mocl", {"match": -1.0}, "mocl.match = -1.0 must be at least 0"),
        ("n_lora", {"weight": -1.0}, "n_lora.weight = -1.0 must be at least 0"),
        ("inf_lora", {"threshold": 1.5}, "inf_lora.threshold = 1.5 must be at most 1"),
        ("gain_lora", {"hidden": 0}, "gain_lora.hidden = 0 must be at least 1"),
        ("replay", {"memory": -1}, "replay.memory = -1 must be at least 0"),
        ("ewc", {"decay": 2.0}, "ewc.decay = 2.0 must be at most 1"),
        ("ewc", {"decay": -0.5}, "ewc.decay = -0.5 must be at least 0"),
        ("ewc", {"examples": 0}, "ewc.examples = 0 must be at least 1"),
        ("lwf", {"temperature": 0.0}, "lwf.temperature = 0.0 must be above 0"),
    ],
)
def test_options_out_of_range_are_named(name, option, message):
    with pytest.raises(UserError, match=message):
        METHODS[name].Options(**option)
