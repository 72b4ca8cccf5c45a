"""Notices steps that were skipped because their loss or a gradient was not finite."""

import collections
import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from moecl_jax import reporting
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.errors import UserError
from moecl_jax.training.steps import Metrics

PATIENCE = 10
"""Skipped steps in a row after which a training stops."""
_LAG = 2  # steps that may be under way on the device before one is looked at
_FAR_FROM_CHANCE = 10.0  # times ln T, the adversarial loss of a discriminator that guesses


@dataclasses.dataclass(frozen=True)
class SkippedStep:
    """A step that changed nothing.

    Attributes:
      step: number of the step within its task, from 1.
      examples: places of its examples in their files.
      instruction: instruction loss.
      adversarial: adversarial loss.
    """

    step: int
    examples: list[str]
    instruction: float
    adversarial: float


class NotFinite(UserError):
    """A training stopped because steps in a row were skipped.

    Attributes:
      steps: those steps.
    """

    def __init__(self, message: str, steps: Sequence[SkippedStep]) -> None:
        """Says what happened, and in which steps."""
        super().__init__(message)
        self.steps = list(steps)


class Watch:
    """Looks at the steps of a task a little later, so that the device never waits.

    Attributes:
      skipped: number of steps that were skipped so far.
    """

    def __init__(self, task: str, task_count: int, total_steps: int, skipped: int = 0) -> None:
        """Begins with nothing to look at.

        Args:
          task: name of the task.
          task_count: number T of the discriminator's classes.
          total_steps: steps of the whole task.
          skipped: number of steps that were skipped before a resumption.
        """
        self.task, self.task_count, self.skipped = task, task_count, skipped
        self._patience = min(PATIENCE, total_steps)
        self._waiting: collections.deque[tuple[int, jax.Array, Metrics, list[str]]] = (
            collections.deque()
        )
        self._row: list[SkippedStep] = []

    @property
    def under_way(self) -> int:
        """Number of the steps that were not looked at."""
        return len(self._waiting)

    def add(
        self, step: int, skipped: jax.Array, metrics: Metrics, examples: Sequence[TokenizedExample]
    ) -> None:
        """Looks at earlier steps, and at this one later.

        Args:
          step: number of the step, from 1.
          skipped: scalar bool, whether it changed nothing.
          metrics: its losses.
          examples: its examples.

        Raises:
          NotFinite: the last steps were all skipped.
        """
        losses = {key: metrics[key] for key in ("loss_instruction", "loss_adversarial")}
        self._waiting.append((step, skipped, losses, [e.where for e in examples]))
        if len(self._waiting) > _LAG:
            self._look()

    def look_at_all(self) -> None:
        """Looks at the steps that are left.

        Raises:
          NotFinite: the last steps were all skipped.
        """
        while self._waiting:
            self._look()

    def _look(self) -> None:
        step, skipped, losses, examples = self._waiting.popleft()
        if not bool(skipped):
            self._row.clear()
            return
        if not self.skipped:
            reporting.current().message(
                f"note: step {step} of task '{self.task}' is skipped: its loss or a gradient is "
                "not finite"
            )
        self.skipped += 1
        instruction, adversarial = (float(np.asarray(value)) for value in losses.values())
        self._row.append(SkippedStep(step, examples, instruction, adversarial))
        if len(self._row) < self._patience:
            return
        # A step under way that is not skipped changes the state, and ends the row.
        if all(bool(later) for _, later, *_ in self._waiting):
            self._waiting.clear()
            raise NotFinite(self._message(), self._row)

    def _message(self) -> str:
        first, last = self._row[0], self._row[-1]
        steps = f"steps {first.step} to {last.step}" if len(self._row) > 1 else f"step {first.step}"
        chance = math.log(max(self.task_count, 2))
        far = [s for s in self._row if not abs(s.adversarial) < _FAR_FROM_CHANCE * chance]
        if far and all(math.isfinite(s.instruction) for s in far):
            cause = (
                f"The adversarial loss diverged: it is {far[0].adversarial:.3g}, and guessing "
                f"gives {chance:.3g}. Take adversarial.objective = 'confusion', or lower "
                "adversarial.alpha."
            )
        else:
            cause = (
                "Lower optimizer.learning_rate, or set optimizer.clip_norm, such as 1.0; if it is "
                "the examples, mend them."
            )
        places = [place for place in first.examples if place]
        shown = f", such as {places[0]}" if places else ""
        return (
            f"task '{self.task}': loss or gradients were not finite in {steps}, one after another. "
            f"Nothing was learned from these examples{shown}. {cause} The state before them is kept"
        )
