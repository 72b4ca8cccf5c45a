"""The service's application with an engine that needs no model; as a program, one to be killed.

python review_app.py FILE.db PORT
"""

import hashlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import uvicorn

from moecl_jax.service.app import make_app
from moecl_jax.service.keys import Holder, Keys, Role, require
from moecl_jax.service.limits import Limits
from moecl_jax.service.metrics import Metrics
from moecl_jax.service.policy import Policy
from moecl_jax.service.review_routes import add_routes
from moecl_jax.service.reviews import Entry, ReviewStore

LABELS = {"mail": ("ham", "spam"), "topics": ("sport", "politics", "arts")}


class HashEngine:
    """Probabilities from a hash of the text; texts that begin with "clear" are decided alone,
    and those that begin with "refused" are refused."""

    alive, draining = True, False
    policy = Policy()
    labeller = SimpleNamespace(
        tasks=list(LABELS), labels=LABELS, checkpoint="7", choosing_problem=None, drifts={}
    )

    def __init__(self):
        self.limits, self.metrics = Limits(text_characters=200_000), Metrics()

    async def classify(self, texts, task=None, *, caller="local"):
        assert caller
        return [
            {"error": "it does not fit"}
            if text.startswith("refused")
            else answer(text, task or "mail")
            for text in texts
        ]


def answer(text, task="mail", first=None, decision=None):
    """What the engine says of a text; `first` is the first label's probability."""
    labels = LABELS[task]
    if first is None:
        first = int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 16**6
    rest = [(1 - first) * share for share in ((1,) if len(labels) == 2 else (0.75, 0.25))]
    probabilities = dict(zip(labels, [first, *rest], strict=True))
    if decision is None:
        decision = "block" if text.startswith("clear") else "review"
    label = max(probabilities, key=probabilities.get)
    said = {"task": task, "label": label, "probabilities": probabilities, "decision": decision}
    return {**said, "checkpoint": "7", "thresholds": "abc", "error": None}


def entry(text, task="mail", first=None, decision=None, context=None):
    """A text for the store."""
    said = answer(text, task, first, decision)
    return Entry(text, said, context or {})


def make(path, keys=None):
    """The application, with keys by holder's name and role."""
    holders = {key: Holder(name, Role(role)) for key, (name, role) in (keys or {}).items()}
    engine = HashEngine()
    app = make_app(engine, Keys(holders))
    store = ReviewStore(path)
    add_routes(app, store, engine, require)
    return app, store


def serve_for_ever(path, port):
    """Serves in a child process, and in a new one whenever that is killed; prints their ids."""
    while True:
        child = os.fork()
        if not child:
            app, _ = make(path)
            uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
            os._exit(0)
        print(child, flush=True)
        os.waitpid(child, 0)


if __name__ == "__main__":
    serve_for_ever(Path(sys.argv[1]), int(sys.argv[2]))
