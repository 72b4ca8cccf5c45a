"""Scores of examples' labels: the evaluation step, and what is computed from its results."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax import reporting, stopping
from moecl_jax.data.batching import (
    Batch,
    BatchLayout,
    chunks,
    make_batch,
    make_mixed_batch,
    need_of,
)
from moecl_jax.data.shapes import Need, Shape, groups
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.methods.forward import StepContext, forward, output_logits, vocabulary_logits
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.decoder import Prefix
from moecl_jax.models.heads import answer_log_probabilities
from moecl_jax.runs.classification import NO_LABEL
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

    @property
    def of_best(self) -> "Scores":
        """The same where the label that scores highest is the answer."""
        best = np.arange(self.scores.shape[1]) == self.scores.argmax(axis=1)[:, None]
        return dataclasses.replace(self, answered=best)


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How texts to be scored become batches.

    Attributes:
      layout: packing.
      shapes: shapes of the batches; each text fits one of them. Without any, each batch of
        `layout.batch_size` texts has a shape of its own.
    """

    layout: BatchLayout
    shapes: tuple[Shape, ...] = ()

    @property
    def of_one_shape(self) -> "Scoring":
        """The same with that shape alone that any text fits, where texts share rows."""
        if not self.layout.packed:
            return self
        longest = max(self.shapes, key=lambda shape: shape.length, default=None)
        return dataclasses.replace(self, shapes=() if longest is None else (longest,))

    def groups(self, needs: Sequence[Need]) -> Iterator[tuple[list[int], Shape | None]]:
        """Places of the texts of each batch, and its shape."""
        if self.shapes:
            yield from groups(needs, self.shapes, self.layout.batch_size, self.layout.packed)
            return
        for places in chunks(range(len(needs)), self.layout.batch_size):
            yield list(places), None


def evaluation_step(
    parameters: TaskParameters,
    frozen: Tree,
    batch: Batch,
    prefix: Prefix | None = None,
    *,
    context: StepContext,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Scores of each example's labels.

    Args:
      parameters: parameters of the task, or of several.
      frozen: parameters of the frozen decoder.
      batch: one evaluation batch.
      prefix: tokens before each text; None for none.
      context: static parts.

    Returns:
      Scores `[B, C]` or `[B, K]`, the lowest finite value where there is no such label: class
      logits, or with the LM head the log-probability of each label's text and its end; and
      whether the label is the answer, `[B, C]` or `[B, K]`: the highest logit, or with the LM
      head whether greedy decoding writes exactly this label's text and ends. (Greedy decoding
      from the prompt gives a text if and only if, with that text fed, every token of it is the
      most probable one.) And what the layers' FFN functions report of each example, `[L, B]`.
    """
    hidden, reports = forward(parameters, frozen, batch, context, seeds=None, prefix=prefix)
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
    scoring: Scoring,
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
      scoring: how batches are laid out.
      class_count: the task's labels; 0 in a free-form task.
    """

    def make(places: Sequence[int], shape: Shape | None) -> Batch:
        return make_batch(
            [examples[place] for place in places],
            answers,
            scoring.layout,
            task_index=0,
            class_count=class_count,
            training=False,
            shape=shape,
        )

    needs = [need_of(example, answers, training=False) for example in examples]
    return _scored(step, parameters, frozen, make, needs, scoring, max(class_count, 1))


def score_mixed(
    step: EvaluationStep,
    parameters: TaskParameters,
    frozen: Tree,
    examples: Sequence[TokenizedExample],
    tasks: Sequence[int],
    answers: Sequence[Sequence[np.ndarray]],
    scoring: Scoring,
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
      scoring: how batches are laid out.
      class_counts: for each task its labels.
    """

    def make(places: Sequence[int], shape: Shape | None) -> Batch:
        return make_mixed_batch(
            [examples[place] for place in places],
            [tasks[place] for place in places],
            answers,
            scoring.layout,
            class_counts=class_counts,
            shape=shape,
        )

    needs = [
        need_of(example, answers[task], training=False)
        for example, task in zip(examples, tasks, strict=True)
    ]
    return _scored(step, parameters, frozen, make, needs, scoring, max(class_counts))


def _scored(
    step: EvaluationStep,
    parameters: TaskParameters,
    frozen: Tree,
    make: Callable[[Sequence[int], Shape | None], Batch],
    needs: Sequence[Need],
    scoring: Scoring,
    columns: int,
) -> Scores:
    """Scores texts with these needs, all batches being dispatched before the first is fetched."""
    count = len(needs)
    if not count:
        return Scores(np.zeros((0, columns), np.float32), np.zeros((0, columns), bool))
    results = []
    for places, shape in scoring.groups(needs):
        stopping.check()
        results.append((step(parameters, frozen, make(places, shape)), places))
    for (scores, *_), places in results:
        stopping.check()
        jax.block_until_ready(scores)
        reporting.advance(len(places))
    order = np.argsort(np.concatenate([places for _, places in results]), kind="stable")

    def gathered(arrays: Iterable[Any]) -> np.ndarray:
        """Results `[B, ..]` of all batches, in the order of the texts."""
        found = [
            np.asarray(array)[: len(places)]
            for array, (_, places) in zip(arrays, results, strict=True)
        ]
        return np.concatenate(found)[order]

    reports = {
        name: gathered(np.asarray(of[name]).T for (_, _, of), _ in results).T
        for name in results[0][0][2]
    }
    scores = gathered(scores for (scores, _, _), _ in results)[:, :columns]
    answered = gathered(answered for (_, answered, _), _ in results)[:, :columns]
    return Scores(scores, answered, reports)


def evaluate_examples(
    scores: Scores, examples: Sequence[TokenizedExample], labels: tuple[str, ...]
) -> Evaluation:
    """Accuracies and likelihood of scored examples of one task.

    With the LM head an answer that is none of the labels is wrong.

    Args:
      scores: scores of the n examples.
      examples: the n examples.
      labels: labels of the task; none in a free-form task.
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
    gold = np.array([example.label for example in examples])
    rows = np.arange(len(gold))
    shifted = wide - wide.max(axis=1, keepdims=True)
    log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    answered = scores.answered
    predicted = np.where(answered.any(axis=1), answered.argmax(axis=1), NO_LABEL)
    return Evaluation(
        accuracy=float((predicted == gold).mean()),
        scored_accuracy=float((wide.argmax(axis=1) == gold).mean()),
        log_likelihood=float(log_shares[rows, gold].mean()),
        labels=labels,
        gold=gold,
        predicted=predicted,
        shared_weight=shared_weight,
    )


def labelled(labels: Sequence[str], row: np.ndarray) -> dict[str, Any]:
    """`label`, `probabilities` and `logits` of a text whose labels have these scores `[C]`.

    An `error` instead where a score is not finite, and so none says which label is best.
    """
    if not np.isfinite(row).all():
        problem = (
            "the model's scores are not finite, so that they choose no label: its weights or its "
            "training are broken"
        )
        return {"error": problem}
    shares = np.exp(row - row.max())
    shares /= shares.sum()
    return {
        "label": labels[int(row.argmax())],
        "probabilities": dict(zip(labels, shares.tolist(), strict=True)),
        "logits": row.tolist(),
    }
