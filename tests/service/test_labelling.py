"""A labeller answers as its session does, with programs that are compiled beforehand."""

import asyncio
import random

import jax
import numpy as np
import pytest
from streams import tiny_settings

from moecl_jax.errors import UserError
from moecl_jax.service.engine import Engine
from moecl_jax.service.labelling import Labeller
from moecl_jax.service.limits import Limits
from moecl_jax.serving.session import open_run
from moecl_jax.training.trainer import train


@pytest.fixture(scope="module")
def labeller(trained):
    labeller = Labeller(open_run(trained / "run"))
    labeller.prepare()
    return labeller


@pytest.fixture
def traced():
    """What JAX traces to compile it."""
    found, listening = [], [True]

    def listen(event, _, **details):
        if listening and event == "/jax/core/compile/jaxpr_trace_duration":
            found.append(details)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    listening.clear()


def asked(labeller, texts, limits=None):
    """Answers of an engine to (text, task) of so many requests at once."""
    engine = Engine(labeller, limits=limits or Limits(queue_texts=5000, caller_texts=5000))
    engine.start()

    async def go():
        requests = [engine.classify([text], task) for text, task in texts]
        return [answer for [answer] in await asyncio.gather(*requests)]

    try:
        return asyncio.run(go())
    finally:
        engine.close()


def test_answers_are_those_of_the_session(labeller, texts):
    given = [
        (text, task)
        for pair in zip(texts["two"], texts["five"], strict=True)
        for text in pair
        for task in ("two", "five", None)
    ]
    found = asked(labeller, given)
    for task in ("two", "five", None):
        own = [
            (text, answer) for (text, of), answer in zip(given, found, strict=True) if of == task
        ]
        expected = labeller.session.predict([text for text, _ in own], task)
        assert [answer["label"] for _, answer in own] == [each.label for each in expected]
        assert [answer["task"] for _, answer in own] == [each.task for each in expected]
        for (_, answer), prediction in zip(own, expected, strict=True):
            assert list(answer["probabilities"]) == list(prediction.probabilities)
            np.testing.assert_allclose(
                list(answer["probabilities"].values()),
                list(prediction.probabilities.values()),
                rtol=1e-4,
            )
    assert len({answer["task"] for answer in found}) == 2


def test_no_text_waits_for_a_compilation(labeller, traced):
    jax.jit(lambda x: x + 1)(np.zeros(3))
    assert traced  # the listener works
    traced.clear()
    draw = random.Random(0)
    for count in (1, 2, 5, 40, 300):
        given = [
            (
                " ".join(f"w{draw.randrange(64)}" for _ in range(draw.choice((1, 6, 30, 200)))),
                draw.choice(("two", "five", None)),
            )
            for _ in range(count)
        ]
        assert all(answer["error"] is None for answer in asked(labeller, given))
    assert not traced


def test_texts_of_both_tasks_share_a_batch_that_is_full(labeller, texts, monkeypatch):
    calls = []
    scores = labeller._evaluator.scores_of_several

    def counted(parameters, group, examples, own):
        calls.append((tuple(group), len(examples), len(set(own))))
        return scores(parameters, group, examples, own)

    monkeypatch.setattr(labeller._evaluator, "scores_of_several", counted)
    given = [
        (text, task) for pair in zip(texts["two"], texts["five"], strict=True)
        for text, task in zip(pair, ("two", "five"), strict=True)
    ]  # fmt: skip
    asked(labeller, given, Limits(linger_seconds=1.0))
    assert sum(count for _, count, _ in calls) == len(given) == 96
    assert {group for group, *_ in calls} == {(0, 1)}
    assert all(tasks == 2 for *_, tasks in calls)
    shapes = labeller._evaluator.scoring.shapes
    slots = max(shape.slots for shape in shapes)
    assert len(calls) <= 96 * 20 / slots + 2  # a text and its labels have less than 20 tokens


def test_a_batch_begins_with_the_text_that_waits_longest(labeller):
    short, long = [("w1 w2", "two")] * 50, ("w3 " * 100, "five")
    read = labeller.read([("w1 " * 100, "two"), *short[:10], long, *short])
    places = labeller.next_batch([each.prompt for each in read])
    assert places[0] == 0
    assert 11 in places  # another long text of another task
    places = labeller.next_batch([each.prompt for each in labeller.read([*short, long])])
    assert places[0] == 0
    assert 50 not in places  # enough others have waited longer
    assert len(places) > 5


@pytest.mark.slow
def test_a_version_is_that_of_the_parameters(labeller, trained, tmp_path):
    again = Labeller(open_run(trained / "run", model=labeller.session.evaluator.model))
    assert again.checkpoint == labeller.checkpoint
    assert len(again.checkpoint) == 12
    train(tiny_settings(tmp_path, tasks=("two",), epochs=1), tmp_path / "run")
    alone = Labeller(open_run(tmp_path / "run"))
    assert alone.checkpoint != labeller.checkpoint
    alone.prepare()
    assert alone.choosing_problem is None  # there is one task to choose
    assert [each.task for each in alone.read([("w1", None)])] == ["two"]


@pytest.mark.slow
def test_a_method_without_experts_a_task_cannot_find_the_task(tmp_path):
    settings = tiny_settings(tmp_path, tasks=("two", "five"), epochs=1, method="sequential_lora")
    train(settings, tmp_path / "run")
    labeller = Labeller(open_run(tmp_path / "run"))
    labeller.prepare()
    assert "keeps no expert a task" in labeller.choosing_problem
    [answer] = asked(labeller, [("w1", "five")])
    assert answer["label"] in labeller.labels["five"]


def test_free_text_alone_cannot_be_served(trained, monkeypatch):
    session = open_run(trained / "run")
    evaluator = session.evaluator
    monkeypatch.setattr(type(evaluator.tasks[0]), "free_form", property(lambda _: True))
    with pytest.raises(UserError, match=r"none of the finished tasks \(two, five\) has labels"):
        Labeller(session)
