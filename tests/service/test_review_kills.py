"""The review service is killed while a reviewer decides: nothing that was answered is lost."""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
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
    """The service in a process that is started anew whenever it is killed."""

    def __init__(self, path):
        self.port, self.child = free_port(), None
        command = [sys.executable, str(SERVER), str(path), str(self.port)]
        self._parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def wait(self):
        """Waits till it answers; it was killed, or is being started."""
        self.child = int(self._parent.stdout.readline())
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url("/"), timeout=5):
                return
            time.sleep(0.01)
        raise AssertionError("the service does not answer")

    def close(self):
        self._parent.kill()  # first, or it would start another child
        os.kill(self.child, signal.SIGKILL)
        self._parent.communicate()

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
        except (OSError, ValueError, http.client.HTTPException):
            return None  # refused, reset, or cut off within the answer


@pytest.mark.slow
def test_no_acknowledged_decision_is_lost_or_doubled(tmp_path, tried):
    path = tmp_path / "reviews.db"
    store = ReviewStore(path)
    store.add([entry(f"text {number}") for number in range(TEXTS)])
    store.close()
    generator, service = random.Random(0), Service(path)
    sent, acknowledged, unanswered = {}, {}, None
    for _ in range(KILLS):
        service.wait()
        killer = threading.Timer(
            generator.uniform(0.02, 0.5), os.kill, (service.child, signal.SIGKILL)
        )
        killer.start()
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
        killer.join()
    service.wait()
    service.close()
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
