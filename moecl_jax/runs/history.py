"""What was measured of a stream so far."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moecl_jax.runs.classification import classify
from moecl_jax.runs.metrics import summarize


def _nothing() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well a task's examples are answered; all NaN where there are none.

    Attributes:
      accuracy: share of right answers; with the LM head by exact match of the greedy answer.
      scored_accuracy: share in which the right label scores highest; NaN in a free-form task,
        which has no labels to choose from.
      log_likelihood: mean log of the right label's share of exp(scores); in a free-form task mean
        log-probability of the responses.
      labels: labels of the task; none in a free-form task.
      gold: `[n]`, index of each example's label; empty in a free-form task.
      predicted: `[n]`, index of the label that was answered, or `NO_LABEL`; empty in a free-form
        task.
      shared_weight: mean weight of MoE-CL's shared expert in each layer; else empty.
      shown: mean number of demonstrations before an example's prompt.
      left_out: mean number of those for which there was no room.
    """

    accuracy: float
    scored_accuracy: float
    log_likelihood: float
    labels: tuple[str, ...] = ()
    gold: np.ndarray = dataclasses.field(default_factory=_nothing, compare=False)
    predicted: np.ndarray = dataclasses.field(default_factory=_nothing, compare=False)
    shared_weight: tuple[float, ...] = ()
    shown: float = 0.0
    left_out: float = 0.0

    @property
    def right(self) -> np.ndarray:
        """Whether each example is answered rightly, `[n]` bool; empty in a free-form task."""
        return self.gold == self.predicted

    @property
    def classification(self) -> dict[str, Any] | None:
        """Figures of each label, as results.json has them; None in a free-form task.

        `majority` is the accuracy of always giving the label that most of the examples have; the
        others are those of `runs.classification`.
        """
        if not self.gold.size:
            return None
        found = classify(self.labels, self.gold, self.predicted)
        figures = found.to_json()
        kept = ("labels", "support", "precision", "recall", "f1", "macro_f1")
        majority = int(found.support.max()) / len(self.gold)
        return {"majority": majority} | {key: figures[key] for key in kept}


@dataclasses.dataclass
class History:
    """Accuracies so far: rows after each finished task, columns all tasks of the stream.

    NaN stands for what was not measured: columns of tasks without test examples, and all rows but
    the last of tasks that were finished before a conversion.

    Attributes:
      random_init: accuracy on each task before any training.
      accuracy: the matrix R.
      scored: the same, by scoring the labels' texts.
      validation: validation accuracy of the weights kept of each task.
      global_step: number of steps done in all finished tasks.
      wall_seconds: seconds spent until the last task was finished.
      gate_weights: mean weight of MoE-CL's shared expert by task and layer, after the task
        that was finished last.
      converted: number of finished tasks that came with a converted checkpoint.
      skipped: number of steps that were skipped because something was not finite.
      right: a text for each task, after the one that was finished last: `1` for a test text that
        is answered rightly and `0` for any other, in their order; "" in a free-form task.
      classification: figures of each label for each task, after the one that was finished last.
      shown: mean number of demonstrations before a test text, for each task, after the one that was
        finished last.
      left_out: mean number of those that did not fit the model's context, likewise.
      task_settings: for each task, by its name, the values it was trained with of those that may
        differ from task to task.
      task_free: after the last task of the stream, results where each text's task is chosen.
      pretraining: what is told of a training on plain texts before the first task.
      robustness: after the last task of the stream, results with changed texts.
      scored_random_init: the same as `random_init`, by scoring the labels' texts.
    """

    random_init: list[float]
    accuracy: list[list[float]] = dataclasses.field(default_factory=list)
    scored: list[list[float]] = dataclasses.field(default_factory=list)
    validation: list[float | None] = dataclasses.field(default_factory=list)
    global_step: int = 0
    wall_seconds: float = 0.0
    gate_weights: list[list[float]] = dataclasses.field(default_factory=list)
    converted: int = 0
    skipped: int = 0
    right: list[str] = dataclasses.field(default_factory=list)
    classification: list[dict[str, Any] | None] = dataclasses.field(default_factory=list)
    shown: list[float] = dataclasses.field(default_factory=list)
    left_out: list[float] = dataclasses.field(default_factory=list)
    task_settings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    task_free: dict[str, Any] | None = None
    pretraining: dict[str, Any] | None = None
    robustness: dict[str, Any] | None = None
    scored_random_init: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        """Fills in what was not measured, as in a converted checkpoint."""
        unknown = len(self.random_init) - len(self.scored_random_init)
        self.scored_random_init += [math.nan] * unknown

    @classmethod
    def of_untrained(cls, evaluations: Sequence[Evaluation]) -> "History":
        """The history before any training, with the results on all tasks."""
        history = cls([])
        for evaluation in evaluations:
            history.append_untrained(evaluation)
        return history

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "History":
        """The history in the record of a checkpoint, whose null is NaN."""
        known = {f.name: record[f.name] for f in dataclasses.fields(cls) if f.name in record}
        for name in ("random_init", "scored_random_init", "accuracy", "scored", "gate_weights"):
            if name in known:
                known[name] = np.array(known[name], np.float64).tolist()
        return cls(**known)

    def append_untrained(self, evaluation: Evaluation) -> None:
        """Adds the results on one more task before any training."""
        self.random_init.append(evaluation.accuracy)
        self.scored_random_init.append(evaluation.scored_accuracy)

    def of_first(self, count: int) -> "History":
        """The history less what was measured of the tasks of the stream from `count` on."""
        known = len(self.random_init)
        if count >= known:
            return self
        cut: dict[str, Any] = {"task_free": None, "robustness": None}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("accuracy", "scored"):
                cut[field.name] = [row[:count] for row in value]
            elif isinstance(value, list) and len(value) == known:  # one for each task
                cut[field.name] = value[:count]
        return dataclasses.replace(self, **cut)

    def append_row(
        self, evaluations: Sequence[Evaluation], *, unchanged: Sequence[int] = ()
    ) -> None:
        """Adds the results on all tasks after a task.

        Args:
          evaluations: results on all tasks.
          unchanged: places of tasks whose results are those of the row before.
        """
        gates_before, right_before = self.gate_weights, self.right
        figures_before, none = self.classification, [0.0] * len(evaluations)
        before = self.shown or none, self.left_out or none
        self.accuracy.append([e.accuracy for e in evaluations])
        self.scored.append([e.scored_accuracy for e in evaluations])
        layers = max((len(e.shared_weight) for e in evaluations), default=0)
        unknown = [math.nan] * layers  # of a task without examples
        gates = [list(e.shared_weight) or unknown for e in evaluations]
        self.gate_weights = gates if layers else []
        self.right = ["".join("01"[int(answer)] for answer in e.right) for e in evaluations]
        self.classification = [e.classification for e in evaluations]
        self.shown = [e.shown for e in evaluations]
        self.left_out = [e.left_out for e in evaluations]
        for place in unchanged:
            for matrix in (self.accuracy, self.scored):
                matrix[-1][place] = matrix[-2][place]
            self.right[place] = right_before[place]
            self.classification[place] = figures_before[place]
            self.shown[place], self.left_out[place] = (means[place] for means in before)
            if self.gate_weights:
                self.gate_weights[place] = gates_before[place]

    def append_unknown_row(self) -> None:
        """Adds the row of a task after which nothing was measured."""
        for matrix in (self.accuracy, self.scored):
            matrix.append([math.nan] * len(self.random_init))

    def results(self) -> dict[str, Any]:
        """What results.json holds of this."""
        results = {
            "accuracy_matrix": self.accuracy,
            "random_init": self.random_init,
            "metrics": summarize(
                self.accuracy, self.random_init, self.scored, self.scored_random_init
            ),
            "scored_accuracy_matrix": self.scored,
            "scored_random_init": self.scored_random_init,
            "validation_accuracy": self.validation,
            "task_free": self.task_free,
            "pretraining": self.pretraining,
            "robustness": self.robustness,
            "classification": self.classification,
            "gate_weights": self.gate_weights,
            "demonstrations": {"shown": self.shown, "left_out": self.left_out},
            "right": self.right,
            "steps": self.global_step,
            "skipped_steps": self.skipped,
            "wall_seconds": self.wall_seconds,
        }
        if not any(self.shown) and not any(self.left_out):
            del results["demonstrations"]
        for key in ("gate_weights", "skipped_steps", "pretraining", "robustness"):
            if not results[key]:
                del results[key]
        return results
