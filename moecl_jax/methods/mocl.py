"""MoCL: task experts composed by how well their task vectors match the input (arXiv 2404.00790).

    alpha = softmax_k cos(q, v_k),  k <= t      q: mean frozen word embedding of the prompt
    W x + c sum_k alpha_k B_k A_k x
    L = L_SFT + match mean_b (1 - cos(q_b, v_t))

Expert and task vector v_t of the current task are trained, those of finished tasks are frozen. No
task is named: a text is answered by all experts learnt so far, weighed by its own query.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from moecl_jax.methods.added_loras import AddedLoras, side_by_side, weighed
from moecl_jax.methods.base import LossInputs, Penalty, TaskEnd, TaskStart, Traits
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.config import DecoderConfig
from moecl_jax.settings import Section, setting

VECTOR_DEVIATION = 0.02  # of a new task vector, of which only the direction matters


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Hyper-parameters of MoCL.

    Attributes:
      match: coefficient of the match loss, 1 in the paper.
    """

    KEY: ClassVar[str] = "mocl"
    match: float = setting(1.0, least=0, most=1e6, by_task=True)


class Mocl(AddedLoras):
    """A LoRA a task, all of them weighed by how well their task vectors match the text.

    The current expert is shared and the finished ones are in the memory. Beside them the memory has
    the task vectors `[T, D]`, how many tasks are finished, and whether a task is being trained,
    whose expert then is composed with the finished ones.
    """

    name: ClassVar[str] = "mocl"
    Options: ClassVar[type[Any]] = Options

    traits = Traits(
        reads_query=True,
        no_single_lora="it weighs its experts anew for each text, by the words in it, so that "
        "together they are no linear map",
    )

    def init_shared(self, key: jax.Array, sizes: DecoderConfig, task_count: int) -> Tree:
        """The first task's expert and task vector `[D]`."""
        expert_key, vector_key = jax.random.split(key)
        vector = VECTOR_DEVIATION * jax.random.normal(vector_key, (sizes.width,))
        return {**super().init_shared(expert_key, sizes, task_count), "vector": vector}

    def init_memory(self, sizes: DecoderConfig, task_count: int) -> Tree:
        """No expert yet."""
        return {
            **super().init_memory(sizes, task_count),
            "vectors": jnp.zeros((task_count, sizes.width)),
            "finished": jnp.zeros(()),
            "training": jnp.zeros(()),
        }

    def begin_task(self, parameters: TaskParameters, start: TaskStart) -> Tree:
        """The current expert joins in."""
        del start
        return {**parameters.memory, "training": jnp.ones(())}

    def finish_task(self, parameters: TaskParameters, end: TaskEnd) -> TaskParameters:
        """Puts expert and task vector into the memory; the next task begins with new ones."""
        shared, memory = parameters.shared, parameters.memory
        vectors = jnp.asarray(memory["vectors"])
        kept = {
            **self.with_lora(memory, shared["expert"], end.index),
            "vectors": vectors.at[end.index].set(shared["vector"]),
            "finished": memory["finished"] + 1.0,
            "training": jnp.zeros(()),
        }
        fresh = self.init_shared(end.key, end.sizes, len(vectors))
        return parameters.replace(shared=fresh, memory=kept)

    def weights(self, parameters: TaskParameters, query: jax.Array) -> jax.Array:
        """Alpha `[N, 1 + T]` of queries `[N, D]`: the current expert's, then the finished ones'.

        Experts that do not exist have none; before the first task is begun the current one, which
        changes nothing yet, has it all.
        """
        memory = parameters.memory
        vectors = jnp.concatenate([parameters.shared["vector"][None], memory["vectors"]])
        current = jnp.maximum(memory["training"], (memory["finished"] == 0).astype(jnp.float32))
        finished = jnp.arange(len(vectors) - 1) < memory["finished"]
        exists = jnp.concatenate([current[None] > 0, finished])
        match = jnp.where(exists[None], cosine(query, vectors), -jnp.inf)
        return jax.nn.softmax(match, axis=-1)

    def adapter(self, parameters: TaskParameters, query: jax.Array | None = None) -> Tree:
        """All experts as one LoRA, the middle of which is weighed for each token."""
        if query is None:
            raise ValueError("MoCL composes its experts by a query, and none was given")
        joined = side_by_side(parameters.shared["expert"], parameters.memory["expert"])
        return {"expert": weighed(joined, self.weights(parameters, query), self.lora.rank)}

    def penalty(self, parameters: TaskParameters, inputs: LossInputs) -> Penalty:
        """The match loss of the current task vector."""
        match = cosine(inputs.query, parameters.shared["vector"][None])[:, 0]
        weights = inputs.batch.weights
        distance = jnp.sum((1.0 - match) * weights)
        return Penalty(self.options.match * distance / jnp.maximum(weights.sum(), 1))


def cosine(query: jax.Array, vectors: jax.Array) -> jax.Array:
    """Cosines `[N, K]` of `[N, D]` and `[K, D]`; 0 with a vector that is 0."""

    def unit(rows: jax.Array) -> jax.Array:
        squares = jnp.sum(rows**2, axis=-1, keepdims=True)
        return rows * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))

    return unit(query) @ unit(vectors).T
