"""LoRAs of finished tasks, frozen and added to the current one: what several methods share.

    W x + c sum_{k <= t} B_k A_k x

Side by side along the rank, the LoRAs of T tasks are one LoRA of rank T r. So layers see a plain
LoRA, and a stream is computed by the same program from its first task to its last.

Axes: L layers, N tokens, I and O input and output widths of a projection, r rank, T tasks.
"""

import jax
import jax.numpy as jnp

from moecl_jax.errors import UserError
from moecl_jax.methods.base import Method, TaskEnd, blank
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.lora import Expert


class AddedLoras(Method):
    """A LoRA a task, all of them added: L = L_SFT.

    The current task's LoRA is the shared tree. The memory holds those of finished tasks side by
    side, zero where a task is to come.
    """

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
        return parameters.replace(
            shared={"expert": self.new_expert(end.key, end.sizes)},
            memory=self.with_lora(parameters.memory, parameters.shared["expert"], end.index),
        )

    def adapter(self, parameters: TaskParameters, query: jax.Array | None = None) -> Tree:
        """The task's LoRA and the earlier ones, as one LoRA."""
        del query
        return {"expert": side_by_side(parameters.shared["expert"], parameters.memory["expert"])}

    def with_lora(self, memory: Tree, expert: Expert, index: int) -> Tree:
        """The memory with a LoRA in the place of the task `index`."""
        rank = self.lora.rank
        slots = slice(index * rank, (index + 1) * rank)
        past = {
            target: {
                "a": jnp.asarray(memory["expert"][target]["a"]).at[:, :, slots].set(factors["a"]),
                "b": jnp.asarray(memory["expert"][target]["b"]).at[:, slots].set(factors["b"]),
            }
            for target, factors in expert.items()
        }
        return {**memory, "expert": past}

    def lora_of(self, memory: Tree, index: int) -> Expert:
        """The LoRA in the place of the task `index`."""
        slots = slice(index * self.lora.rank, (index + 1) * self.lora.rank)
        return {
            target: {"a": factors["a"][:, :, slots], "b": factors["b"][:, slots]}
            for target, factors in memory["expert"].items()
        }

    def without_task(self, memory: Tree, index: int) -> Tree:
        """Refuses: all tasks are answered with the sum of all LoRAs."""
        del memory, index
        raise UserError(
            f"method '{self.name}' answers for every task with the LoRAs of all tasks together, so "
            "that without one of them the other tasks would be answered differently. 'moecl "
            "rollback' goes back to the end of an earlier task"
        )

    def task_count(self, memory: Tree) -> int:
        """T, the number of tasks that a memory has places for."""
        width: int = jax.tree.leaves(memory["expert"])[0].shape[2]
        return width // self.lora.rank


def side_by_side(first: Expert, second: Expert) -> Expert:
    """The LoRA that is the sum of two, its factors joined along the rank."""
    return {
        target: {
            "a": jnp.concatenate([factors["a"], second[target]["a"]], axis=2),
            "b": jnp.concatenate([factors["b"], second[target]["b"]], axis=1),
        }
        for target, factors in first.items()
    }


def weighed(expert: Expert, weights: jax.Array, rank: int) -> Expert:
    """LoRAs side by side, each with a weight for each token.

    Args:
      expert: K LoRAs as one of rank K r.
      weights: `[N, K]`.
      rank: r.
    """
    layers = jax.tree.leaves(expert)[0].shape[0]
    of_rank = jnp.repeat(weights, rank, axis=1)
    stacked = jnp.broadcast_to(of_rank[None], (layers, *of_rank.shape))
    return {target: {**factors, "weights": stacked} for target, factors in expert.items()}
