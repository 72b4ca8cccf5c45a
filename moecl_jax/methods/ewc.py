"""Elastic weight consolidation: what mattered to earlier tasks is held back (arXiv 1612.00796).

    L = L_SFT + weight / 2 sum_i F_i (theta_i - theta*_i)^2
    F <- decay F + mean over examples of (d log p(answer | prompt) / d theta_i)^2     after a task

theta* are the weights after the task before. One running F for all tasks, as in online EWC (Schwarz
et al. 2018, arXiv 1805.06370); decay 1 sums. F is the empirical Fisher information: the gradients
are those of the answers in the data, one example at a time.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from moecl_jax.methods.base import LossInputs, Penalty, TaskEnd, blank
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.models.config import DecoderConfig
from moecl_jax.settings import Section, setting


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Hyper-parameters of EWC.

    Attributes:
      weight: coefficient of the penalty.
      decay: what is left of F when a task adds its own.
      examples: number of a task's training examples that F is estimated from.
    """

    KEY: ClassVar[str] = "ewc"
    weight: float = setting(1e4, least=0, most=1e12, by_task=True)
    decay: float = setting(1.0, least=0, most=1, by_task=True)
    examples: int = setting(64, least=1, most=10**9, by_task=True)


class Ewc(SequentialLora):
    """One LoRA expert for all tasks, held near where it was by the Fisher information."""

    name: ClassVar[str] = "ewc"
    Options: ClassVar[type[Any]] = Options

    def init_memory(self, sizes: DecoderConfig, task_count: int) -> Tree:
        """F and theta*, both zero."""
        zero = blank(jax.eval_shape(lambda: self.init_shared(jax.random.key(0), sizes, task_count)))
        return {"fisher": zero, "anchor": zero}

    def finish_task(self, parameters: TaskParameters, end: TaskEnd) -> TaskParameters:
        """Adds the task's Fisher information, and moves theta* to where it ended."""
        decay, memory = self.options.decay, parameters.memory
        squares = end.mean_of_gradients(self.options.examples, jnp.square)
        fisher = jax.tree.map(lambda old, new: decay * old + new, memory["fisher"], squares)
        return parameters.replace(memory={"fisher": fisher, "anchor": parameters.shared})

    def penalty(self, parameters: TaskParameters, inputs: LossInputs) -> Penalty:
        """The weighted squared distance from theta*."""
        del inputs
        terms = jax.tree.map(
            lambda f, theta, anchor: jnp.sum(f * (theta - anchor) ** 2),
            parameters.memory["fisher"],
            parameters.shared,
            parameters.memory["anchor"],
        )
        distance = jax.tree.reduce(jnp.add, terms, jnp.zeros(()))
        return Penalty(0.5 * self.options.weight * distance)
