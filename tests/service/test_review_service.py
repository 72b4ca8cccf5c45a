"""The reviewer's page of a trained run: its own texts are labelled, decided and trained on."""

import pytest
from fastapi.testclient import TestClient

from moecl_jax.data.task import Task
from moecl_jax.service.keys import Keys
from moecl_jax.service.start import open_service


@pytest.mark.slow
def test_a_trained_run_is_reviewed(trained, texts, tmp_path):
    app, engine = open_service(trained / "run", Keys({}), reviews=tmp_path / "reviews.db")
    try:
        with TestClient(app, base_url="http://localhost") as client:
            lines = texts["two"][:6]
            body = {"content": "\n".join(lines), "task": "two"}
            added = client.post("/v1/reviews/texts", json=body).json()
            assert added == {"added": len(set(lines)), "repeated": 0, "refused": []}
            for number in range(added["added"]):
                item = client.get("/v1/reviews/next").json()["item"]
                body = {"item": item["id"], "label": item["labels"][0]}
                answer = client.post(
                    "/v1/reviews/decisions", json={**body, "request": f"request-{number}"}
                ).json()
                assert answer["versions"]["checkpoint"] == answer["model"]["checkpoint"]
            assert client.get("/v1/reviews/next").json() == {"item": None}
            exported = client.get("/v1/reviews/export?task=two&unsettled=true").text
    finally:
        engine.close()
    (tmp_path / "train.jsonl").write_text(exported, encoding="utf-8")
    task = Task(
        "two", source="jsonl", path=str(tmp_path), train="train.jsonl", labels=item["labels"]
    )
    read = {(record.fields["text"], record.fields["label"]) for record in task.records("train")}
    assert read == {(line, item["labels"][0]) for line in lines}
