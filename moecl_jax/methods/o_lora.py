"""O-LoRA: each task's LoRA in a subspace orthogonal to the earlier ones (arXiv 2310.14152).

    W x + c sum_{k <= t} B_k A_k x                      earlier LoRAs are frozen, and added
    L = L_SFT + lambda_1 sum_{modules} sum_{k < t} sum_{ij} |A_k A_t^T|_ij

A_k is `[r, I]`, its rows span the task's subspace. lambda_1 is 0.5, and absolute values are summed,
as in the released code; the paper's formula, and other code, squares the entries: `form`. Other
code also answers for a task by its own LoRA alone: `composed`.
"""

import dataclasses
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from moecl_jax.errors import UserError
from moecl_jax.methods.base import Method, TaskEnd, Tree, View
from moecl_jax.models.lora import Expert

Form = Literal["absolute", "squared"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Hyper-parameters of O-LoRA.

    Attributes:
      weight: lambda_1.
      form: of an entry in the sum: its absolute value or its square.
      composed: whether earlier LoRAs are added, in training and in answering, or a task is answered
        for by its own alone.
    """

    weight: float = 0.5
    form: Form = "absolute"
    composed: bool = True

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise UserError(f"weight = {self.weight} must be at least 0")
        if self.form not in get_args(Form):
            raise UserError(f"form = {self.form!r} is not one of {', '.join(get_args(Form))}")


class OLora(Method):
    """The current task's LoRA is the shared tree; those of finished ones are in the memory.

    The memory holds them side by side as one LoRA of rank T r, zero where a task is to come.
    """

    name: ClassVar[str] = "o_lora"
    Options: ClassVar[type] = Options

    @property
    def separate(self) -> bool:
        """Where a task is answered for by its own LoRA."""
        return not self.options.composed

    def init_shared(self, key: jax.Array, task_count: int) -> Tree:
        """The first task's LoRA."""
        del task_count
        return {"expert": self.new_expert(key)}

    def init_memory(self, task_count: int) -> Tree:
        """No LoRA yet: `{"expert": {target: {"a": [L, I, T r], "b": [L, T r, O]}}}`."""
        one = jax.eval_shape(self.new_expert, jax.random.key(0))
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), one)
        return self._padded({"expert": empty}, task_count)

    def extend_memory(self, saved: Tree, task_count: int) -> Tree:
        """Room for the LoRAs of new tasks."""
        return self._padded(saved, task_count)

    def finish_task(
        self, shared: Tree, expert: Tree, memory: Tree, end: TaskEnd
    ) -> tuple[Tree, Tree, Tree]:
        """Puts the task's LoRA into the memory; the next one begins with a new one."""
        own = expert if self.options.composed else {"expert": shared["expert"]}
        fresh = {"expert": self.new_expert(end.key)}
        return fresh, own, self._with_lora(memory, shared, end.index)

    def adapter(
        self, shared: Tree, expert: Tree, memory: Tree, query: jax.Array | None = None
    ) -> Tree:
        """The task's LoRA and, where they are composed, the earlier ones, as one LoRA."""
        del query
        if not self.options.composed:
            return {"expert": expert.get("expert", shared["expert"])}
        return {"expert": side_by_side(shared["expert"], memory["expert"])}

    def penalty(self, shared: Tree, view: View) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Lambda_1 times the overlap of the task's subspaces with the earlier ones."""
        _, metrics = super().penalty(shared, view)
        size = jnp.abs if self.options.form == "absolute" else jnp.square
        overlap = jnp.zeros(())
        for target, factors in shared["expert"].items():
            past = view.memory["expert"][target]["a"]
            overlap += size(jnp.einsum("lip,lir->lpr", past, factors["a"])).sum()
        term = self.options.weight * overlap
        return term, {**metrics, "penalty": term, "overlap": overlap}

    def _with_lora(self, memory: Tree, shared: Tree, index: int) -> Tree:
        """The memory with the current LoRA in the place of the task `index`."""
        rank = self.settings.rank
        slots = slice(index * rank, (index + 1) * rank)
        past = {
            target: {
                "a": jnp.asarray(memory["expert"][target]["a"]).at[:, :, slots].set(factors["a"]),
                "b": jnp.asarray(memory["expert"][target]["b"]).at[:, slots].set(factors["b"]),
            }
            for target, factors in shared["expert"].items()
        }
        return {**memory, "expert": past}

    def _padded(self, memory: Tree, task_count: int) -> Tree:
        rank = task_count * self.settings.rank

        def pad(leaf: jax.Array, axis: int) -> jax.Array:
            widths = [(0, 0)] * leaf.ndim
            widths[axis] = (0, rank - leaf.shape[axis])
            return jnp.pad(leaf, widths)

        return {
            "expert": {
                target: {"a": pad(factors["a"], 2), "b": pad(factors["b"], 1)}
                for target, factors in memory["expert"].items()
            }
        }


def side_by_side(first: Expert, second: Expert) -> Expert:
    """The LoRA that is the sum of two, its factors joined along the rank."""
    return {
        target: {
            "a": jnp.concatenate([factors["a"], second[target]["a"]], axis=2),
            "b": jnp.concatenate([factors["b"], second[target]["b"]], axis=1),
        }
        for target, factors in first.items()
    }
