"""Exports of the review store: a file of a task, Label Studio's JSON, and the audit."""

import json

import pytest
from review_app import entry

from moecl_jax.data.task import Task
from moecl_jax.service.exports import export
from moecl_jax.service.reviews import ReviewStore

HOSTILE = 'a "quoted", <b>text</b>\nof two lines \u202e\u2028 中文'


@pytest.fixture
def store(tmp_path):
    opened = ReviewStore(tmp_path / "reviews.db")
    opened.add([
        entry(HOSTILE, first=0.9, context={"from": "x", "label": "never"}),
        entry("disputed", first=0.8),
        entry("settled by two", first=0.7),
        entry("open", first=0.6),
        entry("clear", first=0.9),
        entry("of another task", "topics", first=0.9),
    ])  # fmt: skip
    decisions = [(1, "ham", "An"), (2, "spam", "An"), (3, "spam", "An"), (3, "spam", "Bo"),
                 (6, "sport", "An"), (4, "ham", "An")]  # fmt: skip
    for item, label, reviewer in decisions:
        request = f"{reviewer}-request-{item}"
        opened.decide(item, label, reviewer=reviewer, request=request, opinion_shown=False)
    opened.undo(reviewer="An", request="undo-request")
    yield opened
    opened.close()


def test_a_task_reads_the_file(store, tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(export(store, "task", "mail")), encoding="utf-8")
    task = Task(
        "mail", source="jsonl", path=str(tmp_path), train="train.jsonl", labels=("ham", "spam")
    )
    read = [(record.fields["text"], record.fields["label"]) for record in task.records("train")]
    assert read == [(HOSTILE, "ham"), ("settled by two", "spam")]


def test_a_line_says_who_decided_and_whether_it_is_settled(store):
    lines = [json.loads(line) for line in export(store, "task", "mail", unsettled=True)]
    assert [(line["label"], line["settled"]) for line in lines] == [
        ("ham", True), ("spam", False), ("spam", True)
    ]  # fmt: skip
    assert lines[2]["reviewers"] == ["An", "Bo"]
    assert lines[0]["context"] == {"from": "x", "label": "never"}
    assert lines[0]["model"]["probabilities"]["ham"] == 0.9


def test_label_studio_gets_annotations_and_predictions(store):
    tasks = json.loads("".join(export(store, "label-studio", unsettled=True)))
    assert [task["data"]["text"] for task in tasks] == [
        HOSTILE, "disputed", "settled by two", "of another task"
    ]  # fmt: skip
    third = tasks[2]
    assert [one["result"][0]["value"] for one in third["annotations"]] == [
        {"choices": ["spam"]}
    ] * 2
    assert all(one["ground_truth"] for one in third["annotations"])
    assert not tasks[1]["annotations"][0]["ground_truth"]
    (prediction,) = third["predictions"]
    assert prediction["score"] == 0.7
    result = prediction["result"][0]
    assert (result["from_name"], result["to_name"], result["type"]) == ("label", "text", "choices")
    assert result["value"] == {"choices": ["ham"]}


def test_an_export_without_texts_is_well_formed(tmp_path):
    store = ReviewStore(tmp_path / "empty.db")
    assert json.loads("".join(export(store, "label-studio"))) == []
    assert "".join(export(store, "task")) == "".join(export(store, "audit")) == ""
    store.close()


def test_the_audit_is_whole_and_in_order(store):
    lines = [json.loads(line) for line in export(store, "audit")]
    assert [line["kind"] for line in lines] == ["decision"] * 6 + ["undo"]
    assert lines[-1]["undoes"] == 6
    assert {line["item"] for line in map(json.loads, export(store, "audit", "topics"))} == {6}


def test_decisions_go_on_while_an_export_is_read(store):
    pieces = export(store, "task", unsettled=True)
    first = next(pieces)
    store.decide(4, "ham", reviewer="Bo", request="another-request", opinion_shown=False)
    assert len([first, *pieces]) == 4
    assert len(list(export(store, "task", unsettled=True))) == 5
