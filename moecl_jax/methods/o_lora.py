"""O-LoRA: each task's LoRA in a subspace orthogonal to the earlier ones (arXiv 2310.14152).

    W x + c sum_{k <= t} B_k A_k x                      earlier LoRAs are frozen, and added
    L = L_SFT + lambda_1 sum_{modules} sum_{k < t} sum_{ij} |A_k A_t^T|_ij

A_k is `[r, I]`, its rows span the task's subspace. lambda_1 is 0.5, and absolute values are summed,
as in the released code; the paper's formula, and other code, squares the entries: `form`. Other
code also answers for a task by its own LoRA alone: `composed`.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from moecl_jax.methods.base import LossInputs, Method, Penalty, TaskEnd, Traits, blank
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.config import DecoderConfig
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
    weight: float = setting(0.5, least=0, most=1e9)
    form: str = setting("absolute", choices=("absolute", "squared"))
    composed: bool = True


class OLora(Method):
    """A LoRA a task, each in a subspace orthogonal to the earlier ones, all of them added.

    The current task's LoRA is the shared tree. The memory holds those of finished tasks side by
    side as one LoRA of rank T r, zero where a task is to come.
    """

    name: ClassVar[str] = "o_lora"
    Options: ClassVar[type[Any]] = Options

    def __init__(self, *arguments: Any, **values: Any):
        """As any method; where LoRAs are not composed, each task has its own."""
        super().__init__(*arguments, **values)
        alone = not self.options.composed
        self.traits = Traits(expert_per_task=alone, settled=alone)

    def init_shared(self, key: jax.Array, sizes: DecoderConfig, task_count: int) -> Tree:
        """The first task's LoRA."""
        del task_count
        return {"expert": self.new_expert(key, sizes)}

    def init_memory(self, sizes: DecoderConfig, task_count: int) -> Tree:
        """No LoRA yet: `{"expert": {target: {"a": [L, I, T r], "b": [L, T r, O]}}}`."""
        one = blank(jax.eval_shape(lambda: self.new_expert(jax.random.key(0), sizes)))
        return {
            "expert": {
                target: {
                    "a": jnp.tile(factors["a"], (1, 1, task_count)),
                    "b": jnp.tile(factors["b"], (1, task_count, 1)),
                }
                for target, factors in one.items()
            }
        }

    def finish_task(self, parameters: TaskParameters, end: TaskEnd) -> TaskParameters:
        """Puts the task's LoRA into the memory; the next one begins with a new one."""
        shared = parameters.shared
        own = parameters.expert if self.options.composed else {"expert": shared["expert"]}
        return parameters.replace(
            shared={"expert": self.new_expert(end.key, end.sizes)},
            expert=own,
            memory=self.with_lora(parameters.memory, shared, end.index),
        )

    def adapter(self, parameters: TaskParameters, query: jax.Array | None = None) -> Tree:
        """The task's LoRA and, where they are composed, the earlier ones, as one LoRA."""
        del query
        current = parameters.shared["expert"]
        if not self.options.composed:
            return {"expert": parameters.expert.get("expert", current)}
        return {"expert": side_by_side(current, parameters.memory["expert"])}

    def penalty(self, parameters: TaskParameters, inputs: LossInputs) -> Penalty:
        """Lambda_1 times the overlap of the task's subspaces with the earlier ones."""
        del inputs
        size = jnp.abs if self.options.form == "absolute" else jnp.square
        overlap = jnp.zeros(())
        for target, factors in parameters.shared["expert"].items():
            past = parameters.memory["expert"][target]["a"]
            overlap += size(jnp.einsum("lip,lir->lpr", past, factors["a"])).sum()
        return Penalty(self.options.weight * overlap, metrics={"overlap": overlap})

    def with_lora(self, memory: Tree, shared: Tree, index: int) -> Tree:
        """The memory with the current LoRA in the place of the task `index`."""
        rank = self.lora.rank
        slots = slice(index * rank, (index + 1) * rank)
        past = {
            target: {
                "a": jnp.asarray(memory["expert"][target]["a"]).at[:, :, slots].set(factors["a"]),
                "b": jnp.asarray(memory["expert"][target]["b"]).at[:, slots].set(factors["b"]),
            }
            for target, factors in shared["expert"].items()
        }
        return {**memory, "expert": past}


def side_by_side(first: Expert, second: Expert) -> Expert:
    """The LoRA that is the sum of two, its factors joined along the rank."""
    return {
        target: {
            "a": jnp.concatenate([factors["a"], second[target]["a"]], axis=2),
            "b": jnp.concatenate([factors["b"], second[target]["b"]], axis=1),
        }
        for target, factors in first.items()
    }
