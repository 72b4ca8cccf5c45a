"""Elastic weight consolidation: what mattered to earlier tasks is held back (arXiv 1612.00796).

    L = L_SFT + weight / 2 sum_i F_i (theta_i - theta*_i)^2
    F <- decay F + mean over examples of (d log p(answer | prompt) / d theta_i)^2     after a task

theta* are the weights after the task before. One running F for all tasks, as in online EWC (Schwarz
et al. 2018, arXiv 1805.06370); decay 1 sums. F is the empirical Fisher information: the gradients
are those of the answers in the data, one example at a time.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from moecl_jax.errors import UserError
from moecl_jax.methods.base import TaskEnd, Tree, View
from moecl_jax.methods.sequential_lora import SequentialLora


@dataclasses.dataclass(frozen=True)
class Options:
    """Hyper-parameters of EWC.

    Attributes:
      weight: of the penalty.
      decay: what is left of F when a task adds its own.
      examples: of a task's training examples, how many F is estimated from.
    """

    weight: float = 1e4
    decay: float = 1.0
    examples: int = 64

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise UserError(f"weight = {self.weight} must be at least 0")
        if not 0 <= self.decay <= 1:
            raise UserError(f"decay = {self.decay} must be between 0 and 1")
        if self.examples < 1:
            raise UserError(f"examples = {self.examples} must be at least 1")


class Ewc(SequentialLora):
    """One LoRA expert for all tasks, held near where it was by the Fisher information."""

    name: ClassVar[str] = "ewc"
    Options: ClassVar[type] = Options

    @property
    def importance_examples(self) -> int:
        """How many examples F is estimated from."""
        return int(self.options.examples)

    def init_memory(self, task_count: int) -> Tree:
        """F and theta*, both zero."""
        del task_count
        shapes = jax.eval_shape(lambda: self.init_shared(jax.random.key(0), 1))
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
        return {"fisher": empty, "anchor": empty}

    def finish_task(
        self, shared: Tree, expert: Tree, memory: Tree, end: TaskEnd
    ) -> tuple[Tree, Tree, Tree]:
        """Adds the task's Fisher information, and moves theta* to where it ended."""
        decay = self.options.decay
        fisher = jax.tree.map(lambda old, new: decay * old + new, memory["fisher"], end.importance)
        return shared, expert, {"fisher": fisher, "anchor": shared}

    def penalty(self, shared: Tree, view: View) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The weighted squared distance from theta*."""
        _, metrics = super().penalty(shared, view)
        terms = jax.tree.map(
            lambda f, theta, anchor: jnp.sum(f * (theta - anchor) ** 2),
            view.memory["fisher"],
            shared,
            view.memory["anchor"],
        )
        distance = jax.tree.reduce(jnp.add, terms, jnp.zeros(()))
        term = 0.5 * self.options.weight * distance
        return term, {**metrics, "penalty": term}
