"""Drift of scores: false alarms are as rare as is said, and a change is found."""

import numpy as np
import pytest

from moecl_jax.decisions.drift import FEWEST, MOST, Drift, Found


def drawn(generator, count, alpha):
    return generator.dirichlet(alpha, size=count)


def after(reference, texts, **values):
    drift = Drift(reference, **values)
    for text in texts:
        drift.add(text)
    return drift.found


def false_alarms(streams, texts, *, alpha, labels, reference, ties=False):
    """Share of streams without a drift in which one is told."""
    generator = np.random.default_rng(0)
    told = 0
    for _ in range(streams):
        scores = drawn(generator, reference + texts, np.linspace(0.5, 2, labels))
        if ties:
            scores = np.round(scores, 1)
        told += after(scores[:reference], scores[reference:], alpha=alpha).drifted
    return told / streams


@pytest.mark.parametrize(("labels", "ties"), [(2, False), (3, True)])
def test_false_alarms_are_at_most_alpha(labels, ties):
    """By simulation, with windows of 64 and 128 texts; 3 standard errors above alpha."""
    streams, alpha = 200, 0.2
    share = false_alarms(streams, 192, alpha=alpha, labels=labels, reference=100, ties=ties)
    assert share <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / streams)


@pytest.mark.slow
def test_false_alarms_of_a_long_stream_are_at_most_alpha():
    """In 100 streams of 12,224 texts: windows of 64 to 4096, and one more of 4096."""
    texts = sum(min(FEWEST << window, MOST) for window in range(8))
    share = false_alarms(100, texts, alpha=0.2, labels=2, reference=300)
    print(f"false alarms at alpha = 0.2: {share}")
    assert 0 < share <= 0.2 + 3 * np.sqrt(0.2 * 0.8 / 100)


def test_the_p_value_is_that_of_permutations():
    """Of the least p-value a permutation test of the same distance says the same."""
    generator = np.random.default_rng(1)
    reference, window = drawn(generator, 80, (2, 3)), drawn(generator, FEWEST, (3, 3))
    found = after(reference, window)
    pooled = np.concatenate([reference[:, 1], window[:, 1]])

    def distance(scores):
        first, second = np.sort(scores[:80]), np.sort(scores[80:])
        below = [np.searchsorted(part, scores, "right") / len(part) for part in (first, second)]
        return np.abs(below[0] - below[1]).max()

    reached = distance(pooled)
    chance = np.mean(
        [distance(generator.permutation(pooled)) >= reached - 1e-12 for _ in range(4000)]
    )
    assert 0.001 < chance < 0.2  # so that the comparison says something
    assert found.p_value == pytest.approx(1 * 1 * 2 * chance, rel=0.3)  # C k (k + 1) p


def test_a_change_of_scores_is_found_and_stays_told():
    generator = np.random.default_rng(2)
    reference = drawn(generator, 200, (1, 4))
    drift = Drift(reference)
    for text in drawn(generator, FEWEST, (1, 1)):
        drift.add(text)
    assert drift.found.drifted
    for text in drawn(generator, 2 * FEWEST, (1, 4)):
        drift.add(text)
    assert drift.found.drifted
    assert drift.found.tested == 3 * FEWEST


def test_a_late_change_is_found_in_a_window_of_its_own():
    """Among all the 3,000 texts before it would be hidden for long."""
    generator = np.random.default_rng(3)
    reference = drawn(generator, 400, (1, 4))
    texts = np.concatenate([drawn(generator, 1984, (1, 4)), drawn(generator, 2048, (1.4, 4))])
    assert not after(reference, texts[:1984]).drifted
    assert after(reference, texts).drifted


def test_another_share_of_a_label_is_a_drift_too():
    """Each label's scores are as they were; more texts have the one than before."""
    generator = np.random.default_rng(4)

    def mixed(count, share):
        first = generator.random(count) < share
        scores = np.where(first, generator.beta(8, 2, count), generator.beta(2, 8, count))
        return np.stack([scores, 1 - scores], axis=1)

    assert not after(mixed(300, 0.2), mixed(FEWEST, 0.2)).drifted
    assert after(mixed(300, 0.2), mixed(FEWEST, 0.6)).drifted


def test_what_is_counted():
    generator = np.random.default_rng(5)
    reference = drawn(generator, 100, (1, 1, 1))
    assert Drift(reference).found == Found(100)
    found = after(reference, drawn(generator, FEWEST + 2 * FEWEST + 1, (1, 1, 1)))
    assert (found.texts, found.tested, found.drifted) == (3 * FEWEST + 1, 3 * FEWEST, False)
    assert 0.01 < found.p_value <= 1
