"""The discriminator that also sees statistics of finished tasks: its losses, draws and limits."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import inputs_of
from tiny import CONFIG

from moecl_jax.methods.adversarial import (
    Adversarial,
    Drawn,
    adversarial_losses,
    adversarial_penalty,
    draw,
    no_statistics,
    with_statistics,
)

# One layer, one example of task 1 and a place that is filled up, three tasks, width 1.
POOLED, WEIGHTS = jnp.array([[[1.0], [7.0]]]), jnp.array([1.0, 0.0])


def drawn_of(feature, finished=1, task=0):
    return Drawn(jnp.array([[[feature], [9.0]]]), jnp.array([task, 0]), jnp.arange(3) < finished)


def losses(phi, drawn, objective="paper"):
    phi = jnp.array([[[value] for value in phi]])
    return adversarial_losses(POOLED, phi, jnp.int32(1), WEIGHTS, objective, "mean", drawn)


def test_each_task_counts_alike_and_tasks_to_come_do_not():
    # Logits of the current example (0, log 3, 9): the third task has not come yet, so p = 1/4, 3/4.
    # The feature -1 of task 0 has (0, -log 3): p = 3/4, 1/4.
    found, expert, right = losses((0.0, np.log(3), 9.0), drawn_of(-1.0))
    np.testing.assert_allclose(found, (np.log(4 / 3) + np.log(4 / 3)) / 2, rtol=1e-6)
    np.testing.assert_allclose(expert, -np.log(4 / 3), rtol=1e-6)
    assert right.tolist() == [1.0]
    # The feature 1 of task 0 is taken for task 1's.
    found, _, right = losses((0.0, np.log(3), 9.0), drawn_of(1.0))
    np.testing.assert_allclose(found, (np.log(4 / 3) + np.log(4)) / 2, rtol=1e-6)
    assert right.tolist() == [0.5]
    # With two finished tasks of which one is drawn, the past has two thirds of the weight.
    found, *_ = losses((0.0, np.log(3), -99.0), drawn_of(1.0, finished=2))
    np.testing.assert_allclose(found, (np.log(4 / 3) + 2 * np.log(4)) / 3, rtol=1e-5)


def test_confusion_is_towards_the_tasks_that_were_seen():
    _, expert, _ = losses((0.0, np.log(3), 9.0), drawn_of(-1.0), "confusion")
    np.testing.assert_allclose(expert, (np.log(4) + np.log(4 / 3)) / 2, rtol=1e-6)


def test_the_softmax_taken_twice_is_over_the_same_tasks():
    found, expert, _ = losses((0.0, np.log(3), 9.0), drawn_of(-1.0), "original")
    twice = np.log(1 + np.exp(-0.5))
    np.testing.assert_allclose([found, expert], [twice, -twice], rtol=1e-6)


@pytest.mark.parametrize("objective", ["paper", "original", "confusion"])
def test_in_the_first_task_there_is_nothing_to_tell(objective):
    arguments = jnp.array([[[1.0], [7.0]]]), jnp.array([[[2.0], [3.0], [5.0]]])

    def total(pooled, phi):
        drawn = drawn_of(3.0, finished=0)
        loss, expert, _ = adversarial_losses(
            pooled, phi, jnp.int32(0), WEIGHTS, objective, "mean", drawn
        )
        return loss + expert

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(*arguments)
    assert value == 0.0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)


def test_gradients_are_finite_and_reach_who_they_should():
    generator = np.random.default_rng(0)
    pooled = jnp.asarray(generator.standard_normal((2, 3, 4)), jnp.float32)
    phi = jnp.asarray(generator.standard_normal((2, 5, 4)), jnp.float32)
    features = jnp.asarray(generator.standard_normal((2, 3, 4)), jnp.float32)
    drawn = Drawn(features, jnp.array([0, 1, 0]), jnp.arange(5) < 2)

    def part(which):
        def of(pooled, phi):
            found = adversarial_losses(
                pooled, phi, jnp.int32(2), jnp.ones(3), "paper", "mean", drawn
            )
            return found[which]

        return jax.grad(of, argnums=(0, 1))(pooled, phi)

    of_discriminator, of_expert = part(0), part(1)
    np.testing.assert_array_equal(of_discriminator[0], 0.0)
    np.testing.assert_array_equal(of_expert[1], 0.0)
    np.testing.assert_array_equal(of_discriminator[1][:, 3:], 0.0)  # tasks to come
    assert np.abs(of_discriminator[1][:, :3]).min() > 0 and np.abs(of_expert[0]).min() > 0

    # Against numpy in float64, by central differences.
    def loss_at(values):
        logits = np.einsum("lbd,ltd->lbt", np.asarray(pooled, np.float64), values)[..., :3]
        past = np.einsum("lbd,ltd->lbt", np.asarray(features, np.float64), values)[..., :3]

        def entropy(found, labels):
            shifted = np.log(np.exp(found).sum(axis=-1))
            return (shifted - np.take_along_axis(found, labels, axis=-1)[..., 0]).mean()

        own = np.full((2, 3, 1), 2)
        earlier = np.broadcast_to(np.array([0, 1, 0])[None, :, None], (2, 3, 1))
        return (entropy(logits, own) + 2 * entropy(past, earlier)) / 3

    start, step = np.asarray(phi, np.float64), 1e-5
    for place in np.ndindex(2, 3, 4):
        up, down = start.copy(), start.copy()
        up[place] += step
        down[place] -= step
        expected = (loss_at(up) - loss_at(down)) / (2 * step)
        np.testing.assert_allclose(of_discriminator[1][place], expected, atol=1e-5)


def statistics_of(*tasks):
    """Statistics of tasks given by their pooled features `[n, L, D]`."""
    statistics = no_statistics(CONFIG, 4)
    for index, pooled in enumerate(tasks):
        statistics = with_statistics(statistics, pooled, index)
    return statistics


def test_statistics_are_means_and_deviations_of_the_training_examples():
    generator = np.random.default_rng(2)
    tasks = [generator.standard_normal((7, CONFIG.layers, CONFIG.width)) + k for k in range(2)]
    found = statistics_of(*tasks)
    assert found["seen"].tolist() == [True, True, False, False]
    for index, pooled in enumerate(tasks):
        np.testing.assert_allclose(found["mean"][:, index], pooled.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(found["deviation"][:, index], pooled.std(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(found["mean"][:, 2:], 0.0)


def test_draws_have_these_means_and_deviations_and_finished_tasks_alone():
    generator = np.random.default_rng(3)
    spread = generator.random((1, CONFIG.layers, CONFIG.width)) + 0.5
    task = np.concatenate([2 + spread, 2 - spread])  # deviation `spread`
    found = draw(statistics_of(task, -task), jax.random.key(0), jnp.arange(4000))
    tasks = np.asarray(found.tasks)
    assert set(tasks.tolist()) == {0, 1} and abs(tasks.mean() - 0.5) < 0.05
    first = np.asarray(found.features)[:, tasks == 0]
    np.testing.assert_allclose(first.mean(axis=1), 2.0, atol=0.2)
    np.testing.assert_allclose(first.std(axis=1), spread[0], rtol=0.15)
    np.testing.assert_allclose(np.asarray(found.features)[:, tasks == 1].mean(axis=1), -2, atol=0.2)


def test_a_draw_depends_on_the_example_s_place_in_the_whole_batch_alone():
    statistics = statistics_of(
        np.ones((3, CONFIG.layers, CONFIG.width)) * np.arange(3)[:, None, None]
    )
    whole = draw(statistics, jax.random.key(1), jnp.arange(6))
    piece = draw(statistics, jax.random.key(1), jnp.array([4, 1]))
    np.testing.assert_array_equal(piece.features, whole.features[:, jnp.array([4, 1])])
    other = draw(statistics, jax.random.key(2), jnp.arange(6))
    assert np.any(other.features != whole.features)


def test_of_tasks_without_spread_the_penalty_is_that_of_their_means():
    section = Adversarial("paper", alpha=0.5, past="statistics")
    constant = np.full((2, CONFIG.layers, CONFIG.width), 0.3)
    generator = np.random.default_rng(4)
    phi = jnp.asarray(generator.standard_normal((CONFIG.layers, 4, CONFIG.width)), jnp.float32)
    pooled = jnp.asarray(generator.standard_normal((CONFIG.layers, 2, CONFIG.width)), jnp.float32)
    batch = SimpleNamespace(weights=jnp.ones(2), members=None, task_index=jnp.int32(1))
    inputs = inputs_of(batch=batch, reports={"shared_pooled": pooled}, key=jax.random.key(5))
    found = adversarial_penalty(section, phi, statistics_of(constant), inputs)
    drawn = Drawn(jnp.full(pooled.shape, 0.3), jnp.zeros(2, int), jnp.arange(4) < 1)
    loss, expert, accuracy = adversarial_losses(
        pooled, phi, jnp.int32(1), jnp.ones(2), "paper", "mean", drawn
    )
    np.testing.assert_allclose(found.term, 0.5 * (loss + expert), rtol=1e-5)
    np.testing.assert_allclose(found.adversarial, loss, rtol=1e-5)
    np.testing.assert_allclose(
        found.metrics["discriminator_accuracy_by_layer"], accuracy, rtol=1e-6
    )
    without = dataclasses.replace(section, past="none")
    plain = adversarial_penalty(without, phi, None, inputs)
    expected, *_ = adversarial_losses(pooled, phi, jnp.int32(1), jnp.ones(2), "paper")
    np.testing.assert_allclose(plain.adversarial, expected, rtol=1e-6)
