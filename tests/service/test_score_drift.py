"""A service says when scores are no longer those of the validation texts."""

import asyncio
import logging
import types

import httpx
import numpy as np
import pytest
from labellers import FakeLabeller

from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.decisions import Drift
from moecl_jax.decisions.drift import FEWEST
from moecl_jax.service import labelling
from moecl_jax.service.app import make_app
from moecl_jax.service.engine import Engine
from moecl_jax.service.keys import Keys
from moecl_jax.service.labelling import Labeller
from moecl_jax.serving.session import open_run


@pytest.fixture
def engine():
    """Answers for `mail`, whose validation texts have any probabilities, and `news` without."""
    labeller = FakeLabeller()
    spam = np.random.default_rng(0).random(200)
    labeller.drifts = {"mail": Drift(np.stack([1 - spam, spam], axis=1))}
    engine = Engine(labeller)
    engine.start()
    yield engine
    engine.close()


def asked(engine, texts, task):
    """The tasks, and the lines of the metrics on drift, after some texts were answered."""

    async def go():
        transport = httpx.ASGITransport(make_app(engine, Keys({})))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            if texts:
                body = {"texts": texts, "task": task}
                (await client.post("/v1/classify", json=body)).raise_for_status()
            tasks = (await client.get("/v1/tasks")).json()["tasks"]
            return tasks, (await client.get("/metrics")).text

    tasks, metrics = asyncio.run(go())
    found = {task["name"]: task["drift"] for task in tasks}
    return found, [line for line in metrics.splitlines() if line.startswith("moecl_score_drift")]


def test_scores_that_are_other_ones_are_told_everywhere(engine, caplog):
    found, lines = asked(engine, [], None)
    nothing = {"drifted": False, "p_value": 1.0, "reference": 200, "texts": 0, "tested": 0}
    assert found == {"mail": nothing, "news": None}
    assert lines == [
        'moecl_score_drift{task="mail"} 0.0',
        'moecl_score_drift_p_value{task="mail"} 1.0',
    ]
    with caplog.at_level(logging.WARNING):
        found, lines = asked(engine, ["s"] * (FEWEST + 1), "mail")  # all have 0.9
    assert found["mail"]["drifted"] and found["mail"]["p_value"] < 0.01
    assert (found["mail"]["texts"], found["mail"]["tested"]) == (FEWEST + 1, FEWEST)
    assert lines[0] == 'moecl_score_drift{task="mail"} 1.0'
    (record,) = [record for record in caplog.records if "choose new thresholds" in record.message]
    assert "task mail" in record.message


def test_texts_of_other_tasks_and_errors_do_not_count(engine):
    found, _ = asked(engine, ["broken", "unreadable", "s"], "mail")
    assert found["mail"]["texts"] == 1
    found, _ = asked(engine, ["s"] * FEWEST, "news")
    assert found["mail"]["texts"] == 1 and found["news"] is None


def test_another_checkpoint_has_scores_of_its_own(engine):
    asked(engine, ["s"] * FEWEST, "mail")
    first = engine.labeller
    engine.switch(FakeLabeller("second"))
    assert asked(engine, ["s"], "mail") == ({"mail": None, "news": None}, [])
    engine.switch(first)
    assert asked(engine, [], None)[0]["mail"]["drifted"]


def test_validation_texts_are_asked_as_texts_are_that_come():
    """With their texts, by which methods compare that answer from examples."""
    labeller, asked = object.__new__(Labeller), []
    example = TokenizedExample(np.zeros(3, np.int32), 0, text="w1 w2")
    labeller._evaluator = types.SimpleNamespace(
        index=lambda _: 0, same=lambda _: [0], names=["mail"]
    )
    labeller.session = types.SimpleNamespace(examples=lambda _: {"mail": [example] * FEWEST})
    labeller.tasks, labeller.labels, labeller.most_texts = ["mail"], {"mail": ("a", "b")}, 16
    labeller.drifts = {}

    def label(prompts):
        asked.extend(prompts)
        return [{"probabilities": {"a": 0.5, "b": 0.5}}] * len(prompts)

    labeller.label = label
    labeller.watch_scores()
    assert labeller.drifts["mail"].found.reference == FEWEST
    assert [prompt.example.text for prompt in asked] == ["w1 w2"] * FEWEST


def test_a_session_s_validation_texts_are_what_scores_are_compared_with(trained, monkeypatch):
    labeller = Labeller(open_run(trained / "run"))
    labeller.watch_scores()
    assert labeller.drifts == {}  # 48 texts are too few
    monkeypatch.setattr(labelling, "FEWEST", 48)
    labeller.watch_scores()
    assert {task: drift.found.reference for task, drift in labeller.drifts.items()} == {
        "two": 48,
        "five": 48,
    }
    session = labeller.session
    texts = [example.text for example in session.examples("validation")["five"]]
    known = [list(said.probabilities.values()) for said in session.predict(texts, "five")]
    evaluator = session.evaluator
    monkeypatch.setattr(
        evaluator, "settings", evaluator.settings.changed({"data": {"validation_examples": 8}})
    )
    assert len(evaluator.load()[0].splits["validation"]) == 8
    assert len(session.examples("validation")["two"]) == 48  # not as many of each label
    found = labeller.drifts["five"]._reference  # in the order of the texts' lengths
    np.testing.assert_allclose(np.sort(found, 0), np.sort(known, 0), rtol=1e-4, atol=1e-6)
