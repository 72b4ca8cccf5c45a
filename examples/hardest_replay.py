"""Replay of the examples that were hardest when their task was finished.

    L = L_SFT over the task's own batch and examples drawn from the memory, together

The memory keeps the examples with the highest loss at the end of their task. Every finished task
has the same share of it, so that one noisy task does not fill the memory.
"""

from typing import ClassVar

import jax.numpy as jnp

from moecl_jax import Replay
from moecl_jax.data import Reservoir


class Hardest(Reservoir):
    """A memory of examples with the highest losses, in place of a uniform sample.

    Each finished task keeps `memory // tasks` examples. The others are dropped, those with the
    lowest loss first.
    """

    def choose(self, losses):
        """Task and place of each example to keep.

        Args:
          losses: of each finished task, the loss of every training example `[n]` at its end.
        """
        share = self.memory // len(losses)
        return [
            (task, int(place))
            for task, values in enumerate(losses)
            for place in jnp.argsort(-values)[:share]
        ]


class HardestReplay(Replay):
    """One LoRA for all tasks, trained on the current task and the hardest examples of earlier ones."""

    name: ClassVar[str] = "hardest_replay"

    @property
    def examples(self) -> Hardest:
        """The policy that chooses which examples are kept, and how many join a batch."""
        return Hardest(memory=self.options.memory, batch=self.options.batch)

    def finish_task(self, parameters, end):
        """Keeps the losses of the task's examples, by which the hardest are chosen."""
        kept = super().finish_task(parameters, end)
        return kept.remember(losses=end.losses())
