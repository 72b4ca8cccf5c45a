"""What is known of one task that is learned online: its newest examples, counts and training."""

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.training.drift import Drift
from moecl_jax.training.steps import TrainState

_ROUNDING = 1e-9  # of a budget such as 1/3


@dataclasses.dataclass
class Track:
    """What is known of one task.

    Attributes:
      place: place of the task in the stream.
      drift: watches its loss.
      window: its newest examples, at most a batch.
      arrived: number of its examples since its expert began.
      steps: number of steps since then.
      experts: number of experts that were begun for it online.
      state: its training; None before its first step. The shared trees are left out.
    """

    place: int
    drift: Drift
    window: collections.deque[TokenizedExample]
    arrived: int = 0
    steps: int = 0
    experts: int = 0
    state: TrainState | None = None

    def due(self, more: int, budget: float) -> bool:
        """Whether a step is due after so many more examples, at a budget of steps an example."""
        return math.floor((self.arrived + more) * budget + _ROUNDING) > self.steps

    def record(self) -> dict[str, Any]:
        """What is saved of it as JSON; the arrays of its training are saved apart."""
        return {
            "arrived": self.arrived,
            "steps": self.steps,
            "experts": self.experts,
            "begun": self.state is not None,
            "watched": len(self.drift.losses),
            "window": [
                {"ids": example.prompt.tolist(), "label": example.label} for example in self.window
            ],
        }

    def count_on(self, record: Mapping[str, Any]) -> None:
        """Takes over the counts and examples that `record` gave."""
        self.arrived, self.steps = record["arrived"], record["steps"]
        self.experts = record["experts"]
        for kept in record["window"]:
            example = TokenizedExample(np.array(kept["ids"], np.int32), kept["label"])
            self.window.append(example)
