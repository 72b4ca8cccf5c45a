"""One LoRA expert a task, none shared: nothing is forgotten, and nothing is carried over.

Backward transfer is 0 by construction: what answers for a finished task is frozen with it (but for
a classification head, where all tasks share one). This is the per-task tuning that the MoE-CL paper
(arXiv 2509.18133) compares with.
"""

from typing import ClassVar

import jax

from moecl_jax.methods.base import Method, Traits
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.config import DecoderConfig


class PerTask(Method):
    """One LoRA expert a task: L = L_SFT."""

    name: ClassVar[str] = "per_task"
    traits = Traits(expert_per_task=True, settled=True)

    def init_shared(self, key: jax.Array, sizes: DecoderConfig, task_count: int) -> Tree:
        """Nothing is shared."""
        del key, sizes, task_count
        return {}

    def init_expert(self, key: jax.Array, sizes: DecoderConfig) -> Tree:
        """The task's expert."""
        return self.new_expert(key, sizes)

    def adapter(self, parameters: TaskParameters, query: jax.Array | None = None) -> Tree:
        """The task's expert."""
        del query
        return {"expert": parameters.expert}
