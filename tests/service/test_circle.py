"""The whole circle: train, serve, review, export, train further, and reload while it is asked."""

import json
import threading
import urllib.error
import urllib.request

import pytest
from ml_collections import ConfigDict
from processes import begin, finish
from streams import tiny_config

from moecl_jax import decisions
from moecl_jax.cli.main import main
from moecl_jax.config.default import from_config
from moecl_jax.service.load import load
from moecl_jax.serving.session import open_run
from moecl_jax.testing import write_task
from moecl_jax.training.trainer import train

BEGUN, REVIEWED = 40, 40  # texts that the model is trained on first, and that are reviewed then
TARGET = 0.9


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


def measured(folder):
    """Test accuracy of task `two`, and the share of its test texts decided at the target."""
    samples = []
    for split in ("validation", "test"):
        given, said = folder / "data" / f"two_{split}.jsonl", folder / f"{split}.jsonl"
        arguments = [f"--workdir={folder / 'run'}", f"--input={given}", f"--output={said}"]
        assert main(["predict", "--task=two", *arguments]) == 0
        samples.append(decisions.read_samples(said))
    thresholds = decisions.choose(samples[0], TARGET)
    rate = decisions.strip(samples[1], thresholds).total.rate.value
    accuracy = open_run(folder / "run").evaluate()["tasks"]["two"]["accuracy"]
    return accuracy, rate


class Clients:
    """Clients that ask a service again and again, in threads of their own."""

    def __init__(self, url, texts):
        self.statuses, self._done = {}, threading.Event()
        self._thread = threading.Thread(target=self._run, args=(url, texts))
        self._thread.start()

    def _run(self, url, texts):
        while not self._done.is_set():
            for status, count in load(url, texts, clients=4, requests=40).statuses.items():
                self.statuses[status] = self.statuses.get(status, 0) + count

    def answered(self):
        return sum(self.statuses.copy().values())

    def stop(self):
        self._done.set()
        self._thread.join()
        return self.statuses


class Desk:
    """What a reviewer's page asks of a service."""

    def __init__(self, url):
        self.url, self.requests = url, 0

    def call(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/v1/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.read().decode()

    def review(self, reviewer, gold):
        """Decides all texts that wait for a reviewer; gives their number."""
        count = 0
        while item := json.loads(self.call(f"reviews/next?reviewer={reviewer}"))["item"]:
            self.requests += 1
            body = {"item": item["id"], "label": gold[item["text"]], "reviewer": reviewer}
            self.call("reviews/decisions", {**body, "request": f"request-{self.requests}"})
            count += 1
        return count


@pytest.mark.slow
def test_what_reviewers_decide_makes_the_service_better(tmp_path):
    config = tiny_config(tmp_path, tasks=("two", "five"), epochs=4)
    fields = write_task(tmp_path / "data", "two", 2, examples=400)
    pool = tmp_path / "data" / "two_train.jsonl"
    lines = lines_of(pool)
    pool.write_text("\n".join(lines[:BEGUN]) + "\n", encoding="utf-8")
    incoming = lines[BEGUN : BEGUN + REVIEWED]
    gold = {line["text"]: line["label"] for line in map(json.loads, incoming)}
    with config.unlocked():
        config.definitions["two"] = ConfigDict(fields)
    settings = from_config(config)
    train(settings, tmp_path / "run")
    before = measured(tmp_path)

    process = begin("serve", f"--workdir={tmp_path / 'run'}", "--port=0")
    line = process.stdout.readline()
    try:
        assert line.startswith("serving"), line + process.communicate()[1]
        desk = Desk(line.split()[-1])
        asked = [
            (json.loads(each)["text"], task if place % 2 else None)
            for task in ("two", "five")
            for place, each in enumerate(lines_of(tmp_path / "data" / f"{task}_test.jsonl")[:40])
        ]
        clients = Clients(desk.url, asked)
        content = "\n".join(json.dumps({"text": text}) for text in gold)
        body = {"content": content, "format": "jsonl", "task": "two"}
        assert json.loads(desk.call("reviews/texts", body))["added"] == REVIEWED
        first = desk.review("an", gold)
        disputed = desk.review("bo", gold)
        assert first == REVIEWED and 0 < disputed < REVIEWED  # the model agreed with some
        exported = desk.call("reviews/export?task=two")
        assert {e["text"]: e["label"] for e in map(json.loads, exported.splitlines())} == gold

        (tmp_path / "data" / "reviewed.jsonl").write_text(exported, encoding="utf-8")
        more = {"continues": "two", "source": "jsonl", "path": fields["path"]}
        definitions = {**settings.definitions, "two_2": {**more, "train": "reviewed.jsonl"}}
        further = settings.changed({"tasks": ("two", "five", "two_2"), "definitions": definitions})
        results = train(further, tmp_path / "run")
        known = json.loads(desk.call("tasks"))
        earlier = clients.answered()
        switched = json.loads(desk.call("reload", {}))
        meanwhile = clients.answered() - earlier
        now = json.loads(desk.call("tasks"))
        statuses = clients.stop()
        assert finish_of(process) == 0
    finally:
        process.kill()
        process.communicate()
    after = measured(tmp_path)

    assert set(statuses) == {200} and statuses[200] > 100 and meanwhile > 0
    print(f"requests: {statuses}, while it reloaded: {meanwhile}")
    assert switched["previous"] == known["checkpoint"] != now["checkpoint"]
    assert now["checkpoint"] == switched["checkpoint"]
    assert [task["name"] for task in now["tasks"]] == ["two", "five"]
    assert known["tasks"][0]["drift"]["reference"] == 400
    assert known["tasks"][0]["drift"]["texts"] > 0
    accuracy = switched["accuracy"]
    assert accuracy["two"]["after"] > accuracy["two"]["before"]
    assert accuracy["five"]["after"] == accuracy["five"]["before"]
    matrix = results["accuracy_matrix"]
    assert matrix[2][0] == pytest.approx(after[0]) and matrix[1][0] == pytest.approx(before[0])
    assert matrix[2][1] == matrix[1][1]
    for name, then, found in zip(("accuracy", f"rate at {TARGET}"), before, after, strict=True):
        print(f"{name}: {then} before, {found} after")
        assert found > then, name


def finish_of(process):
    process.terminate()
    return finish(process)[0]
