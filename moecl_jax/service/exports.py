"""What leaves the review store: files of a task, Label Studio's JSON, and the audit."""

import json
from collections.abc import Iterator
from typing import Any

from moecl_jax.service import review_tables as tables
from moecl_jax.service.agreement import settled_label
from moecl_jax.service.reviews import VERSIONS, ReviewStore, as_audit

FORMATS = ("task", "label-studio", "audit")


def export(
    store: ReviewStore, form: str, task: str | None = None, *, unsettled: bool = False
) -> Iterator[str]:
    r"""The pieces of a file, of the store as it is when the first is taken.

    `task` is a file that a task with `source="jsonl"` and `labels` reads: a line a text, with
    `text` and `label`, and besides `id`, `context`, `reviewers`, `decided_at`, `settled` and
    `model`, which a task leaves aside.

        {"text": "Win!", "label": "spam", "id": 7, "context": {}, "reviewers": ["An"], ...}

    `label-studio` is JSON to import into a Label Studio project with a `<Text name="text"
    value="$text"/>` and `<Choices name="label" toName="text">`: each decision is an annotation,
    and what the model said a prediction. Source: Label Studio's documentation, "Label Studio JSON
    format of annotated tasks". `audit` is a line a row, oldest first.

    Args:
      store: store of the reviews.
      form: one of `FORMATS`.
      task: name of the task; None for all. A file of a task should hold one.
      unsettled: whether also texts that wait for another reviewer are given, with the newest
        label; the audit is always whole.
    """
    lines = _audit(store, task) if form == "audit" else _reviewed(store, task, unsettled)
    if form == "label-studio":
        before = "[\n"
        for line in lines:
            yield before + _json(_label_studio(line))
            before = ",\n"
        yield "[]\n" if before == "[\n" else "\n]\n"
        return
    for line in lines:
        yield _json(_task_line(line) if form == "task" else line) + "\n"


def _reviewed(store: ReviewStore, task: str | None, unsettled: bool) -> Iterator[dict[str, Any]]:
    """Texts that a reviewer has decided, with their votes."""
    with store.snapshot() as db:
        for row in db.execute(tables.REVIEWED, {"task": task}):
            votes = [
                dict(vote) for vote in db.execute(tables.STANDING, (row["id"],))
            ]  # they are few, and indexed
            settled = settled_label(row["label"], [vote["label"] for vote in votes])
            if settled is not None or unsettled:
                yield {**dict(row), "votes": votes, "settled": settled}


def _audit(store: ReviewStore, task: str | None) -> Iterator[dict[str, Any]]:
    with store.snapshot() as db:
        for row in db.execute(tables.AUDIT, {"task": task}):
            yield as_audit(row)


def _task_line(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "text": row["text"],
        "label": row["settled"] or row["votes"][-1]["label"],
        "id": row["id"],
        "context": json.loads(row["context"]),
        "reviewers": [vote["reviewer"] for vote in row["votes"]],
        "decided_at": row["votes"][-1]["at"],
        "settled": row["settled"] is not None,
        "model": json.loads(row["answer"]),
    }


def _label_studio(row: dict[str, Any]) -> dict[str, Any]:
    answer = json.loads(row["answer"])
    return {
        "id": row["id"],
        "data": {
            "text": row["text"],
            "task": row["task"],
            "context": json.loads(row["context"]),
            "reviewers": [vote["reviewer"] for vote in row["votes"]],
        },
        # Without `completed_by`, for Label Studio knows its own users alone.
        "annotations": [
            {
                "result": [_choice(f"decision-{vote['id']}", vote["label"])],
                "created_at": vote["at"],
                "was_cancelled": False,
                "ground_truth": vote["label"] == row["settled"],
            }
            for vote in row["votes"]
        ],
        "predictions": [
            {
                "model_version": " ".join(str(answer.get(key)) for key in VERSIONS),
                "score": answer["probabilities"][row["label"]],
                "result": [_choice(f"model-{row['id']}", row["label"])],
            }
        ],
    }


def _choice(name: str, label: str) -> dict[str, Any]:
    return {
        "id": name,
        "from_name": "label",
        "to_name": "text",
        "type": "choices",
        "value": {"choices": [label]},
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
