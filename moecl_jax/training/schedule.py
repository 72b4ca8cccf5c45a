"""The learning rate over a task's steps."""

import dataclasses
from collections.abc import Callable

import numpy as np

from moecl_jax.runs.settings import OptimizerSettings

SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + np.cos(np.pi * done)),
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A linear warm-up, then a shape down to 0 at the task's end.

    Attributes:
      peak: highest learning rate.
      shape: a key of `SHAPES`.
      warmup_fraction: part of the steps in which the rate rises.
    """

    peak: float
    shape: str
    warmup_fraction: float

    @classmethod
    def of(cls, settings: OptimizerSettings) -> "Schedule":
        """The schedule that settings ask for."""
        return cls(settings.learning_rate, settings.schedule, settings.warmup_fraction)

    def __call__(self, step: int, total: int) -> float:
        """The rate of the 0-based `step` out of `total`."""
        warmup = round(total * self.warmup_fraction)
        if step < warmup:
            return self.peak * (step + 1) / warmup
        return self.peak * SHAPES[self.shape]((step - warmup) / max(total - warmup, 1))
