"""SLAO: one LoRA, into which each task's is merged when it is finished (arXiv 2512.23017).

    A_t begins as Q^T of A_{t-1}^T = Q R, and B_t as B_{t-1}          before task t
    B <- B + lambda(t) (B_t - B),  A <- A_t,  lambda(t) = 1 / sqrt(t)     after it, t from 1
    W x + c B A x                                                     answers for all tasks

A_t, B_t are the LoRA that is trained, L = L_SFT. A has an orthonormal basis of the last A to start
from, so that tasks share a subspace; of the two signs of each vector of Q the one is taken that
makes R's diagonal positive, since B goes on as it was. The first task begins as any LoRA does.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from moecl_jax.methods.base import TaskEnd, TaskStart, blank
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.lora import Expert


class Slao(SequentialLora):
    """One LoRA expert for all tasks, the running merge of the LoRAs that were trained on them.

    The shared tree is the LoRA in training. The memory has the merged one, and whether a task is
    being trained, which then is answered for by its own.
    """

    name: ClassVar[str] = "slao"

    def init_memory(self, sizes: DecoderConfig, task_count: int) -> Tree:
        """Nothing is merged yet."""
        zero = blank(jax.eval_shape(lambda: self.init_shared(jax.random.key(0), sizes, task_count)))
        return {"merged": zero["expert"], "training": jnp.zeros(())}

    def begin_task(self, parameters: TaskParameters, start: TaskStart) -> Tree:
        """The LoRA in training answers."""
        del start
        return {**parameters.memory, "training": jnp.ones(())}

    def finish_task(self, parameters: TaskParameters, end: TaskEnd) -> TaskParameters:
        """Merges the task's LoRA; the next one begins at an orthonormal basis of its A."""
        trained = parameters.shared["expert"]
        merged = merged_with(parameters.memory["merged"], trained, end.index)
        return parameters.replace(
            shared={"expert": following(trained)},
            memory={"merged": merged, "training": jnp.zeros(())},
        )

    def adapter(self, parameters: TaskParameters, query: jax.Array | None = None) -> Tree:
        """The merged LoRA; while a task is trained, the one in training."""
        del query
        training = parameters.memory["training"] > 0
        chosen = jax.tree.map(
            lambda own, merged: jnp.where(training, own, merged),
            parameters.shared["expert"],
            parameters.memory["merged"],
        )
        return {"expert": chosen}


def merged_with(before: Expert, trained: Expert, index: int) -> Expert:
    """The merged LoRA with that of the task at place `index` in it."""
    share = (index + 1) ** -0.5
    return {
        target: {
            "a": factors["a"],
            "b": before[target]["b"] + share * (factors["b"] - before[target]["b"]),
        }
        for target, factors in trained.items()
    }


def following(trained: Expert) -> Expert:
    """The LoRA with which the task after one begins that ended with `trained`."""
    return {
        target: {**factors, "a": orthonormal(factors["a"])} for target, factors in trained.items()
    }


def orthonormal(a: jax.Array) -> jax.Array:
    """Q `[L, I, r]` of the QR decomposition of A `[L, I, r]` with a positive diagonal of R."""
    q, r = jnp.linalg.qr(jnp.asarray(a))
    diagonal = jnp.diagonal(r, axis1=-2, axis2=-1)
    return q * jnp.where(diagonal < 0, -1.0, 1.0)[:, None, :]
