"""Sequential LoRA: one LoRA expert, trained on one task after another.

The baseline that forgets. Nothing protects earlier tasks: the expert is theirs and the current
task's alike. Classification heads, where used, are still one a task; with the LM head nothing
is a task's own.
"""

from typing import ClassVar

import jax

from moecl_jax.methods.base import Method
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.config import DecoderConfig


class SequentialLora(Method):
    """One LoRA expert for all tasks: L = L_SFT."""

    name: ClassVar[str] = "sequential_lora"

    def init_shared(self, key: jax.Array, sizes: DecoderConfig, task_count: int) -> Tree:
        """The one expert."""
        del task_count
        return {"expert": self.new_expert(key, sizes)}

    def adapter(self, parameters: TaskParameters, query: jax.Array | None = None) -> Tree:
        """The one expert."""
        del query
        return parameters.shared
