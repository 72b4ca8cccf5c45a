"""Evaluation without task names: each test text's task is chosen from the text alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moecl_jax.config.experiment import Experiment
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.methods.state import Stream
from moecl_jax.runs.resume import task_trees
from moecl_jax.serving.evaluate import Evaluation
from moecl_jax.serving.prompts import PromptReader
from moecl_jax.serving.task_choice import TaskFeatures

if TYPE_CHECKING:
    from moecl_jax.training.trainer import Run

MOST_TEXTS = 4096
"""Of a task's training texts, evenly spaced; more would hardly move a mean or a covariance."""


def add_task(
    experiment: Experiment,
    features: TaskFeatures,
    name: str,
    examples: Sequence[TokenizedExample],
) -> TaskFeatures:
    """The features with those of a task's training texts."""
    stride = -(-len(examples) // MOST_TEXTS)
    return features.add(name, experiment.features(examples[::stride]))


def evaluate_task_free(
    run: "Run", stream: Stream, features: TaskFeatures, known: Sequence[Evaluation]
) -> dict[str, Any]:
    """Test accuracy where the task is chosen, among those with features, by each text.

    Where the choice is right, so is the answer that is right when the task is known. Where it is
    wrong, the chosen task's template, expert and labels answer, and the answer is right if it is
    the right label's text.

    Args:
      run: the run.
      stream: after the last task.
      features: of its label tasks.
      known: the tasks' results where the task is known.

    Returns:
      By the keys of `results.json`: `accuracy` `[T]`, NaN for a task without features or test
      texts; `acc`, its mean over the others; and `choices` `[T, T]`, counts of texts, rows being
      the true task and columns the chosen one.
    """
    experiment, count = run.experiment, len(run.tasks)
    places = np.array([experiment.names.index(name) for name in features.names])
    accuracy, choices = np.full(count, np.nan), np.zeros((count, count), int)
    for index in places:
        examples = run.tasks[index].splits["test"]
        if not examples:
            continue
        chosen = places[features.choose(experiment.features(examples))]
        right = np.where(chosen == index, known[index].right, False)
        for other in np.unique(chosen[chosen != index]):
            asked = np.flatnonzero(chosen == other)
            right[asked] = _right_as(run, stream, [examples[i] for i in asked], index, other)
        choices[index] = np.bincount(chosen, minlength=count)
        accuracy[index] = right.mean()
    return {
        "acc": float(np.nanmean(accuracy)) if choices.any() else np.nan,
        "accuracy": accuracy.tolist(),
        "choices": choices.tolist(),
    }


def _right_as(
    run: "Run", stream: Stream, examples: Sequence[TokenizedExample], index: int, other: int
) -> np.ndarray:
    """Whether texts of one task are answered rightly as texts of another, `[n]`."""
    labels, others = run.tasks[index].labels, run.tasks[other].labels
    reader = PromptReader(run.experiment, other)
    right, asked = np.zeros(len(examples), bool), []
    for place, example in enumerate(examples):
        if labels[example.label] in others:
            right[place] = True
            label = others.index(labels[example.label])
            asked.append(TokenizedExample(reader.fit(example)[0], label))
    if asked:
        active = task_trees(run.experiment, stream, other)
        right[right] = run.evaluate_on(active, other, asked).right
    return right
