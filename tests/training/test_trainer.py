"""Training from Python: in memory and in a workdir, with methods and policies of one's own."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from streams import (
    CLASSES,
    assert_bit_equal,
    logged,
    stop_after,
    tiny_settings,
    watched_batches,
)

from moecl_jax.data.rehearsal import ClassBalanced, PastTask
from moecl_jax.errors import UserError
from moecl_jax.methods import Penalty
from moecl_jax.methods.replay import Replay
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.runs.history import Evaluation, History
from moecl_jax.serving.session import model_of, open_run
from moecl_jax.training.trainer import StreamTraining, Trainer, train

TWO = ("two", "five")
STEPS = 6  # of a task: one epoch of 48 examples, 8 a batch
CLOCK = ("wall_seconds",)
TEXTS = ["w20 w3 w31", "w40 w2 w50"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Settings of one epoch, the model that they name, and the three tasks."""
    settings = tiny_settings(tmp_path_factory.mktemp("stream"), epochs=1)
    return settings, model_of(settings), settings.task_objects()


def trainer_of(begun, method="moe_cl", workdir=None, **changes):
    settings, model, _ = begun
    return Trainer(model, method, workdir=workdir, settings=settings, **changes)


def measured(session):
    """What a session's results hold, but for the clock."""
    return {key: value for key, value in session.results.content.items() if key not in CLOCK}


def assert_same_session(ours, theirs):
    """Fails unless results, all trees and answers of two sessions are equal, bit for bit."""
    assert measured(ours) == measured(theirs)
    for part in ("shared", "memory"):
        assert_bit_equal(getattr(ours.state, part), getattr(theirs.state, part))
    assert_bit_equal(dict(ours.state.finished), dict(theirs.state.finished))
    assert ours.predict(TEXTS, ours.tasks[0]) == theirs.predict(TEXTS, theirs.tasks[0])


@pytest.fixture(scope="module")
def in_memory(begun):
    """MoE-CL trained on two tasks in memory."""
    return trainer_of(begun).fit(begun[2][:2])


def test_in_memory_a_stream_is_the_one_of_a_workdir(begun, in_memory, tmp_path):
    session = trainer_of(begun, workdir=tmp_path / "run").fit(begun[2][:2])
    assert_same_session(in_memory, session)
    assert_same_session(in_memory, open_run(tmp_path / "run"))
    # A text whose task nobody names goes by the features that each of them keeps.
    assert in_memory.predict(TEXTS) == session.predict(TEXTS)


def test_a_config_trains_what_python_does(begun, in_memory, tmp_path):
    results = train(begun[0].changed({"tasks": TWO}), tmp_path / "run")
    assert {k: v for k, v in results.items() if k not in CLOCK} == measured(in_memory)


@pytest.mark.slow
def test_a_stream_in_memory_goes_on_with_more_tasks_as_in_a_workdir(begun, tmp_path):
    sessions = []
    for workdir in (None, tmp_path / "run"):
        trainer = trainer_of(begun, workdir=workdir)
        first = trainer.fit(begun[2][:2])
        again = trainer.fit(begun[2])
        assert again.tasks == list(CLASSES)
        matrix = np.array(again.results.content["accuracy_matrix"])
        np.testing.assert_array_equal(matrix[:2, :2], first.results.content["accuracy_matrix"])
        for name in TWO:
            assert_bit_equal(first.state.finished[name], again.state.finished[name])
        sessions.append(again)
    assert_same_session(*sessions)


@pytest.mark.parametrize("method", ["sequential_lora", "per_task"])
def test_a_task_added_later_is_as_if_it_had_been_there_from_the_start(begun, method):
    trainer = trainer_of(begun, method)
    trainer.fit(begun[2][:2])
    added = trainer.fit(begun[2])
    at_once = trainer_of(begun, method).fit(begun[2])
    assert_same_session(added, at_once)


def test_finished_tasks_are_not_trained_again(begun, monkeypatch):
    trainer = trainer_of(begun, "sequential_lora")
    first = trainer.fit(begun[2][:1])
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        assert_same_session(trainer.fit(begun[2][:1]), first)


def test_a_stream_in_memory_that_was_interrupted_trains_the_task_from_its_start(
    begun, in_memory, monkeypatch
):
    trainer = trainer_of(begun)
    with monkeypatch.context() as patch:
        stop_after(patch, STEPS + 3)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(begun[2][:2])
    assert_same_session(trainer.fit(begun[2][:2]), in_memory)


@pytest.mark.parametrize("in_workdir", [True, False])
def test_tasks_may_only_be_added_at_the_end(begun, in_workdir, tmp_path):
    two, five, fourteen = begun[2]
    trainer = trainer_of(begun, "per_task", tmp_path / "run" if in_workdir else None)
    trainer.fit([two, five])
    for tasks in ([five, two], [five], [two], [fourteen, two, five], [two, fourteen]):
        with pytest.raises(UserError, match=r"begun with the tasks two, five; the list may only"):
            trainer.fit(tasks)
    assert trainer.fit([two, five]).tasks == ["two", "five"]


def test_a_stream_needs_tasks_of_different_names(begun):
    trainer, two = trainer_of(begun), begun[2][0]
    with pytest.raises(UserError, match=r"at least one task, none twice; it holds \[\]"):
        trainer.fit([])
    with pytest.raises(UserError, match=r"none twice; it holds \['two', 'two'\]"):
        trainer.fit([two, two])


# Methods and policies of a user's


class Balanced(Replay):
    """Replay with equal shares of each class of each earlier task."""

    name = "balanced"

    @property
    def examples(self):
        return ClassBalanced(self.options.memory, self.options.batch)


@pytest.fixture
def batches(monkeypatch):
    return watched_batches(monkeypatch)


def test_a_class_balanced_memory_joins_each_batch(begun, batches, monkeypatch, tmp_path):
    method = Balanced(memory=10, batch=3)
    session = trainer_of(begun, method, tmp_path / "whole").fit(begun[2][:2])
    assert session.results.content["stored_examples"] == 10
    first = session.evaluator.load()[0]
    labels = np.array([example.label for example in first.splits["train"]])
    kept = method.examples.stored({}, [PastTask("two", labels)], begun[0].seed)
    assert np.bincount([labels[place] for _, place in kept]).tolist() == [5, 5]
    prompts = [tuple(first.splits["train"][place].prompt) for _, place in kept]
    assert len(batches) == 2 * STEPS
    for step, (index, examples) in enumerate(batches):
        assert len(examples) == (8 if index == 0 else 11)
        if index == 1:
            drawn = method.examples.draw(begun[0].seed, 1, step - STEPS, 10)
            assert examples[8:] == [prompts[place] for place in drawn]

    resumed = tmp_path / "resumed"
    with monkeypatch.context() as patch:
        stop_after(patch, STEPS + 5)  # a step after a checkpoint in the second task
        with pytest.raises(KeyboardInterrupt):
            trainer_of(begun, method, resumed).fit(begun[2][:2])
    assert_same_session(trainer_of(begun, method, resumed).fit(begun[2][:2]), session)
    assert logged(resumed) == logged(tmp_path / "whole")
    assert_same_session(open_run(resumed), session)


class Anchored(SequentialLora):
    """Keeps the very trees that it is given, and watches what it may ask at a task's end."""

    name = "anchored"
    ends: list = []  # noqa: RUF012 -- of the test that follows

    def init_memory(self, sizes, task_count):
        return {"anchor": self.init_shared(jax.random.key(0), sizes, task_count)}

    def begin_task(self, parameters, start):
        del start
        return {"anchor": parameters.shared}

    def penalty(self, parameters, inputs):
        del inputs
        anchor = parameters.memory["anchor"]
        moved = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), parameters.shared, anchor)
        return Penalty(1e-2 * sum(jax.tree.leaves(moved)))

    def finish_task(self, parameters, end):
        asked = [end.mean_of_gradients(4, transform) for transform in (same, jnp.square)]
        self.ends.append((end, end.losses(), parameters, asked))
        return parameters.replace(memory={"anchor": parameters.shared})


def same(leaf):
    return leaf


@pytest.mark.slow
def test_a_method_may_keep_what_it_was_given_and_ask_about_its_task(begun):
    Anchored.ends.clear()
    session = trainer_of(begun, Anchored, epochs=2).fit(begun[2][:2])
    assert_bit_equal(session.state.memory["anchor"], session.state.shared)
    tasks = session.evaluator.load()
    for index, (end, losses, parameters, (slopes, squares)) in enumerate(Anchored.ends):
        examples = tasks[index].splits["train"]
        labels = [example.label for example in examples]
        assert (end.index, [task.name for task in end.past]) == (index, list(TWO[:index]))
        assert end.labels.tolist() == labels
        for past, task in zip(end.past, tasks, strict=False):
            assert past.labels.tolist() == [example.label for example in task.splits["train"]]
        scores = session.evaluator.scores(parameters, index, examples).scores
        np.testing.assert_array_equal(losses, -scores[range(len(labels)), labels])
        assert losses.dtype == np.float64 and losses.min() > 0
        # A mean of squares is no less than the square of the mean.
        assert jax.tree.structure(slopes) == jax.tree.structure(parameters.shared)
        for slope, square in zip(*map(jax.tree.leaves, (slopes, squares)), strict=True):
            assert np.all(square >= slope**2 * (1 - 1e-5))
            assert np.any(slope < 0) and np.any(square > 0)
    first = Anchored.ends[0][2]
    assert_bit_equal(Anchored.ends[1][2].memory["anchor"], first.shared)


def test_a_user_s_method_is_named_by_its_class_in_settings(begun):
    trainer = trainer_of(begun, Balanced(memory=5))
    assert trainer.settings.method == f"{__name__}:Balanced"
    assert trainer.method.options == dataclasses.replace(Balanced().options, memory=5)
    assert trainer.settings.method_object().options == trainer.method.options


def test_a_task_s_own_values_are_looked_at_when_the_tasks_are_known(begun, monkeypatch):
    monkeypatch.setattr(Trainer, "_train", lambda _, settings, __: settings)
    settings, model, tasks = begun
    own = {tasks[0].name: {"epochs": 7}}
    others = settings.changed({"tasks": ("trec",)})
    trainer = Trainer(model, settings=others, task_settings=own)
    assert trainer.fit(tasks[:2]).task_settings == own
    with pytest.raises(UserError, match=r"task_settings\.two: config\.tasks has no such task"):
        trainer.fit(tasks[1:])
    of_settings = settings.changed({"task_settings": own})
    assert Trainer(model, settings=of_settings).fit(tasks[:2]).task_settings == own


def test_columns_of_added_tasks_are_measured_as_in_a_stream_that_had_them(monkeypatch):
    asked = []

    def evaluate(_, __, column, split, *, early=False):
        asked.append((column, split, early))
        return Evaluation(0.5, 0.25, -1.0)

    monkeypatch.setattr(StreamTraining, "evaluate_task", evaluate)
    training = object.__new__(StreamTraining)
    training.tasks, training.joint = ["two", "five", "six"], False
    training.evaluator, training.store = mock.MagicMock(), mock.MagicMock()
    history = History(
        [0.1, 0.2], accuracy=[[0.9, 0.3], [0.8, 0.7]], scored=[[0.9, 0.3], [0.8, 0.7]]
    )
    training._fill_columns(history)
    assert asked == [(2, "test", True)] * 3  # untrained, and after each of two tasks
    assert history.random_init == [0.1, 0.2, 0.5] and history.accuracy[1] == [0.8, 0.7, 0.5]
