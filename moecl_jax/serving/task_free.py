"""Evaluation without task names: each test text's task is chosen from the text alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moecl_jax.data.tokenize import TokenizedExample, TokenizedTask
from moecl_jax.methods.stream import StreamState
from moecl_jax.runs.features import TaskFeatures
from moecl_jax.runs.history import Evaluation
from moecl_jax.serving.evaluator import Evaluator

MOST_TEXTS = 4096
"""Number of a task's training texts, evenly spaced, that features are taken of."""


def features_of(
    evaluator: Evaluator, name: str, examples: Sequence[TokenizedExample]
) -> TaskFeatures:
    """Features of one task, given its training texts."""
    return TaskFeatures.of(name, evaluator.features(spaced(examples)))


def spaced(examples: Sequence[TokenizedExample]) -> Sequence[TokenizedExample]:
    """The training texts of a task that features are taken of."""
    return examples[:: -(-len(examples) // MOST_TEXTS) or 1]


def evaluate_task_free(
    evaluator: Evaluator,
    tasks: Sequence[TokenizedTask],
    state: StreamState,
    features: TaskFeatures,
    known: Sequence[Evaluation],
) -> dict[str, Any]:
    """Test accuracy where the task is chosen, among those with features, by each text.

    Where the choice is right, so is the answer that is right when the task is known. Where it is
    wrong, the chosen task's template, expert and labels answer, and the answer is right if it is
    the right label's text.

    Args:
      evaluator: model, method and tasks.
      tasks: tokenised tasks of the stream.
      state: state after the last task.
      features: features of the label tasks.
      known: the tasks' results where the task is known.

    Returns:
      By the keys of `results.json`: `accuracy` `[T]`, NaN for a task without features or test
      texts; `acc`, its mean over the others; and `choices` `[T, T]`, counts of texts, rows being
      the true task and columns the chosen one.
    """
    count = len(tasks)
    places = np.array([evaluator.index(name) for name in features.names])
    accuracy, choices = np.full(count, np.nan), np.zeros((count, count), int)
    for index in places:
        examples = tasks[index].splits["test"]
        if not examples:
            continue
        chosen = places[features.choose(evaluator.features(examples))]
        right = np.where(chosen == index, known[index].right, False)
        for other in np.unique(chosen[chosen != index]):
            asked = np.flatnonzero(chosen == other)
            texts = [examples[place] for place in asked]
            right[asked] = _right_as(evaluator, state, texts, index, other)
        choices[index] = np.bincount(chosen, minlength=count)
        accuracy[index] = right.mean()
    return {
        "acc": float(np.nanmean(accuracy)) if choices.any() else np.nan,
        "accuracy": accuracy.tolist(),
        "choices": choices.tolist(),
    }


def _right_as(
    evaluator: Evaluator,
    state: StreamState,
    examples: Sequence[TokenizedExample],
    index: int,
    other: int,
) -> np.ndarray:
    """Whether texts of one task are answered rightly as texts of another, `[n]`."""
    labels, others = evaluator.tasks[index].labels, evaluator.tasks[other].labels
    prompt_of = evaluator.prompt_of(other)
    right, asked = np.zeros(len(examples), bool), []
    for place, example in enumerate(examples):
        if labels[example.label] in others:
            right[place] = True
            label = others.index(labels[example.label])
            asked.append(TokenizedExample(prompt_of(example)[0], label))
    if asked:
        parameters = evaluator.starting.task(state, evaluator.names[other], other)
        right[right] = evaluator.evaluate(parameters, other, asked).right
    return right
