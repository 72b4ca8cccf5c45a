"""Retrieval-augmented generation: the frozen model answers with what an index finds for a question.

    prompt = PROMPT with the k passages nearest to the question, and the question
    answer = what the frozen model writes after it

Nothing is trained: learning is adding to the index (Lewis et al. 2020, arXiv 2005.11401, with a
frozen reader and the passages in one prompt).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moecl_jax.data.task import Task
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.errors import UserError
from moecl_jax.models.model import Model
from moecl_jax.retrieval import Embedder, Hit, Index, passages_of
from moecl_jax.runs.settings import Settings
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.generation import NOT_FINITE

PROMPT = "Answer the question with the notes below.\n\n{notes}\n\nQuestion: {question}\nAnswer:"
"""The prompt; "{notes}" and "{question}" stand for the passages and the question."""
MOST_TOKENS = 1024
"""The most tokens of a prompt with its answer, where the model reads so many."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer and what it was written from.

    Attributes:
      text: the answer.
      sources: the passages that were in the prompt, nearest first.
      left_out: number of passages that were found and did not fit.
    """

    text: str
    sources: tuple[Hit, ...]
    left_out: int = 0


class Rag:
    """A frozen model that answers questions from an index.

    Attributes:
      index: what is searched; entries may be added and deleted between questions.
      embed: the embedding of questions and entries.
    """

    def __init__(
        self,
        model: Model,
        documents: str | Path | Index,
        *,
        embedder: Embedder | None = None,
        count: int = 3,
        max_tokens: int = 64,
        prompt: str = PROMPT,
        chat: bool = False,
    ):
        """Indexes documents, or takes an index as it is.

        Args:
          model: frozen LLM with a tokenizer.
          documents: a folder of text and Markdown files, one such file, or an index.
          embedder: the embedding; the frozen model's own features as a default.
          count: the most passages in a prompt; 0 asks the model alone.
          max_tokens: the most tokens of an answer.
          prompt: holds "{notes}" and "{question}" once each.
          chat: whether the prompt is put into the model's chat template.

        Raises:
          UserError: the documents cannot be read, the index has another embedding, or a value is
            out of its range.
        """
        if count < 0 or max_tokens < 1:
            raise UserError(
                f"count = {count} must be at least 0, and max_tokens = {max_tokens} at least 1"
            )
        if prompt.count("{notes}") != 1 or prompt.count("{question}") != 1:
            raise UserError("prompt must contain '{notes}' and '{question}' exactly once each")
        self.count, self.max_tokens, self.prompt = count, max_tokens, prompt
        self._evaluator = _evaluator_of(model, max_tokens, chat=chat)
        self._prompt_of = self._evaluator.prompt_of(0)
        self.embed = frozen_embedder(self._evaluator) if embedder is None else embedder
        if isinstance(documents, Index):
            self.index = documents
            refuse_other_embedding(self.index, self.embed)
            return
        self.index = Index(self.embed.name)
        passages = passages_of(Path(documents))
        self.index.add(passages, self.embed([passage.text for passage in passages]))

    def query(self, question: str) -> Answer:
        """Answers a question.

        Raises:
          UserError: the question is empty or too long, or the model's scores are not finite.
        """
        if not question.strip():
            raise UserError("the question is empty")
        [hits] = self.index.search(self.embed([question]), self.count)
        ids, used = self._fitting(question, hits)
        evaluator = self._evaluator
        starting = evaluator.starting
        [written] = evaluator.write(
            starting.task(starting.stream(1), evaluator.names[0], 0),
            0,
            [TokenizedExample(ids, 0)],
            max_tokens=self.max_tokens,
            sampling=evaluator.sampling,
            seed=evaluator.settings.seed,
            batch_size=1,
        )
        if written is None:
            raise UserError(NOT_FINITE)
        tokenizer: Any = evaluator.model.tokenizer
        text = str(tokenizer.decode(written, skip_special_tokens=True)).strip()
        return Answer(text, tuple(used), len(hits) - len(used))

    def _fitting(self, question: str, hits: Sequence[Hit]) -> tuple[np.ndarray, Sequence[Hit]]:
        """The prompt's ids with as many of the nearest passages as fit, and these."""
        for count in range(len(hits), -1, -1):
            notes = "\n\n".join(hit.entry.text for hit in hits[:count])
            before, after = self.prompt.split("{question}")
            text = before.replace("{notes}", notes) + question + after.replace("{notes}", notes)
            ids, cut = self._prompt_of(TokenizedExample(np.zeros(0, np.int32), 0, text=text))
            if not cut:
                return ids, hits[:count]
        raise UserError(f"the question is too long: with the prompt it exceeds {len(ids)} tokens")


def rag_query(question: str, documents: str | Path | Index, model: Model, **options: Any) -> Answer:
    """Answers one question from documents; `Rag` keeps the index for several.

    Args:
      question: the question.
      documents: a folder of text and Markdown files, one such file, or an index.
      model: frozen LLM with a tokenizer.
      **options: other arguments of `Rag`.

    Raises:
      UserError: as `Rag` says.
    """
    return Rag(model, documents, **options).query(question)


def frozen_embedder(evaluator: Evaluator) -> Embedder:
    """The frozen model's features as an embedding: mean final hidden states of the text alone."""

    def embed(texts: Sequence[str]) -> np.ndarray:
        nothing = np.zeros(0, np.int32)
        return evaluator.features([TokenizedExample(nothing, 0, text=text) for text in texts])

    return Embedder(f"frozen:{evaluator.model.fingerprint}", embed)


def refuse_other_embedding(index: Index, embedder: Embedder) -> None:
    """Refuses to search an index with vectors of another embedding.

    Raises:
      UserError: names both.
    """
    if index.embedding != embedder.name:
        raise UserError(
            f"the index has embeddings by {index.embedding!r}, and {embedder.name!r} was given; "
            "vectors of both cannot be compared. Name the first, or index again."
        )


def _evaluator_of(model: Model, max_tokens: int, *, chat: bool) -> Evaluator:
    """Reads texts and writes answers with the frozen model alone."""
    if model.tokenizer is None:
        raise UserError(f"{model.source} holds no tokenizer, without which it reads no question")
    task = Task("question", source="none", response_field="answer", template="{text}", chat=chat)
    most = min(MOST_TOKENS, model.sizes.context_length)
    if max_tokens >= most:
        raise UserError(f"max_tokens = {max_tokens} leaves no room for a question in {most} tokens")
    settings = Settings().changed(
        {
            "method": "zero_shot",
            "head": "lm",
            "tasks": (task.name,),
            "definitions": {task.name: task.to_fields()},
            "data": {"max_length": most, "max_response": max_tokens},
            "model": {"path": model.source},
        }
    )
    return Evaluator(model, settings.method_object(), [task], settings)
