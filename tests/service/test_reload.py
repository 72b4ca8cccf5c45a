"""A checkpoint is changed while the service answers, or is not, and is changed back."""

import asyncio
import threading
import types

import httpx
import pytest
from labellers import FakeLabeller
from streams import tiny_settings

from moecl_jax.errors import UserError
from moecl_jax.service import start
from moecl_jax.service.app import make_app
from moecl_jax.service.engine import Engine
from moecl_jax.service.keys import Holder, Keys, Role
from moecl_jax.service.reload import Reloader, add_reload
from moecl_jax.service.start import open_service
from moecl_jax.training.trainer import train

ADMIN, REVIEWER = "a" * 16, "r" * 16
KEYS = Keys({ADMIN: Holder("ops", Role.ADMIN), REVIEWER: Holder("ana", Role.REVIEWER)})


class Places:
    """Where checkpoints come from: `newest`, and accuracies by checkpoint."""

    def __init__(self):
        self.newest = FakeLabeller("second")
        self.accuracies = {
            "first": {"mail": 0.9, "news": 0.8},
            "second": {"mail": 0.89, "news": 0.85},
        }
        self.opens = threading.Event()
        self.opens.set()

    def open(self):
        assert self.opens.wait(60)
        if isinstance(self.newest, Exception):
            raise self.newest
        return self.newest


@pytest.fixture
def places():
    return Places()


@pytest.fixture
def app(places):
    engine = Engine(FakeLabeller("first"))
    engine.start()
    app = make_app(engine, KEYS)
    reloader = Reloader(engine, places.open, lambda of: places.accuracies[of.checkpoint])
    add_reload(app, reloader)
    yield app
    engine.close()


def client(app, key=ADMIN):
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://localhost",
        headers={"Authorization": f"Bearer {key}"},
        timeout=120,
    )


def asked(app, *paths, key=ADMIN):
    """The responses to requests, one after the other; "classify" asks for a text."""

    async def go():
        async with client(app, key) as asking:
            return [
                await asking.post(
                    f"/v1/{path}", json={"texts": "s"} if path == "classify" else None
                )
                for path in paths
            ]

    return asyncio.run(go())


def test_a_change_and_back(app):
    responses = asked(app, "classify", "reload", "classify", "reload", "rollback", "classify")
    assert [response.status_code for response in responses] == [200] * 6
    first, changed, second, same, back, third = (response.json() for response in responses)
    assert changed == {
        "checkpoint": "second",
        "previous": "first",
        "accuracy": {
            "mail": {"before": 0.9, "after": 0.89},
            "news": {"before": 0.8, "after": 0.85},
        },
    }
    assert same == {"checkpoint": "second", "previous": "second", "accuracy": {}}
    assert back == {"checkpoint": "first", "previous": "second", "accuracy": {}}
    found = [answers["answers"][0]["checkpoint"] for answers in (first, second, third)]
    assert found == ["first", "second", "first"]


@pytest.mark.parametrize(
    ("newest", "accuracies", "detail"),
    [
        (None, {"mail": 0.8799, "news": 0.9}, "accuracy would fall: mail from 0.900 to 0.880"),
        (None, {"mail": float("nan"), "news": 0.9}, "mail from 0.900 to nan"),
        (FakeLabeller("third", tasks=("news", "other")), {}, "lacks the tasks mail"),
        (FakeLabeller("third", labels=("ham", "ad")), {}, "the task 'mail' were ham, spam"),
        (UserError("the checkpoint is damaged"), {}, "changed: the checkpoint is damaged"),
        (OSError("no disk"), {}, "no disk"),
    ],
)
def test_a_worse_checkpoint_is_not_changed_to(app, places, newest, accuracies, detail):
    places.newest = newest or places.newest
    places.accuracies["second"] = accuracies
    refused, answers, no_change = asked(app, "reload", "classify", "rollback")
    assert (refused.status_code, no_change.status_code) == (409, 409)
    assert detail in refused.json()["detail"]
    assert answers.json()["answers"][0]["checkpoint"] == "first"


def test_data_that_cannot_be_read_are_named():
    def load(tasks):
        raise UserError(f"{tasks[-1]}.jsonl: no such file")

    evaluator = types.SimpleNamespace(
        tasks=["mail", "news"], index=["mail", "news"].index, load=load
    )
    session = types.SimpleNamespace(evaluator=evaluator)
    labeller = types.SimpleNamespace(session=session, tasks=["mail", "news"])
    with pytest.raises(UserError, match=r"news\.jsonl: no such file"):
        start._accuracies(labeller)


def test_accuracies_are_those_of_tasks_with_labels_alone():
    names, splits = ["mail", "letters", "news"], {"validation": ["a text"]}

    def load(tasks):
        return [types.SimpleNamespace(name=name, splits=splits) for name in tasks]

    accuracies = {0: 0.9, 2: float("nan")}
    evaluator = types.SimpleNamespace(
        tasks=names,
        names=names,
        index=names.index,
        load=load,
        starting=types.SimpleNamespace(task=lambda *_: None),
        evaluate=lambda _, index, __: types.SimpleNamespace(accuracy=accuracies[index]),
    )
    session = types.SimpleNamespace(evaluator=evaluator, state=None)
    found = start._accuracies(types.SimpleNamespace(session=session, tasks=["mail", "news"]))
    assert found["mail"] == 0.9 and found["news"] != found["news"] and len(found) == 2


def test_requests_are_answered_while_a_checkpoint_is_opened(app, places):
    async def go():
        async with client(app) as asking:
            places.opens.clear()
            reload = asyncio.ensure_future(asking.post("/v1/reload"))
            await asyncio.sleep(0.05)
            busy = [await asking.post(f"/v1/{path}") for path in ("reload", "rollback")]
            answer = await asking.post("/v1/classify", json={"texts": "s"})
            assert not reload.done()
            places.opens.set()
            return busy, answer, await reload

    busy, answer, reload = asyncio.run(go())
    assert [response.status_code for response in (*busy, answer, reload)] == [409, 409, 200, 200]
    assert answer.json()["answers"][0]["checkpoint"] == "first"


def test_only_an_admin_changes_a_checkpoint(app):
    for path in ("reload", "rollback"):
        assert asked(app, path, key=REVIEWER)[0].status_code == 403


@pytest.mark.slow
def test_a_task_that_is_trained_while_the_service_runs(tmp_path):
    def trained_on(*tasks):
        train(tiny_settings(tmp_path, tasks=tasks, epochs=1), tmp_path / "run")

    trained_on("two")
    app, engine = open_service(tmp_path / "run", KEYS)
    try:
        before = asked(app, "classify", "reload")
        trained_on("two", "five")
        changed, after = asked(app, "reload", "classify")
    finally:
        engine.close()
    assert before[1].json()["accuracy"] == {}
    assert changed.status_code == 200, changed.text
    accuracy = changed.json()["accuracy"]
    assert accuracy["two"]["before"] == accuracy["two"]["after"] is not None
    assert accuracy["five"]["before"] is None
    assert engine.labeller.tasks == ["two", "five"]
    found = [response.json()["answers"][0]["checkpoint"] for response in (before[0], after)]
    assert found == [changed.json()["previous"], changed.json()["checkpoint"]]
    assert found[0] != found[1]
