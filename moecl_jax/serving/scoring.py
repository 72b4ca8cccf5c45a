"""Scores of examples' labels: the evaluation step, and what is computed from its results."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax import stopping
from moecl_jax.data.batching import Batch, BatchLayout, chunks, make_batch, make_mixed_batch
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.methods.forward import StepContext, forward, output_logits, vocabulary_logits
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.heads import answer_log_probabilities
from moecl_jax.runs.history import Evaluation

EvaluationStep = Callable[[TaskParameters, Tree, Batch], tuple[Any, Any, Any]]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of n examples over a task's C classes; C is 1, the response, in a free-form task.

    Attributes:
      scores: `[n, C]` float32, class logits or log-probabilities of the answers' texts.
      answered: `[n, C]` bool, whether this is the answer given.
      reports: what the layers' FFN functions report of each example, `[L, n]`.
    """

    scores: np.ndarray
    answered: np.ndarray
    reports: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def evaluation_step(
    parameters: TaskParameters, frozen: Tree, batch: Batch, *, context: StepContext
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Scores of each example's labels.

    Args:
      parameters: parameters of the task, or of several.
      frozen: parameters of the frozen decoder.
      batch: one evaluation batch.
      context: static parts.

    Returns:
      Scores `[B, C]` or `[B, K]`, the lowest finite value where there is no such label: class
      logits, or with the LM head the log-probability of each label's text and its end; and
      whether the label is the answer, `[B, C]` or `[B, K]`: the highest logit, or with the LM
      head whether greedy decoding writes exactly this label's text and ends. (Greedy decoding
      from the prompt gives a text if and only if, with that text fed, every token of it is the
      most probable one.) And what the layers' FFN functions report of each example, `[L, B]`.
    """
    hidden, reports = forward(parameters, frozen, batch, context, seeds=None)
    lowest = jnp.finfo(jnp.float32).min
    if context.head == "lm":
        logits = vocabulary_logits(parameters, hidden[batch.predicted], frozen, context)
        log_probabilities, greedy = answer_log_probabilities(
            logits, batch.answer_targets, batch.answer_index
        )
        real = batch.answer_mask > 0
        exists = real.any(axis=-1)
        scores = jnp.where(real, log_probabilities, 0.0).sum(axis=-1)
        answered = exists & (greedy | ~real).all(axis=-1)
        return context.placement.everywhere((jnp.where(exists, scores, lowest), answered, reports))
    logits = output_logits(parameters, hidden, frozen, batch, context)
    best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[1], dtype=bool)
    return context.placement.everywhere((logits, best, reports))


def score(
    step: EvaluationStep,
    parameters: TaskParameters,
    frozen: Tree,
    examples: Sequence[TokenizedExample],
    answers: Sequence[np.ndarray],
    layout: BatchLayout,
    *,
    class_count: int,
) -> Scores:
    """Scores examples of one task.

    Args:
      step: the compiled evaluation step.
      parameters: parameters of the task.
      frozen: parameters of the decoder.
      examples: n of them.
      answers: ids of each label's text with the LM head of a label task, else empty.
      layout: how evaluation batches are laid out.
      class_count: the task's labels; 0 in a free-form task.
    """

    def make(chunk: Sequence[int]) -> Batch:
        return make_batch(
            [examples[index] for index in chunk],
            answers,
            layout,
            task_index=0,
            class_count=class_count,
            training=False,
        )

    return _scored(step, parameters, frozen, make, len(examples), layout, max(class_count, 1))


def score_mixed(
    step: EvaluationStep,
    parameters: TaskParameters,
    frozen: Tree,
    examples: Sequence[TokenizedExample],
    tasks: Sequence[int],
    answers: Sequence[Sequence[np.ndarray]],
    layout: BatchLayout,
    *,
    class_counts: Sequence[int],
) -> Scores:
    """As `score`, of examples of several tasks in the same batches.

    Args:
      step: the compiled evaluation step.
      parameters: parameters of all the tasks, as `methods.mixed.together` gives them.
      frozen: parameters of the decoder.
      examples: n of them.
      tasks: each example's, as an index into what follows.
      answers: for each task what `score` takes.
      layout: how evaluation batches are laid out.
      class_counts: for each task its labels.
    """

    def make(chunk: Sequence[int]) -> Batch:
        return make_mixed_batch(
            [examples[index] for index in chunk],
            [tasks[index] for index in chunk],
            answers,
            layout,
            class_counts=class_counts,
        )

    return _scored(step, parameters, frozen, make, len(examples), layout, max(class_counts))


def _scored(
    step: EvaluationStep,
    parameters: TaskParameters,
    frozen: Tree,
    make: Callable[[Sequence[int]], Batch],
    count: int,
    layout: BatchLayout,
    columns: int,
) -> Scores:
    """Scores `count` examples, all batches being dispatched before the first is fetched."""
    if not count:
        return Scores(np.zeros((0, columns), np.float32), np.zeros((0, columns), bool))
    results = []
    for chunk in chunks(range(count), layout.batch_size):
        stopping.check()
        results.append((step(parameters, frozen, make(chunk)), len(chunk)))
    for (scores, *_), _ in results:
        stopping.check()
        jax.block_until_ready(scores)
    scores, answered = (
        np.concatenate([np.asarray(result[part])[:held] for result, held in results])
        for part in (0, 1)
    )
    reports = {
        name: np.concatenate(
            [np.asarray(result[2][name])[:, :held] for result, held in results], axis=1
        )
        for name in results[0][0][2]
    }
    return Scores(scores[:, :columns], answered[:, :columns], reports)


def evaluate_examples(scores: Scores, examples: Sequence[TokenizedExample]) -> Evaluation:
    """Accuracies and likelihood of scored examples.

    With the LM head an answer that is none of the labels is wrong.
    """
    if not examples:
        return Evaluation(math.nan, math.nan, math.nan)
    wide = scores.scores.astype(np.float64)
    shared_weight: tuple[float, ...] = ()
    if "shared_weight" in scores.reports:
        shared_weight = tuple(scores.reports["shared_weight"].mean(axis=1).tolist())
    if examples[0].response is not None:
        return Evaluation(
            accuracy=float(scores.answered.mean()),
            scored_accuracy=math.nan,
            log_likelihood=float(wide.mean()),
            shared_weight=shared_weight,
        )
    labels = np.array([example.label for example in examples])
    rows = np.arange(len(labels))
    shifted = wide - wide.max(axis=1, keepdims=True)
    log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    right = scores.answered[rows, labels]
    return Evaluation(
        accuracy=float(right.mean()),
        scored_accuracy=float((wide.argmax(axis=1) == labels).mean()),
        log_likelihood=float(log_shares[rows, labels].mean()),
        right=right,
        shared_weight=shared_weight,
    )
