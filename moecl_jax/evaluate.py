"""Scoring examples with a compiled evaluation step."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moecl_jax.data.batching import Batch, Layout, chunks, make_batch
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.methods.base import Tree
from moecl_jax.steps import Active

EvaluationStep = Callable[[Active, Tree, Batch], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of n examples over a task's C classes.

    Attributes:
      scores: `[n, C]` float32, class logits or log-probabilities of the labels' texts.
      answered: `[n, C]` bool, whether the label is the answer given.
    """

    scores: np.ndarray
    answered: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well a task's examples are answered.

    Attributes:
      accuracy: share of right answers; with the LM head by exact match of the greedy answer.
      scored_accuracy: share in which the right label scores highest.
      log_likelihood: mean log of the right label's share of exp(scores).
    """

    accuracy: float
    scored_accuracy: float
    log_likelihood: float


def score(
    step: EvaluationStep,
    active: Active,
    frozen: Tree,
    examples: Sequence[TokenizedExample],
    answers: Sequence[np.ndarray],
    layout: Layout,
    *,
    class_count: int,
) -> Scores:
    """Scores examples of one task, all batches being dispatched before the first is fetched.

    Args:
      step: the compiled evaluation step.
      active: trees of the task.
      frozen: parameters of the decoder.
      examples: n of them.
      answers: ids of each label's text with the LM head, else empty.
      layout: of evaluation batches.
      class_count: C.
    """
    results = []
    for chunk in chunks(range(len(examples)), layout.batch_size):
        batch = make_batch(
            [examples[index] for index in chunk],
            answers,
            layout,
            task_index=0,
            class_count=class_count,
            training=False,
        )
        results.append((step(active, frozen, batch), len(chunk)))
    scores, answered = (
        np.concatenate([np.asarray(result[part])[:count] for result, count in results])
        for part in (0, 1)
    )
    return Scores(scores[:, :class_count], answered[:, :class_count])


def evaluate_examples(scores: Scores, examples: Sequence[TokenizedExample]) -> Evaluation:
    """Accuracies and likelihood of scored examples.

    With the LM head an answer that is none of the labels is wrong.
    """
    labels = np.array([example.label for example in examples])
    rows = np.arange(len(labels))
    wide = scores.scores.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return Evaluation(
        accuracy=float(scores.answered[rows, labels].mean()),
        scored_accuracy=float((wide.argmax(axis=1) == labels).mean()),
        log_likelihood=float(log_shares[rows, labels].mean()),
    )
