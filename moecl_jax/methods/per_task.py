"""One LoRA expert a task, none shared: nothing is forgotten, and nothing is carried over.

Backward transfer is 0 by construction: what answers for a finished task is frozen with it (but for
a classification head, where all tasks share one). This is the per-task tuning that the MoE-CL paper
(arXiv 2509.18133) compares with.
"""

from typing import ClassVar

import jax

from moecl_jax.methods.base import Method, Tree


class PerTask(Method):
    """One LoRA expert a task: L = L_SFT."""

    name: ClassVar[str] = "per_task"

    @property
    def separate(self) -> bool:
        """Yes: there is nothing else."""
        return True

    def init_shared(self, key: jax.Array, task_count: int) -> Tree:
        """Nothing."""
        del key, task_count
        return {}

    def init_task_expert(self, key: jax.Array) -> Tree:
        """The task's expert."""
        return self.new_expert(key)

    def adapter(
        self, shared: Tree, expert: Tree, memory: Tree, query: jax.Array | None = None
    ) -> Tree:
        """The task's expert."""
        del shared, memory, query
        return {"expert": expert}
