"""The review service is killed while a reviewer decides: nothing that was answered is lost."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from review_app import entry

from moecl_jax.service.agreement import settled_label
from moecl_jax.service.reviews import ReviewStore

SERVER = Path(__file__).with_name("review_app.py")
KILLS = 50
TEXTS = 4000


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Service:
    """The service in a process of its own, and requests to it."""

    def __init__(self, path):
        self.path, self.port, self.process = path, free_port(), None

    def start(self):
        command = [sys.executable, str(SERVER), str(self.path), str(self.port)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url("/"), timeout=5):
                return
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.02)
        raise AssertionError("the service does not answer")

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        assert self.process.wait(10) == -signal.SIGKILL
        self.process.stderr.close()

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def call(self, path, body=None):
        """The answer, or None if the service was gone."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url(f"/v1/reviews/{path}"), data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError:
            raise
        except (OSError, ValueError):  # refused, reset, or cut off within the answer
            return None


@pytest.mark.slow
def test_no_acknowledged_decision_is_lost_or_doubled(tmp_path, tried):
    path = tmp_path / "reviews.db"
    store = ReviewStore(path)
    store.add([entry(f"text {number}") for number in range(TEXTS)])
    store.close()
    generator, service = random.Random(0), Service(path)
    sent, acknowledged, unanswered = {}, {}, None
    for _ in range(KILLS):
        service.start()
        moment = time.monotonic() + generator.uniform(0.02, 0.25)
        killer = subprocess.Popen(
            ["sh", "-c", f"sleep {moment - time.monotonic():.3f}; kill -9 {service.process.pid}"]
        )
        while True:
            if unanswered is None:
                found = service.call("next")
                if found is None:
                    break
                item = found["item"]
                request = f"request-{len(sent)}"
                label = generator.choice(item["labels"])
                unanswered = {"request": request, "item": item["id"], "label": label}
                if generator.random() < 0.1 and acknowledged:
                    unanswered = {"request": request}
                sent[request] = unanswered
            kind = "decisions" if "item" in unanswered else "undos"
            answer = service.call(kind, unanswered)
            if answer is None:
                break
            acknowledged[unanswered["request"]] = answer["id"]
            unanswered = None
        killer.wait()
        assert service.process.wait(10) == -signal.SIGKILL
        service.process.stderr.close()
    store = ReviewStore(path)
    with store.snapshot() as db:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        audit = {row["request"]: dict(row) for row in db.execute("SELECT * FROM audit")}
        assert db.execute("SELECT COUNT(*) FROM audit").fetchone()[0] == len(audit)
        for request, row in acknowledged.items():
            assert audit[request]["id"] == row
            if "item" in sent[request]:
                told = (audit[request]["item"], audit[request]["label"])
                assert told == (sent[request]["item"], sent[request]["label"])
        # At most the last request, whose answer was never seen, is there besides.
        assert set(audit) - set(acknowledged) <= {unanswered and unanswered["request"]}
        undone = {row["undoes"] for row in audit.values()}
        votes = {}
        for row in audit.values():
            if row["kind"] == "decision" and row["id"] not in undone:
                votes.setdefault(row["item"], []).append(row["label"])
        assert max(map(len, votes.values())) == 1  # one reviewer, who has one voice a text
        waiting = {
            row["id"]: len(votes.get(row["id"], []))
            for row in db.execute("SELECT id, label FROM items")
            if settled_label(row["label"], votes.get(row["id"], [])) is None
        }
        assert dict(db.execute("SELECT item, votes FROM queue").fetchall()) == waiting
    store.close()
    assert len(acknowledged) > 2 * KILLS
    tried("review service killed while texts are decided", KILLS, "survived")
