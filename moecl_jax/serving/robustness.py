"""How well a task's texts are answered with small changes that a reader hardly minds."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moecl_jax.data.perturbing import perturbed
from moecl_jax.data.tokenize import TokenizedExample, TokenizedTask
from moecl_jax.methods.parameters import TaskParameters
from moecl_jax.methods.stream import StreamState
from moecl_jax.runs.history import Evaluation
from moecl_jax.serving.evaluator import Evaluator


@dataclasses.dataclass(frozen=True)
class Robustness:
    """How well changed texts of one task are answered.

    Attributes:
      accuracy: accuracy by kind of change; NaN where it changes no text.
      changed: part of the texts that it changes, by kind.
      under_attack: part of the texts that are answered rightly as they are and with every kind of
        change; NaN in a free-form task, and where nothing is changed.
    """

    accuracy: Mapping[str, float]
    changed: Mapping[str, float]
    under_attack: float


def evaluate_perturbed(
    evaluator: Evaluator,
    parameters: TaskParameters,
    index: int,
    examples: Sequence[TokenizedExample],
    known: Evaluation,
    kinds: Sequence[str],
    rate: float,
) -> Robustness:
    """Answers a task's texts with each kind of change.

    Args:
      evaluator: model, method and tasks.
      parameters: those that answer for the task.
      index: place of the task in the stream.
      examples: texts of the task. Examples that are `input_ids` are not changed.
      known: how well the texts are answered as they are.
      kinds: some of `moecl_jax.data.perturbing.PERTURBATIONS`.
      rate: part of the places in a text that are changed.
    """
    accuracy, changed = {}, {}
    right = known.right.copy()
    for kind in kinds:
        texts = [perturbed(example.text, kind, rate) for example in examples]
        others = [text != e.text for text, e in zip(texts, examples, strict=True)]
        changed[kind] = float(np.mean(others)) if others else math.nan
        accuracy[kind] = math.nan
        if any(others):
            attacked = _with_texts(evaluator, index, examples, texts)
            found = evaluator.evaluate(parameters, index, attacked)
            accuracy[kind] = found.accuracy
            right = right & found.right
    measured = right.size and any(not math.isnan(value) for value in accuracy.values())
    return Robustness(accuracy, changed, float(right.mean()) if measured else math.nan)


def _with_texts(
    evaluator: Evaluator, index: int, examples: Sequence[TokenizedExample], texts: Sequence[str]
) -> list[TokenizedExample]:
    """The examples with other texts, those that stay the same as they are."""
    prompt_of = evaluator.prompt_of(index)
    found = []
    for example, text in zip(examples, texts, strict=True):
        if text != example.text:
            example = dataclasses.replace(example, text=text)
            example = dataclasses.replace(example, prompt=prompt_of(example)[0])
        found.append(example)
    return found


def robustness_of_stream(
    evaluator: Evaluator,
    tasks: Sequence[TokenizedTask],
    state: StreamState,
    known: Sequence[Evaluation],
) -> dict[str, Any] | None:
    """The robustness that a run's settings ask for, at the end of its stream.

    Args:
      evaluator: model, method and tasks.
      tasks: tokenised tasks of the stream.
      state: state of the stream.
      known: how well each task's test texts are answered as they are.

    Returns:
      By the keys of results.json: `rate`; `accuracy` and `changed`, by kind of change a list of a
      value for each task; `under_attack`, a value for each task; and `acc_under_attack`, its mean.
      NaN stands for what is not known. None before the end, or where nothing is asked for.
    """
    section = evaluator.settings.evaluation
    kinds, rate = section.perturbations, section.perturbation_rate
    if not kinds or len(state.finished) < len(tasks):
        return None
    found = [
        evaluate_perturbed(
            evaluator,
            evaluator.starting.task(state, task.name, index),
            index,
            task.splits["test"],
            known[index],
            kinds,
            rate,
        )
        for index, task in enumerate(tasks)
    ]
    under_attack = [each.under_attack for each in found]
    measured = [value for value in under_attack if not math.isnan(value)]
    return {
        "rate": rate,
        "accuracy": {kind: [each.accuracy[kind] for each in found] for kind in kinds},
        "changed": {kind: [each.changed[kind] for each in found] for kind in kinds},
        "under_attack": under_attack,
        "acc_under_attack": float(np.mean(measured)) if measured else math.nan,
    }
