"""MoCL: task experts composed by how well their task vectors match the input (arXiv 2404.00790).

    alpha = softmax_k cos(q, v_k),  k <= t      q: mean frozen word embedding of the prompt
    W x + c sum_k alpha_k B_k A_k x
    L = L_SFT + match mean_b (1 - cos(q_b, v_t))

Expert and task vector v_t of the current task are trained, those of finished tasks are frozen. No
task is named: a text is answered by all experts learnt so far, weighed by its own query.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from moecl_jax.errors import UserError
from moecl_jax.methods.base import Method, TaskEnd, Tree, View
from moecl_jax.methods.o_lora import OLora, side_by_side

VECTOR_DEVIATION = 0.02  # of a new task vector, of which only the direction matters


@dataclasses.dataclass(frozen=True)
class Options:
    """Hyper-parameters of MoCL.

    Attributes:
      match: coefficient of the match loss, 1 in the paper.
    """

    match: float = 1.0

    def __post_init__(self) -> None:
        if self.match < 0:
            raise UserError(f"match = {self.match} must be at least 0")


class Mocl(OLora):
    """As in O-LoRA the current expert is shared and the finished ones are in the memory.

    Beside them the memory has the task vectors `[T, D]`, how many tasks are finished, and whether
    a task is being trained, whose expert then is composed with the finished ones.
    """

    name: ClassVar[str] = "mocl"
    Options: ClassVar[type] = Options
    queries: ClassVar[bool] = True
    no_single_lora: ClassVar[str] = (
        "it weighs its experts anew for each text, by the words in it, so that together they are "
        "no linear map"
    )

    @property
    def separate(self) -> bool:
        """No: all experts answer for each text."""
        return False

    def init_shared(self, key: jax.Array, task_count: int) -> Tree:
        """The first task's expert and task vector `[D]`."""
        expert_key, vector_key = jax.random.split(key)
        vector = VECTOR_DEVIATION * jax.random.normal(vector_key, (self.config.width,))
        return {**super().init_shared(expert_key, task_count), "vector": vector}

    def init_memory(self, task_count: int) -> Tree:
        """No expert yet."""
        return {
            **super().init_memory(task_count),
            "vectors": jnp.zeros((task_count, self.config.width)),
            "finished": jnp.zeros(()),
            "training": jnp.zeros(()),
        }

    def extend_memory(self, saved: Tree, task_count: int) -> Tree:
        """Room for the experts of new tasks."""
        added = task_count - saved["vectors"].shape[0]
        vectors = jnp.pad(saved["vectors"], ((0, added), (0, 0)))
        return {**saved, **super().extend_memory(saved, task_count), "vectors": vectors}

    def begin_task(self, shared: Tree, memory: Tree) -> Tree:
        """The current expert joins in."""
        del shared
        return {**memory, "training": jnp.ones(())}

    def finish_task(
        self, shared: Tree, expert: Tree, memory: Tree, end: TaskEnd
    ) -> tuple[Tree, Tree, Tree]:
        """Puts expert and task vector into the memory; the next task begins with new ones."""
        vectors = jnp.asarray(memory["vectors"])
        kept = {
            **self._with_lora(memory, shared, end.index),
            "vectors": vectors.at[end.index].set(shared["vector"]),
            "finished": memory["finished"] + 1.0,
            "training": jnp.zeros(()),
        }
        return self.init_shared(end.key, len(vectors)), expert, kept

    def weights(self, shared: Tree, memory: Tree, query: jax.Array) -> jax.Array:
        """Alpha `[N, 1 + T]` of queries `[N, D]`: the current expert's, then the finished ones'.

        Experts that do not exist have none; before the first task is begun the current one, which
        changes nothing yet, has it all.
        """
        vectors = jnp.concatenate([shared["vector"][None], memory["vectors"]])
        current = jnp.maximum(memory["training"], (memory["finished"] == 0).astype(jnp.float32))
        finished = jnp.arange(len(vectors) - 1) < memory["finished"]
        exists = jnp.concatenate([current[None] > 0, finished])
        match = jnp.where(exists[None], cosine(query, vectors), -jnp.inf)
        return jax.nn.softmax(match, axis=-1)

    def adapter(
        self, shared: Tree, expert: Tree, memory: Tree, query: jax.Array | None = None
    ) -> Tree:
        """All experts as one LoRA, the middle of which is weighed for each token."""
        del expert
        if query is None:
            raise ValueError("MoCL composes its experts by a query, and none was given")
        weights = jnp.repeat(self.weights(shared, memory, query), self.settings.rank, axis=1)
        stacked = jnp.broadcast_to(weights[None], (self.config.layers, *weights.shape))
        joined = side_by_side(shared["expert"], memory["expert"])
        return {
            "expert": {
                target: {**factors, "weights": stacked} for target, factors in joined.items()
            }
        }

    def penalty(self, shared: Tree, view: View) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The match loss of the current task vector."""
        _, metrics = Method.penalty(self, shared, view)
        match = cosine(view.query, shared["vector"][None])[:, 0]
        weights = view.batch.weights
        term = self.options.match * jnp.sum((1.0 - match) * weights) / jnp.maximum(weights.sum(), 1)
        return term, {**metrics, "penalty": term}


def cosine(query: jax.Array, vectors: jax.Array) -> jax.Array:
    """Cosines `[N, K]` of `[N, D]` and `[K, D]`; 0 with a vector that is 0."""

    def unit(rows: jax.Array) -> jax.Array:
        squares = jnp.sum(rows**2, axis=-1, keepdims=True)
        return rows * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))

    return unit(query) @ unit(vectors).T
