"""The vote of the nearest: hand-worked numbers, what it reduces to, and a stream."""

import math

import numpy as np
import pytest
from streams import assert_bit_equal, evaluator_of, restored, tiny_settings

from moecl_jax.errors import UserError
from moecl_jax.methods.knn import Knn
from moecl_jax.methods.parameters import TaskParameters
from moecl_jax.runs.results import Results
from moecl_jax.runs.undo import remove
from moecl_jax.serving.session import open_run
from moecl_jax.training.trainer import train

CROSS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
LABELS = np.array([0, 1, 1, 0], np.int32)


def votes_of(features, *, known=CROSS, labels=LABELS, classes=2, **options):
    parameters = TaskParameters({}, {"features": known, "labels": labels}, {}, {})
    return Knn(**options).votes(parameters, np.array(features, np.float32), classes)


def test_votes_worked_by_hand():
    """(1, 0) is at cosines 1, 0, -1 and 0; of the two at 0 the first one, of label 1, votes."""
    found = votes_of([[2.0, 0.0]], k=2, temperature=0.5)
    first, second = math.exp(-2) + math.exp(2), math.exp(-2) + math.exp(0)
    np.testing.assert_allclose(found, [[math.log(first), math.log(second)]], rtol=1e-6)


def test_a_label_without_a_vote_has_the_least_score():
    found = votes_of([[2.0, 0.0]], k=1, temperature=0.25, classes=3)
    np.testing.assert_allclose(found[0, 1:], [-4.0, -4.0])
    np.testing.assert_allclose(found[0, 0], math.log(math.exp(-4) + math.exp(4)), rtol=1e-6)


def test_what_all_features_have_in_common_does_not_count():
    shift = np.array([[50.0, -30.0]], np.float32)
    asked = [[2.0, 1.0], [-1.0, 0.5], [0.25, -3.0]]
    moved = votes_of(asked + shift, known=CROSS + shift)
    np.testing.assert_allclose(moved, votes_of(asked), atol=1e-4)


def test_all_neighbours_at_a_high_temperature_are_the_labels_counts():
    labels = np.array([2, 1, 2, 2], np.int32)
    found = votes_of([[0.3, 0.4]], labels=labels, classes=3, k=100, temperature=1e3)
    np.testing.assert_allclose(np.exp(found), [[1.0, 2.0, 4.0]], rtol=1e-2)


def test_an_empty_memory_is_indifferent():
    found = Knn().votes(TaskParameters({}, {}, {}, {}), np.ones((2, 5), np.float32), 3)
    np.testing.assert_array_equal(found, np.full((2, 3), found[0, 0]))


def test_one_neighbour_answers_for_its_own_text():
    generator = np.random.default_rng(0)
    known, labels = generator.normal(size=(700, 5)), generator.integers(0, 4, 700).astype(np.int32)
    found = votes_of(known, known=known.astype(np.float32), labels=labels, classes=4, k=1)
    np.testing.assert_array_equal(found.argmax(axis=1), labels)


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    folder = tmp_path_factory.mktemp("knn")
    settings = tiny_settings(folder, method="knn", tasks=("two", "five"))
    train(settings, folder / "run")
    return folder, settings


def test_it_answers_by_the_training_texts_of_the_task(stream):
    folder, settings = stream
    evaluator = evaluator_of(settings)
    session = open_run(folder / "run")
    for task in evaluator.load():
        known, asked = (evaluator.features(task.splits[split]) for split in ("train", "test"))
        labels = np.array([example.label for example in task.splits["train"]], np.int32)
        classes = len(task.labels)
        expected = votes_of(asked, known=known, labels=labels, classes=classes)
        texts = [example.text for example in task.splits["test"]]
        found = np.array([each.logits for each in session.predict(texts, task.name)])
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
        gold = [example.label for example in task.splits["test"]]
        place = evaluator.index(task.name)
        accuracy = np.mean(expected.argmax(axis=1) == gold)
        assert session.results.matrix[1][place] == pytest.approx(accuracy, abs=0.03)


def test_nothing_is_trained_and_no_text_is_kept(stream):
    folder, settings = stream
    content = Results.load(folder / "run").content
    assert content["stored_examples"] == 0 and content["parameters"]["trained"] == 0
    matrix = np.array(content["accuracy_matrix"])
    assert matrix[0, 0] == matrix[1, 0]
    _, state, history = restored(folder / "run")
    assert history.global_step == 0
    train_texts = {name: 48 for name in settings.tasks}
    for name, done in state.finished.items():
        assert set(done.expert) == {"features", "labels"}
        assert len(done.expert["labels"]) == train_texts[name]


def test_a_stream_that_grows_is_the_one_at_once(stream, tmp_path):
    folder, settings = stream
    train(settings.changed({"tasks": ("two",)}), tmp_path / "run")
    train(settings, tmp_path / "run")
    (_, ours, _), (_, theirs, _) = restored(tmp_path / "run"), restored(folder / "run")
    for name, done in ours.finished.items():
        assert_bit_equal(done, theirs.finished[name])
    whole, grown = (Results.load(run / "run").content for run in (folder, tmp_path))
    assert whole["accuracy_matrix"] == grown["accuracy_matrix"]


def test_a_removed_task_takes_its_neighbours_along(stream, tmp_path):
    train(stream[1], tmp_path / "run")
    texts = ["w1 w20 w30", "w40 w3 w50 w2"]
    before = open_run(tmp_path / "run").predict(texts, "five")
    remove(tmp_path / "run", "two")
    assert open_run(tmp_path / "run").predict(texts, "five") == before
    _, state, _ = restored(tmp_path / "run")
    assert state.answering == ["five"]


def test_a_capacity_keeps_evenly_spaced_texts(stream, tmp_path):
    settings = stream[1].changed({"tasks": ("two",), "knn": {"capacity": 20}})
    train(settings, tmp_path / "run")
    _, state, _ = restored(tmp_path / "run")
    _, whole, _ = restored(stream[0] / "run")
    kept, all_labels = (s.finished["two"].expert["labels"] for s in (state, whole))
    np.testing.assert_array_equal(kept, all_labels[::3])


def test_free_text_has_no_vote(stream, tmp_path):
    definition = dict(stream[1].definitions["two"]) | {"response_field": "label", "labels": ()}
    settings = stream[1].changed({"tasks": ("free",), "definitions": {"free": definition}})
    with pytest.raises(UserError, match="votes for labels"):
        train(settings, tmp_path / "run")
