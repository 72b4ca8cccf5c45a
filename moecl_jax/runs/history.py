"""What was measured of a stream so far."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


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
      shared_weight: mean weight of MoE-CL's shared expert in each layer; else empty.
    """

    accuracy: float
    scored_accuracy: float
    log_likelihood: float
    right: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool), compare=False)
    shared_weight: tuple[float, ...] = ()


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
      task_settings: for each task, by its name, the values it was trained with of those that may
        differ from task to task.
      task_free: after the last task of the stream, results where each text's task is chosen.
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
    task_settings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    task_free: dict[str, Any] | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "History":
        """The history in the record of a checkpoint, whose null is NaN."""
        known = {f.name: record[f.name] for f in dataclasses.fields(cls) if f.name in record}
        for name in ("random_init", "accuracy", "scored", "gate_weights"):
            if name in known:
                known[name] = np.array(known[name], np.float64).tolist()
        return cls(**known)

    def of_first(self, count: int) -> "History":
        """The history less what was measured of the tasks of the stream from `count` on."""
        known = len(self.random_init)
        if count >= known:
            return self
        cut: dict[str, Any] = {"task_free": None}
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
        self.accuracy.append([e.accuracy for e in evaluations])
        self.scored.append([e.scored_accuracy for e in evaluations])
        layers = max((len(e.shared_weight) for e in evaluations), default=0)
        unknown = [math.nan] * layers  # of a task without examples
        gates = [list(e.shared_weight) or unknown for e in evaluations]
        self.gate_weights = gates if layers else []
        self.right = ["".join("01"[int(answer)] for answer in e.right) for e in evaluations]
        for place in unchanged:
            for matrix in (self.accuracy, self.scored):
                matrix[-1][place] = matrix[-2][place]
            self.right[place] = right_before[place]
            if self.gate_weights:
                self.gate_weights[place] = gates_before[place]

    def append_unknown_row(self) -> None:
        """Adds the row of a task after which nothing was measured."""
        for matrix in (self.accuracy, self.scored):
            matrix.append([math.nan] * len(self.random_init))
