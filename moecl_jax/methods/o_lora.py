"""O-LoRA: each task's LoRA in a subspace orthogonal to the earlier ones (arXiv 2310.14152).

    W x + c sum_{k <= t} B_k A_k x                      earlier LoRAs are frozen, and added
    L = L_SFT + lambda_1 sum_{modules} sum_{k < t} sum_{ij} |A_k A_t^T|_ij

A_k is `[r, I]`, its rows span the task's subspace. lambda_1 is 0.5, and absolute values are summed,
as in the released code; the paper's formula, and other code, squares the entries: `form`. Other
code also answers for a task by its own LoRA alone: `composed`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from moecl_jax.methods.added_loras import AddedLoras
from moecl_jax.methods.base import LossInputs, Penalty, TaskEnd, Traits
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.lora import Expert
from moecl_jax.settings import Section, setting


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Hyper-parameters of O-LoRA.

    Attributes:
      weight: lambda_1, coefficient of the orthogonality.
      form: what is summed of the overlap's entries: absolute (values) or squared.
      composed: whether earlier LoRAs are added, in training and in answering, or a task is answered
        for by its own alone.
    """

    KEY: ClassVar[str] = "o_lora"
    weight: float = setting(0.5, least=0, most=1e9, by_task=True)
    form: str = setting("absolute", choices=("absolute", "squared"), by_task=True)
    composed: bool = True


class OLora(AddedLoras):
    """A LoRA a task, each in a subspace orthogonal to the earlier ones, all of them added."""

    name: ClassVar[str] = "o_lora"
    Options: ClassVar[type[Any]] = Options

    def __init__(self, *arguments: Any, **values: Any):
        """As any method; where LoRAs are not composed, each task has its own."""
        super().__init__(*arguments, **values)
        alone = not self.options.composed
        self.traits = Traits(expert_per_task=alone, settled=alone)

    def finish_task(self, parameters: TaskParameters, end: TaskEnd) -> TaskParameters:
        """Puts the task's LoRA into the memory; not composed, it is the task's own too."""
        finished = super().finish_task(parameters, end)
        return finished if self.options.composed else finished.replace(expert=parameters.shared)

    def without_task(self, memory: Tree, index: int) -> Tree:
        """Not composed, the task's LoRA goes out of what later ones are kept orthogonal to."""
        if self.options.composed:
            return super().without_task(memory, index)
        nothing = jax.tree.map(jnp.zeros_like, self.lora_of(memory, index))
        return self.with_lora(memory, nothing, index)

    def adapter(self, parameters: TaskParameters, query: jax.Array | None = None) -> Tree:
        """The task's LoRA and, where they are composed, the earlier ones, as one LoRA."""
        if self.options.composed:
            return super().adapter(parameters, query)
        return {"expert": parameters.expert.get("expert", parameters.shared["expert"])}

    def penalty(self, parameters: TaskParameters, inputs: LossInputs) -> Penalty:
        """Lambda_1 times the overlap of the task's subspaces with the earlier ones."""
        del inputs
        size = jnp.abs if self.options.form == "absolute" else jnp.square
        found = overlap(parameters.shared["expert"], parameters.memory["expert"], size)
        return Penalty(self.options.weight * found, metrics={"overlap": found})


def overlap(
    current: Expert, past: Expert, size: Callable[[jax.Array], jax.Array] = jnp.abs
) -> jax.Array:
    """Sum over modules of the sizes of the entries of A_past A_current^T, a scalar."""
    total = jnp.zeros(())
    for target, factors in current.items():
        total += size(jnp.einsum("lip,lir->lpr", past[target]["a"], factors["a"])).sum()
    return total
