"""The HTTP routes: answers, and the right refusal of whatever is wrong."""

import asyncio
import json

import httpx
import pytest
from labellers import FakeLabeller
from scored import thresholds

from moecl_jax.service.app import make_app
from moecl_jax.service.engine import Engine
from moecl_jax.service.keys import Holder, Keys, Role
from moecl_jax.service.limits import Limits
from moecl_jax.service.policy import Policy, TaskPolicy

CALLER, REVIEWER = "c" * 16, "r" * 16
KEYS = Keys({CALLER: Holder("batch", Role.CALLER), REVIEWER: Holder("ana", Role.REVIEWER)})
NO_KEYS = Keys({})
LIMITS = Limits(texts=8, text_characters=200, body_bytes=4000, body_seconds=0.3)
JSON = {"content-type": "application/json"}


@pytest.fixture
def engine():
    policy = Policy({"mail": TaskPolicy(thresholds((0.9, 0.85)), "abc123", frozenset({"spam"}))})
    engine = Engine(FakeLabeller(), policy, LIMITS)
    engine.start()
    yield engine
    engine.labeller.open.set()
    engine.close()


def ask(engine, keys=NO_KEYS, method="POST", path="/v1/classify", host="localhost", **request):
    """The response to one request."""

    async def go():
        transport = httpx.ASGITransport(make_app(engine, keys))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.request(method, path, **request)

    return asyncio.run(go())


def test_one_text_or_many(engine):
    [one] = ask(engine, json={"texts": "s", "task": "mail"}).json()["answers"]
    many = ask(engine, json={"texts": ["s", "h", "x"], "task": "news"}).json()["answers"]
    assert one == {
        "task": "mail",
        "label": "spam",
        "probabilities": {"ham": pytest.approx(0.1), "spam": 0.9},
        "decision": "block",
        "thresholds": "abc123",
        "checkpoint": "first",
        "truncated": False,
        "error": None,
    }
    assert [answer["label"] for answer in many] == ["spam", "ham", "ham"]
    assert {(answer["decision"], answer["thresholds"]) for answer in many} == {("review", None)}


@pytest.mark.parametrize(
    ("request_", "status", "detail"),
    [
        ({"json": {"texts": ["a"] * 10_000}}, 413, "more than 4000 bytes"),
        ({"json": {"texts": ["a"] * 9}}, 422, "texts: List should have at most 8 items"),
        ({"json": {"texts": "a" * 201}}, 422, "texts.0: String should have at most 200"),
        ({"json": {"texts": []}}, 422, "at least 1 item"),
        ({"json": {"texts": ["a", ""]}}, 422, "texts.1: String should have at least 1"),
        ({"json": {"texts": ["a", " \u200b"]}}, 422, "texts.1: has no visible character"),
        ({"json": {"texts": 3}}, 422, "texts: "),
        ({"json": {"texts": [None]}}, 422, "texts.0: "),
        ({"json": {}}, 422, "texts: Field required"),
        ({"json": ["a"]}, 422, "body"),
        ({"json": {"texts": "a", "tsak": "mail"}}, 422, "tsak: Extra inputs are not permitted"),
        ({"json": {"texts": "a", "task": "x"}}, 422, "no task 'x' with labels; tasks are mail"),
        ({"json": {"texts": "a", "task": "x\n" * 900}}, 422, "there is no task 'x"),
        ({"content": b'{"texts": "\xff"}', "headers": JSON}, 400, "parsing the body"),
        ({"content": b'{"texts": "\\ud800"}', "headers": JSON}, 422, "unicode"),
        ({"content": b'{"texts": NaN, "\\ud800\\n": 1}', "headers": JSON}, 422, "unicode"),
        ({"content": b"[" * 3999, "headers": JSON}, 400, "parsing the body"),
        ({"content": b'{"texts": "a"}', "headers": {"content-type": "text/plain"}}, 422, "body"),
        ({"content": b""}, 422, "body"),
        ({"content": b"x" * 4001}, 413, "more than 4000 bytes"),
        ({"content": b"x" * 4001, "headers": {"expect": "100-continue"}}, 413, "4000 bytes"),
        ({"method": "GET"}, 405, "Method Not Allowed"),
        ({"path": "/v1/other", "json": {}}, 404, "Not Found"),
        ({"path": "/healthz", "json": {}}, 413, "more than 0 bytes"),  # takes none
    ],
)
def test_what_is_wrong_is_said(engine, request_, status, detail):
    response = ask(engine, **request_)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    found = response.json()["detail"]
    assert detail in found
    assert found.isprintable()
    assert len(found) < 1000
    assert ask(engine, json={"texts": "s"}).status_code == 200


@pytest.mark.parametrize(
    ("key", "path", "status"),
    [
        (None, "/v1/tasks", 401),
        ("w" * 16, "/v1/tasks", 401),
        (CALLER[:-1], "/v1/tasks", 401),
        (CALLER, "/v1/tasks", 200),
        (REVIEWER, "/v1/tasks", 200),
        (None, "/metrics", 401),
        (CALLER, "/metrics", 200),
        (None, "/healthz", 200),
        (None, "/readyz", 200),
        (None, "/openapi.json", 200),
        (None, "/v1/other", 401),
    ],
)
def test_keys(engine, key, path, status):
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    response = ask(engine, KEYS, "GET", path, "service.example.org", headers=headers)
    assert response.status_code == status
    assert ("www-authenticate" in response.headers) == (status == 401)


def test_a_wrong_key_is_refused_before_the_body_is_read(engine):
    read = []

    async def body():
        read.append(1)
        yield b"x"

    assert ask(engine, KEYS, content=body()).status_code == 401
    assert not read


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("127.0.0.2", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST", 200),
        ("evil.example", 421),
        ("192.0.2.1", 421),
        ("127.0.0.1.evil.example", 421),
    ],
)
def test_without_keys_only_this_machine_is_answered(engine, host, status):
    assert ask(engine, json={"texts": "s"}, host=host).status_code == status


@pytest.mark.parametrize(
    ("sent", "keys", "status"),
    [
        ({"origin": "http://localhost:8000"}, NO_KEYS, 200),
        ({"origin": "http://localhost:9000"}, NO_KEYS, 403),
        ({"origin": "https://evil.example"}, NO_KEYS, 403),
        ({"origin": "null"}, NO_KEYS, 403),
        ({"origin": "null", "sec-fetch-site": "same-origin"}, NO_KEYS, 200),
        ({"sec-fetch-site": "cross-site"}, NO_KEYS, 403),
        ({"sec-fetch-site": "same-site"}, NO_KEYS, 403),  # another port
        ({"sec-fetch-site": "cross-site"}, KEYS, 200),  # no page of another site has the key
    ],
)
def test_without_keys_pages_of_other_sites_change_nothing(engine, sent, keys, status):
    headers = {**sent, "authorization": f"Bearer {CALLER}"}
    response = ask(engine, keys, json={"texts": "s"}, host="localhost:8000", headers=headers)
    assert response.status_code == status
    link = ask(engine, keys, "GET", "/healthz", host="localhost:8000", headers=headers)
    assert link.status_code == 200


def test_a_slow_body_is_not_waited_for(engine):
    async def body():
        yield b'{"texts":'
        await asyncio.sleep(30)
        yield b'"a"}'

    response = ask(engine, content=body(), headers=JSON)
    assert (response.status_code, response.headers["connection"]) == (408, "close")


def test_too_many_open_requests(engine):
    async def go():
        limits = Limits(requests=2)
        engine.limits = limits
        engine.labeller.open.clear()
        transport = httpx.ASGITransport(make_app(engine, NO_KEYS))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            asked = [
                asyncio.ensure_future(client.post("/v1/classify", json={"texts": "s"}))
                for _ in range(3)
            ]
            done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            engine.labeller.open.set()
            return [each.result() for each in done], [await each for each in waiting]

    [refused], answered = asyncio.run(go())
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert [response.status_code for response in answered] == [200, 200]


def test_a_service_that_stops_says_so(engine):
    assert ask(engine, method="GET", path="/readyz").json() == {"status": "ok"}
    engine.draining = True
    refused = ask(engine, json={"texts": "s"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert refused.headers["connection"] == "close"
    assert ask(engine, method="GET", path="/readyz").status_code == 503
    assert ask(engine, method="GET", path="/healthz").status_code == 200
    engine.close()
    assert ask(engine, method="GET", path="/healthz").status_code == 503


def test_a_failure_inside_is_500(engine):
    engine.labeller.fails = True
    with pytest.raises(RuntimeError, match="out of memory"):  # a server logs it and answers 500
        ask(engine, json={"texts": "s"})


def test_metrics_count_what_was_answered(engine):
    ask(engine, json={"texts": ["s", "h", "s"]})
    ask(engine, json={"texts": []})
    ask(engine, method="GET", path="/nowhere")
    response = ask(engine, method="GET", path="/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = response.text.splitlines()
    for line in (
        'moecl_requests_total{route="/v1/classify",status="200"} 1.0',
        'moecl_requests_total{route="/v1/classify",status="422"} 1.0',
        'moecl_requests_total{route="none",status="404"} 1.0',
        'moecl_texts_total{decision="block",task="mail"} 2.0',
        'moecl_texts_total{decision="review",task="mail"} 1.0',
        "moecl_batch_texts_sum 3.0",
        "moecl_queue_texts 0.0",
    ):
        assert line in lines


def test_tasks_and_openapi_describe_the_service(engine):
    assert ask(engine, method="GET", path="/v1/tasks").json() == {
        "tasks": [
            {"name": "mail", "labels": ["ham", "spam"], "thresholds": "abc123"},
            {"name": "news", "labels": ["ham", "spam"], "thresholds": None},
        ],
        "checkpoint": "first",
        "finds_task": True,
    }
    document = ask(engine, method="GET", path="/openapi.json").json()
    classify = document["paths"]["/v1/classify"]["post"]
    assert {"200", "400", "401", "403", "408", "413", "422", "429", "503"} <= set(
        classify["responses"]
    )
    texts = document["components"]["schemas"]["ClassifyRequest"]["properties"]["texts"]
    assert [each["type"] for each in texts["anyOf"]] == ["string", "array"]
    assert (texts["anyOf"][0]["maxLength"], texts["anyOf"][1]["maxItems"]) == (200, 8)
    assert "http" not in json.dumps(document["paths"])  # nothing is loaded from elsewhere
