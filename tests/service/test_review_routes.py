"""The HTTP routes of the reviewer's page."""

import json
import re

import pytest
from fastapi.testclient import TestClient
from review_app import make

KEYS = {
    "caller-key-0123456789": ("system", 1),
    "reviewer-key-0123456789": ("An", 2),
}


@pytest.fixture
def client(tmp_path):
    app, store = make(tmp_path / "reviews.db")
    with TestClient(app, base_url="http://localhost") as client:
        yield client
    store.close()


@pytest.fixture
def locked(tmp_path):
    app, store = make(tmp_path / "reviews.db", KEYS)
    with TestClient(app, base_url="http://localhost") as client:
        yield client
    store.close()


def add(client, content="one\ntwo\nclear three", **fields):
    return client.post("/v1/reviews/texts", json={"content": content, **fields})


def decide(client, item=1, label="ham", request="request-1", **fields):
    body = {"item": item, "label": label, "request": request, **fields}
    return client.post("/v1/reviews/decisions", json=body)


def test_texts_are_labelled_and_queued(client):
    assert add(client).json() == {"added": 3, "repeated": 0, "refused": []}
    assert add(client).json() == {"added": 0, "repeated": 3, "refused": []}
    progress = client.get("/v1/reviews/progress").json()
    assert progress["tasks"] == {"mail": {"stripped": 1, "settled": 0, "second": 0, "open": 2}}
    assert (progress["reviewer"], progress["named"]) == ("local", False)


def test_the_opinion_is_told_after_the_decision_or_when_asked_for(client):
    add(client)
    item = client.get("/v1/reviews/next").json()["item"]
    assert "model" not in item and "probabilities" not in json.dumps(item)
    assert client.get("/v1/reviews/next?opinion=true").json()["item"]["model"]["label"]
    answer = decide(client, item["id"], reviewer="An").json()
    assert answer["reviewer"] == "An" and answer["model"]["probabilities"].keys() == {"ham", "spam"}
    undone = client.post(
        "/v1/reviews/undos", json={"request": "request-2", "reviewer": "An"}
    ).json()
    assert undone["item"]["id"] == item["id"] and "model" not in undone["item"]


def test_a_skip_does_not_tell_the_opinion(client):
    add(client)
    body = {"item": 1, "request": "request-1"}
    answer = client.post("/v1/reviews/skips", json=body)
    assert answer.status_code == 200 and "probabilities" not in answer.text


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 200),
        ({"item": 99}, 404),
        ({"item": 3}, 409),
        ({"item": 10**30}, 422),
        ({"item": 0}, 422),
        ({"label": "egg"}, 422),
        ({"label": "\ud800"}, 422),
        ({"request": "short"}, 422),
        ({"reviewer": "\ud800"}, 422),
        ({"reviewer": "<b>"}, 422),
        ({"reviewer": "安娜"}, 200),
    ],
)
def test_each_mistake_has_its_status(client, changes, status):
    add(client)
    body = {"item": 1, "label": "ham", "request": "request-1", **changes}
    answer = client.post(
        "/v1/reviews/decisions",
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == status, answer.text


def test_deciding_twice_is_a_conflict_and_a_retry_is_not(client):
    add(client)
    assert decide(client).json() == decide(client).json()
    assert decide(client, request="request-2").status_code == 409
    assert client.post("/v1/reviews/undos", json={"request": "request-3"}).status_code == 200
    assert client.post("/v1/reviews/undos", json={"request": "request-4"}).status_code == 404


@pytest.mark.parametrize(
    ("content", "fields", "status", "detail"),
    [
        ("", {}, 422, "no text"),
        ("no", {"format": "jsonl"}, 422, "line 1: no JSON"),
        ("a\n" * 10_001, {}, 413, "10001 texts; at most 10000"),
        ("a", {"format": "xml"}, 422, "format"),
    ],
)
def test_texts_that_cannot_be_added_are_named(client, content, fields, status, detail):
    answer = add(client, content, **fields)
    assert answer.status_code == status and detail in answer.text


def test_a_text_that_the_engine_refuses_does_not_hold_up_the_others(client):
    answer = add(client, "one\nrefused two\nthree").json()
    assert (answer["added"], answer["repeated"]) == (2, 0)
    assert answer["refused"] == [{"text": 2, "detail": "it does not fit"}]
    answer = add(client, "four\n" + "x" * 200_001).json()
    assert answer["refused"] == [{"text": 2, "detail": "longer than 200000 characters"}]


def test_a_caller_may_add_texts_and_is_told_the_answers(locked):
    assert add(locked).status_code == 401
    locked.headers["Authorization"] = "Bearer caller-key-0123456789"
    content = '{"text": "one", "channel": "mail"}\n{"text": "refused"}\n{"text": "clear two"}'
    told = add(locked, content, format="jsonl", answers=True).json()
    decisions = [answer and answer["decision"] for answer in told["answers"]]
    assert decisions == ["review", None, "block"]
    locked.headers["Authorization"] = "Bearer reviewer-key-0123456789"
    assert locked.get("/v1/reviews/next").json()["item"]["context"] == {"channel": "mail"}


def test_exports_are_downloads(client):
    add(client)
    decide(client, label=client.get("/v1/reviews/next?opinion=1").json()["item"]["model"]["label"])
    answer = client.get("/v1/reviews/export?format=task&unsettled=true")
    assert [json.loads(line)["id"] for line in answer.text.splitlines()] == [1]
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''reviews.jsonl"
    answer = client.get("/v1/reviews/export", params={"format": "label-studio", "task": "邮件"})
    assert answer.json() == [] and "%E9%82%AE" in answer.headers["content-disposition"]
    assert client.get("/v1/reviews/export?format=xml").status_code == 422


def test_keys_are_needed_for_all_but_the_page(locked):
    assert locked.get("/").status_code == 200
    calls = [
        ("GET", "next"), ("GET", "progress"), ("GET", "export"),
        ("POST", "decisions"), ("POST", "skips"), ("POST", "undos"),
    ]  # fmt: skip
    for method, path in calls:
        for key, status in [(None, 401), ("caller-key-0123456789", 403)]:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            answer = locked.request(method, f"/v1/reviews/{path}", json={}, headers=headers)
            assert answer.status_code == status, path


def test_the_audit_has_the_name_of_the_key(locked):
    locked.headers["Authorization"] = "Bearer reviewer-key-0123456789"
    add(locked)
    assert decide(locked, reviewer="Somebody Else").json()["reviewer"] == "An"
    progress = locked.get("/v1/reviews/progress").json()
    assert (progress["reviewer"], progress["named"]) == ("An", True)


def test_a_key_whose_holder_is_named_local_is_a_key_like_others(tmp_path):
    key = "a" * 16
    app, store = make(tmp_path / "reviews.db", {key: ("local", 3)})
    headers = {"Authorization": f"Bearer {key}"}
    with TestClient(app, base_url="http://localhost", headers=headers) as client:
        add(client)
        assert decide(client, reviewer="Somebody Else").json()["reviewer"] == "local"
        assert client.get("/v1/reviews/progress").json()["named"]
    store.close()


def test_the_page_asks_nobody_else(client):
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';") and "unsafe" not in policy
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    modules = ["page/picture.js", "page/service.js", "page/text.js", "page/words.js"]
    for name in [*files, *modules]:
        answer = client.get(f"/{name}")
        assert answer.status_code == 200, name
        found = set(re.findall(r"https?://[^\"' ]+", answer.text))
        assert found <= {"http://www.w3.org/2000/svg"}, name
        if name.endswith(".js"):
            assert answer.headers["content-type"].startswith("text/javascript")
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacent|document\.write|eval", answer.text
            )
    assert not re.search(r"<script>|style=|\son\w+=", page.text)


def test_every_word_of_the_page_is_in_both_languages(client):
    table = client.get("/page/words.js").text
    keys = set(re.findall(r"^  (\w+): \[", table, re.MULTILINE))
    sources = [client.get(f"/page/{name}.js").text for name in ("page", "picture", "text")]
    html = client.get("/").text
    used = set(re.findall(r'data-(?:word|label)="(\w+)"', html))
    for source in sources:
        used |= set(re.findall(r'word\(\s*"(\w+)"', source))
    assert used <= keys and len(keys) > 50
    chinese = re.findall(r"^  (\w+): \[[^\]]*[\u4e00-\u9fff][^\]]*\]", table, re.MULTILINE)
    assert set(chinese) == keys
