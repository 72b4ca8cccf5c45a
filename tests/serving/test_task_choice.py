"""The choice of a task by its features, against hand-worked numbers and float64 NumPy."""

import functools

import jax
import numpy as np
import pytest
from tiny import CONFIG, batch_of, frozen_params, random_examples

from moecl_jax.data.batching import BatchLayout
from moecl_jax.models.decoder import Decoder
from moecl_jax.models.model import Architecture
from moecl_jax.runs.features import TaskFeatures, shrink
from moecl_jax.serving.scoring import Scoring
from moecl_jax.serving.task_choice import extract, feature_step

CROSS = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]], np.float32)
SCORING = Scoring(BatchLayout(4, True, 32, 1, 1))


@pytest.fixture(scope="module")
def step():
    return jax.jit(functools.partial(feature_step, architecture=Architecture(CONFIG)))


def clouds(counts, width, seed=0):
    """Features of tasks with one covariance, far from diagonal, and means of their own."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(width, width))
    return [
        (generator.normal(size=(count, width)) @ mixing + 2 * generator.normal(size=(1, width)))
        for count in counts
    ]


def features_of(samples):
    known = TaskFeatures.blank(samples[0].shape[1])
    for index, sample in enumerate(samples):
        known = known.joined(TaskFeatures.of(f"task {index}", sample.astype(np.float32)))
    return known


def test_a_choice_worked_by_hand():
    """The pooled variances are 4 / 6 and 16 / 6, and nothing is correlated.

    (0, 4) is nearer to (3, 4) than to (0, 0), 9 against 16; by variance 13.5 against 6. And
    (1.6, 2) is at 3.84 + 1.5 from the one and 2.94 + 1.5 from the other.
    """
    known = features_of([CROSS, CROSS + np.array([[3.0, 4.0]], np.float32)])
    np.testing.assert_array_equal(known.counts, [4, 4])
    np.testing.assert_array_equal(known.means, [[0, 0], [3, 4]])
    np.testing.assert_array_equal(known.scatter, [[4, 0], [0, 16]])
    points = np.array([[0.0, 4.0], [1.6, 2.0], [0, 0], [3, 4]], np.float32)
    np.testing.assert_array_equal(known.choose(points), [0, 1, 0, 1])


def test_shrinkage_worked_by_hand():
    """With D = 2 and correlation r, rho is 2 / (n r^2)."""
    correlation = np.array([[1.0, 0.8], [0.8, 1.0]])
    np.testing.assert_allclose(shrink(correlation, 10), [[1.0, 0.55], [0.55, 1.0]])
    np.testing.assert_array_equal(shrink(correlation, 2), np.eye(2))
    np.testing.assert_array_equal(shrink(np.eye(2), 10), np.eye(2))


@pytest.mark.parametrize("counts", [(40, 25, 60), (4, 2, 5)], ids=["n > D", "n < D"])
def test_choices_are_those_of_mahalanobis_distances_in_float64(counts):
    samples, points = clouds(counts, 12), np.concatenate(clouds((50, 50, 50), 12))
    scatter = sum((s - s.mean(0)).T @ (s - s.mean(0)) for s in samples)
    covariance = scatter / (sum(counts) - 3)
    scale = np.sqrt(np.diag(np.diag(covariance)))
    inverse = np.linalg.inv(scale)
    shrunk = scale @ shrink(inverse @ covariance @ inverse, sum(counts) - 3) @ scale
    offsets = points[:, None] - np.stack([s.mean(0) for s in samples])[None]
    distances = np.einsum("ntd,de,nte->nt", offsets, np.linalg.inv(shrunk), offsets)
    nearest, second = np.sort(distances, axis=1)[:, :2].T
    clear = second - nearest > 1e-3
    assert clear.mean() > 0.95
    choices = features_of(samples).choose(points.astype(np.float32))
    np.testing.assert_array_equal(choices[clear], distances.argmin(axis=1)[clear])


def test_tasks_of_one_covariance_are_told_apart_where_nearest_means_fail():
    generator = np.random.default_rng(0)
    loud = np.array([[100.0, 1.0]])
    samples = [loud * generator.normal(size=(200, 2)) + [[0, shift]] for shift in (0.0, 8.0)]
    known = features_of([sample[:100] for sample in samples])
    fresh = np.concatenate([sample[100:] for sample in samples])
    truth = np.repeat([0, 1], 100)
    nearest = ((fresh[:, None] - known.means[None]) ** 2).sum(-1).argmin(1)
    assert (known.choose(fresh) == truth).all()
    assert (nearest == truth).mean() < 0.75


def test_a_feature_that_never_varies_and_a_single_text_do_no_harm():
    constant = np.ones((3, 4), np.float32)
    known = features_of([constant, 2 * constant])
    np.testing.assert_array_equal(known.choose(np.array([[1.1] * 4, [1.9] * 4])), [0, 1])
    assert features_of([constant[:1]]).choose(constant).tolist() == [0, 0, 0]


def test_a_feature_is_the_mean_of_the_frozen_model_s_hidden_states(step):
    examples = random_examples((7, 3, 11, 5, 9))
    texts = [example.prompt for example in examples]
    features = extract(step, frozen_params(), texts, SCORING)
    assert features.shape == (5, CONFIG.width) and features.dtype == np.float32
    for text, feature in zip(texts, features, strict=True):
        ids = text[None]
        whole = np.ones((1, len(text)), np.float32)
        hidden, _ = Decoder(CONFIG).apply(
            {"params": frozen_params()},
            ids,
            np.arange(len(text))[None],
            ids * 0 + 1,
            ids * 0,
            whole,
        )
        np.testing.assert_allclose(feature, hidden.mean(axis=0), rtol=2e-5, atol=2e-6)


def test_features_are_the_same_each_time_and_padding_has_none(step):
    examples = random_examples((7, 3))
    batch = batch_of(examples, "classification", training=False, batch_size=4)
    first, second = step(frozen_params(), batch), step(frozen_params(), batch)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[2:], 0.0)
