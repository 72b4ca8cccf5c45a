"""The losses: golden numbers, and who is moved by which gradient in which direction."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    CONFIG,
    OPTIMIZER,
    TASK_INDEX,
    batch_of,
    context_of,
    frozen_params,
    random_examples,
    random_parameters,
)

from moecl_jax.methods import LossInputs
from moecl_jax.methods.adversarial import adversarial_losses
from moecl_jax.methods.losses import answer_loss, classification_loss
from moecl_jax.training.steps import init_train_state, loss

ADVERSARIAL = ("paper", "original", "confusion")


def test_classification_loss_is_the_mean_cross_entropy():
    # softmax: (1/2, 1/4, 1/4) and (1/6, 2/6, 3/6); labels have 1/4 and 1/2.
    logits = jnp.log(jnp.array([[2.0, 1.0, 1.0], [1.0, 2.0, 3.0]]))
    value = classification_loss(logits, jnp.array([1, 2]), jnp.ones(2))
    np.testing.assert_allclose(value, (np.log(4) + np.log(2)) / 2, rtol=1e-6)


def test_classification_loss_leaves_out_filled_up_places():
    logits = jnp.log(jnp.array([[2.0, 1.0, 1.0], [1.0, 1.0, 1e6]]))
    value = classification_loss(logits, jnp.array([0, 0]), jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)


def test_answer_loss_averages_over_the_answers_tokens_and_not_over_the_examples():
    # Axes: example, continuation, token. Three of six places are an answer's tokens.
    log_probabilities = -jnp.array([[[1.0, 2.0, 5.0]], [[9.0, 7.0, 7.0]]])
    mask = jnp.array([[[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]])
    np.testing.assert_allclose(answer_loss(log_probabilities, mask), (1 + 2 + 9) / 3, rtol=1e-6)


def test_losses_of_no_example_at_all_are_zero():
    nothing = jnp.zeros(2)
    assert classification_loss(jnp.ones((2, 3)), jnp.zeros(2, int), nothing) == 0
    assert answer_loss(-jnp.ones((2, 1, 3)), jnp.zeros((2, 1, 3))) == 0


# Two layers, an example and a filled-up place, three tasks, width 2. The current task is 2.
POOLED = jnp.array([[[1.0, 2.0], [9.0, -9.0]], [[-1.0, 0.5], [9.0, 9.0]]])
PHI = jnp.array([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]]])
WEIGHTS = jnp.array([1.0, 0.0])
# Phi times the example's features: layer 0 gives (1, 2, 3), layer 1 gives (-2, 1, -1).
LOGITS = np.array([[1.0, 2.0, 3.0], [-2.0, 1.0, -1.0]])


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def expected_adversarial(objective):
    """Both losses in float64."""
    probabilities = softmax(LOGITS)
    if objective == "original":
        probabilities = softmax(probabilities)
    gan = -np.log(probabilities[:, 2]).mean()
    if objective == "confusion":
        return gan, -np.log(probabilities).mean()
    return gan, -gan


@pytest.mark.parametrize("objective", ADVERSARIAL)
def test_adversarial_losses_equal_their_equations(objective):
    *found, accuracy = adversarial_losses(POOLED, PHI, jnp.int32(2), WEIGHTS, objective)
    np.testing.assert_allclose(found, expected_adversarial(objective), rtol=1e-6)
    # Task 2 has the largest logit in layer 0 only.
    np.testing.assert_array_equal(accuracy, [1, 0])


@pytest.mark.parametrize("objective", ADVERSARIAL)
def test_summed_over_layers_the_losses_are_the_layers_losses_together(objective):
    probabilities = softmax(LOGITS)
    if objective == "original":
        probabilities = softmax(probabilities)
    gan = -np.log(probabilities[0, 2]) - np.log(probabilities[1, 2])
    expert = -gan
    if objective == "confusion":
        expert = -np.log(probabilities[0]).mean() - np.log(probabilities[1]).mean()
    *found, _ = adversarial_losses(POOLED, PHI, jnp.int32(2), WEIGHTS, objective, "sum")
    np.testing.assert_allclose(found, (gan, expert), rtol=1e-6)


def test_adversarial_losses_are_the_numbers_worked_out_by_hand():
    # Two tasks with logits (0, log 3): softmax (1/4, 3/4).
    pooled, phi = jnp.ones((1, 1, 1)), jnp.log(jnp.array([[[1.0], [3.0]]]))
    arguments = (pooled, phi, jnp.int32(1), jnp.ones(1))
    gan = np.log(4 / 3)
    *found, accuracy = adversarial_losses(*arguments, "paper")
    np.testing.assert_allclose(found, (gan, -gan), rtol=1e-6)
    assert accuracy.tolist() == [1]
    uniform = (np.log(4) + np.log(4 / 3)) / 2
    *found, _ = adversarial_losses(*arguments, "confusion")
    np.testing.assert_allclose(found, (gan, uniform), rtol=1e-6)
    # The softmax taken twice has (1/4, 3/4) for logits.
    twice = np.log(1 + np.exp(-0.5))
    *found, _ = adversarial_losses(*arguments, "original")
    np.testing.assert_allclose(found, (twice, -twice), rtol=1e-6)


THREE_OF_FOUR = jnp.array([1.0, 1.0, 1.0, 0.0])


def random_problem(tasks=3):
    """Features of two layers and four examples, and a discriminator."""
    generator = np.random.default_rng(0)
    pooled = jnp.asarray(generator.standard_normal((2, 4, 5)), jnp.float32)
    phi = jnp.asarray(generator.standard_normal((2, tasks, 5)), jnp.float32)
    return pooled, phi


@functools.partial(jax.jit, static_argnames="objective")
def both(pooled, phi, objective):
    return adversarial_losses(pooled, phi, jnp.int32(1), THREE_OF_FOUR, objective)[:2]


def gradients_of(term, objective):
    """Gradients with respect to features and discriminator of one of the two losses."""
    index = ("discriminator", "expert").index(term)
    return jax.grad(lambda *pair: both(*pair, objective)[index], argnums=(0, 1))(*random_problem())


@pytest.mark.parametrize("objective", ADVERSARIAL)
def test_neither_loss_reaches_the_other_s_parameters(objective):
    to_features, to_phi = gradients_of("discriminator", objective)
    assert not to_features.any() and to_phi.any()
    to_features, to_phi = gradients_of("expert", objective)
    assert to_features.any() and not to_phi.any()


@pytest.mark.parametrize("objective", ADVERSARIAL)
def test_filled_up_places_get_no_gradient(objective):
    to_features, _ = gradients_of("expert", objective)
    assert not to_features[:, 3].any()
    assert (to_features[:, :3] != 0).all()


@pytest.mark.parametrize("objective", ADVERSARIAL)
def test_a_step_of_the_discriminator_lowers_its_loss(objective):
    pooled, phi = random_problem()
    stepped = phi - 0.1 * gradients_of("discriminator", objective)[1]
    before = both(pooled, phi, objective)[0]
    assert both(pooled, stepped, objective)[0] < before - 1e-4


@pytest.mark.parametrize("objective", ["paper", "original"])
def test_a_step_of_the_features_raises_the_discriminator_s_loss(objective):
    pooled, phi = random_problem()
    stepped = pooled - 0.1 * gradients_of("expert", objective)[0]
    before = both(pooled, phi, objective)[0]
    assert both(stepped, phi, objective)[0] > before + 1e-4


def to_uniform(pooled, phi):
    """Total variation between the discriminator's softmax and the uniform distribution."""
    probabilities = softmax(np.einsum("lbd,ltd->lbt", pooled, phi))
    return np.abs(probabilities - 1 / phi.shape[1]).sum(axis=-1)


def test_a_step_of_the_features_under_confusion_moves_every_prediction_towards_uniform():
    pooled, phi = random_problem()
    stepped = pooled - 0.1 * gradients_of("expert", "confusion")[0]
    assert (to_uniform(stepped, phi)[:, :3] < to_uniform(pooled, phi)[:, :3] - 1e-4).all()


@pytest.mark.parametrize("tasks", [1, 2, 3, 10])
def test_confusion_is_bounded_below_by_log_t_and_reaches_it_at_uniform(tasks):
    pooled, phi = random_problem(tasks)
    _, expert_loss = both(pooled, phi, "confusion")
    assert expert_loss > np.log(tasks) + 0.01 or tasks == 1
    _, least = both(0 * pooled, phi, "confusion")
    np.testing.assert_allclose(least, np.log(tasks), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "call",
    [
        lambda: classification_loss(jnp.ones(3), jnp.zeros(3, int), jnp.ones(3)),
        lambda: classification_loss(jnp.ones((2, 3)), jnp.zeros(3, int), jnp.ones(3)),
        lambda: classification_loss(jnp.ones((3, 3)), jnp.zeros(3, int), jnp.ones((3, 1))),
        lambda: answer_loss(jnp.ones((2, 3)), jnp.ones((2, 3))),
        lambda: answer_loss(jnp.ones((2, 1, 3)), jnp.ones((2, 1, 2))),
        lambda: adversarial_losses(POOLED, PHI, jnp.array([2, 2]), WEIGHTS, "paper"),
        lambda: adversarial_losses(POOLED[0], PHI, jnp.int32(2), WEIGHTS, "paper"),
        lambda: adversarial_losses(POOLED[:1], PHI, jnp.int32(2), WEIGHTS, "paper"),
        lambda: adversarial_losses(POOLED[..., :1], PHI, jnp.int32(2), WEIGHTS, "paper"),
    ],
)
def test_wrong_shapes_are_errors(call):
    with pytest.raises(AssertionError):
        call()


@functools.partial(jax.jit, static_argnames="context")
def loss_and_gradients(active, frozen, context):
    state = init_train_state(context.method, OPTIMIZER, active, jax.random.key(0))
    return jax.value_and_grad(loss, has_aux=True)(active, state, frozen, BATCH, context)


BATCH = batch_of(random_examples([5, 3]), "classification", training=True, batch_size=3)


def whole_loss(active, context):
    """Value and metrics, and gradients, of the training loss."""
    return loss_and_gradients(active, frozen_params(), context)


def test_alpha_0_is_plain_tuning():
    # Dropout is on: the discriminator must not change the masks either.
    off = context_of("classification", objective="off", dropout=0.3)
    without = context_of("classification", objective="paper", adversarial_alpha=0.0, dropout=0.3)
    active = random_parameters(without)
    shared = {name: active.shared[name] for name in ("expert", "gate")}
    (value, _), gradients = whole_loss(active, without)
    (value_off, _), gradients_off = whole_loss(active.replace(shared=shared), off)
    assert not gradients.shared.pop("discriminator").any()
    assert min(abs(leaf).max() for leaf in jax.tree.leaves(gradients_off)) > 1e-3
    chex.assert_trees_all_close(
        (value, gradients), (value_off, gradients_off), rtol=1e-6, atol=1e-7
    )


@functools.partial(jax.jit, static_argnames="context")
def penalty_gradients(active, frozen, context):
    """Gradients of what is added to the instruction loss, and metrics."""

    def added(active):
        state = init_train_state(context.method, OPTIMIZER, active, jax.random.key(0))
        total, metrics = loss(active, state, frozen, BATCH, context)
        return total - metrics["loss_instruction"], metrics

    return jax.grad(added, has_aux=True)(active)


@pytest.mark.parametrize("objective", ["paper", "original"])
def test_descent_moves_discriminator_and_experts_against_each_other(objective):
    chosen = context_of("classification", objective=objective, adversarial_alpha=1.0)
    active = random_parameters(chosen)
    gradients, metrics = penalty_gradients(active, frozen_params(), chosen)
    assert not gradients.head.any()
    stepped = jax.tree.map(lambda value, slope: value - 0.01 * slope, active, gradients)

    def gan_after(**parts):
        moved = active.replace(shared={**active.shared, **parts})
        return penalty_gradients(moved, frozen_params(), chosen)[1]["loss_adversarial"]

    before = metrics["loss_adversarial"]
    assert gan_after(discriminator=stepped.shared["discriminator"]) < before - 1e-5
    assert gan_after(expert=stepped.shared["expert"]) > before + 1e-5


def test_reported_loss_is_equation_10():
    chosen = context_of("classification", objective="paper", adversarial_alpha=1.0)
    _, metrics = penalty_gradients(random_parameters(chosen), frozen_params(), chosen)
    expected = metrics["loss_instruction"] - metrics["loss_adversarial"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_penalty_is_alpha_times_both_losses_of_the_current_task(reduction):
    chosen = context_of(
        "classification", objective="confusion", adversarial_alpha=0.3, reduction=reduction
    )
    active = random_parameters(chosen)
    pooled = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, CONFIG.width)))
    reports = {"shared_pooled": pooled}
    phi = active.shared["discriminator"]
    penalty = chosen.method.penalty(active, LossInputs(BATCH, reports, None, None, None, None))
    gan, expert, accuracy = adversarial_losses(
        pooled, phi, jnp.int32(TASK_INDEX), jnp.array([1.0, 1.0, 0.0]), "confusion", reduction
    )
    np.testing.assert_allclose(penalty.term, 0.3 * (gan + expert), rtol=1e-6)
    # The discriminator's own loss is differentiated, and is no part of what the log has for L.
    np.testing.assert_allclose(penalty.reported, 0.3 * expert, rtol=1e-6)
    assert penalty.adversarial == gan
    np.testing.assert_array_equal(penalty.metrics["discriminator_accuracy_by_layer"], accuracy)
    assert penalty.metrics["discriminator_accuracy"] == accuracy.mean()
    assert len(penalty.metrics) == 2
