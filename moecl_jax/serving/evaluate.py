"""Scoring examples with a compiled evaluation step."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moecl_jax.data.batching import Batch, BatchLayout, chunks, make_batch, make_mixed_batch
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.methods.base import Tree
from moecl_jax.training.steps import Active

# Words of letters and digits; a character each of Chinese and Japanese, which write no spaces.
_CHARACTER = r"[\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_WORDS = re.compile(rf"{_CHARACTER}|(?:(?!{_CHARACTER})\w)+")

EvaluationStep = Callable[[Active, Tree, Batch], tuple[Any, Any, Any]]


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


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well a task's examples are answered; all NaN where there are none.

    Attributes:
      accuracy: share of right answers; with the LM head by exact match of the greedy answer.
      scored_accuracy: share in which the right label scores highest; NaN in a free-form task,
        which has no labels to choose from.
      log_likelihood: mean log of the right label's share of exp(scores); in a free-form task mean
        log-probability of the responses.
      right: `[n]` bool, whether each example is answered rightly; empty in a free-form task.
      shared_weight: in MoE-CL, mean weight of the shared expert in each layer; else empty.
    """

    accuracy: float
    scored_accuracy: float
    log_likelihood: float
    right: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool), compare=False)
    shared_weight: tuple[float, ...] = ()


def score(
    step: EvaluationStep,
    active: Active,
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
      active: trees of the task.
      frozen: parameters of the decoder.
      examples: n of them.
      answers: ids of each label's text with the LM head of a label task, else empty.
      layout: of evaluation batches.
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

    return _scored(step, active, frozen, make, len(examples), layout, max(class_count, 1))


def score_mixed(
    step: EvaluationStep,
    active: Active,
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
      active: trees of all the tasks: see `steps.Active`.
      frozen: parameters of the decoder.
      examples: n of them.
      tasks: each example's, as an index into what follows.
      answers: for each task what `score` takes.
      layout: of evaluation batches.
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

    return _scored(step, active, frozen, make, len(examples), layout, max(class_counts))


def _scored(
    step: EvaluationStep,
    active: Active,
    frozen: Tree,
    make: Callable[[Sequence[int]], Batch],
    count: int,
    layout: BatchLayout,
    columns: int,
) -> Scores:
    """Scores `count` examples, all batches being dispatched before the first is fetched."""
    if not count:
        return Scores(np.zeros((0, columns), np.float32), np.zeros((0, columns), bool))
    results = [
        (step(active, frozen, make(chunk)), len(chunk))
        for chunk in chunks(range(count), layout.batch_size)
    ]
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
    if examples[0].response is not None:
        return Evaluation(float(scores.answered.mean()), math.nan, float(wide.mean()))
    shared_weight: tuple[float, ...] = ()
    if "shared_weight" in scores.reports:
        shared_weight = tuple(scores.reports["shared_weight"].mean(axis=1).tolist())
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


def written_scores(
    write: Callable[[Sequence[np.ndarray]], list[np.ndarray]],
    read: Callable[[np.ndarray], str],
    examples: Sequence[TokenizedExample],
    answers: Sequence[np.ndarray],
    metric: str,
) -> list[float]:
    """Scores in [0, 1] of the answers that a model writes.

    Args:
      write: continues prompts, without end of sequence.
      read: the text of ids.
      examples: of one task.
      answers: ids of each label's text with its end; empty in a free-form task.
      metric: of a free-form task; in a label task the ids must be exactly the label's.
    """
    written = write([example.prompt for example in examples])
    if answers:
        right = [answers[example.label][:-1] for example in examples]
        return [float(np.array_equal(*pair)) for pair in zip(written, right, strict=True)]
    expected = [example.response_text for example in examples]
    return text_scores([read(ids) for ids in written], expected, metric)


def score_texts(generated: Sequence[str], expected: Sequence[str], metric: str) -> float:
    """Mean of `text_scores`; NaN where there are no texts."""
    scores = text_scores(generated, expected, metric)
    return sum(scores) / len(scores) if scores else math.nan


def text_scores(generated: Sequence[str], expected: Sequence[str], metric: str) -> list[float]:
    """Scores in [0, 1] of generated texts.

    Args:
      generated: n texts.
      expected: the n right ones, in the same order.
      metric: "exact_match" (but for white space) or "rouge_l" (see `rouge_l`).
    """
    measure = {"exact_match": _exact_match, "rouge_l": rouge_l}[metric]
    return [measure(ours, right) for ours, right in zip(generated, expected, strict=True)]


def rouge_l(generated: str, expected: str) -> float:
    """ROUGE-L (Lin 2004): F1 of the longest common subsequence of words, not a stretch.

        P = lcs / words generated    R = lcs / words expected    F1 = 2 P R / (P + R)

    Words are lower-cased runs of letters and digits; of Chinese and Japanese, which write no
    spaces, each character is a word. Texts without words score by exact match.

    Example: "The cat sat." against "the black cat sat down" has lcs 3, F1 = 2 * 3 / (3 + 5).
    """
    ours, right = (_WORDS.findall(text.lower()) for text in (generated, expected))
    if not ours or not right:
        return _exact_match(generated, expected)
    return 2 * _longest_common_subsequence(ours, right) / (len(ours) + len(right))


def _exact_match(generated: str, expected: str) -> float:
    return float(generated.split() == expected.split())


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time as bits (Hyyro 2004).

    Bit j of `row` is 0 where the length grows from the first j words of `second` to the next.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << index
    every = (1 << len(second)) - 1
    row = every
    for word in first:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & every
    return len(second) - row.bit_count()
