"""A labeller without a model, for tests of the service around it."""

import threading
from collections.abc import Sequence
from typing import Any

from moecl_jax.service.labelling import Read
from moecl_jax.serving.prompts import Prompt


class FakeLabeller:
    """Labels a text by its first letter: "s" is spam with a probability of 0.9.

    A text whose task is not named is of task "mail". Batches have up to `most_texts` texts.

    Attributes:
      batches: the texts of each batch, with their tasks.
      open: batches wait for this to be set.
    """

    def __init__(
        self,
        checkpoint: str = "first",
        tasks: Sequence[str] = ("mail", "news"),
        labels: tuple[str, ...] = ("ham", "spam"),
    ):
        self.checkpoint, self.most_texts, self.tasks = checkpoint, 4, list(tasks)
        self.labels = dict.fromkeys(tasks, labels)
        self.choosing_problem: str | None = None
        self.batches: list[list[tuple[str, str]]] = []
        self.open = threading.Event()
        self.open.set()
        self.fails = False

    def read(self, texts: Sequence[tuple[str, str | None]]) -> list[Read]:
        return [
            Read(None, task, problem="cannot be read")
            if text == "unreadable"
            else Read(Prompt(text, task or "mail"), task or "mail", truncated=len(text) > 100)  # type: ignore[arg-type]
            for text, task in texts
        ]

    def next_batch(self, prompts: Sequence[Prompt]) -> list[int]:
        return list(range(min(self.most_texts, len(prompts))))

    def label(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        self.batches.append([(prompt.ids, prompt.task) for prompt in prompts])  # type: ignore[misc]
        assert self.open.wait(60)
        if self.fails:
            raise RuntimeError("out of memory")
        return [_labelled(str(prompt.ids)) for prompt in prompts]


def _labelled(text: str) -> dict[str, Any]:
    if text == "broken":
        return {"error": "scores are not finite"}
    spam = 0.9 if text.startswith("s") else 0.2
    label = "spam" if spam > 0.5 else "ham"
    return {"label": label, "probabilities": {"ham": 1 - spam, "spam": spam}, "logits": [0.0, 1.0]}
