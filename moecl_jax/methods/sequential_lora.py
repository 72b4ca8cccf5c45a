"""Sequential LoRA: one LoRA expert, trained on one task after another.

The baseline that forgets. Nothing protects earlier tasks: the expert is theirs and the current
task's alike. Classification heads, where used, are still one a task; with the LM head nothing
is a task's own.
"""

import functools
from typing import ClassVar

import jax

from moecl_jax.methods.base import Method, Tree
from moecl_jax.models.moe_ffn import FeedForward, lora_ffn


class SequentialLora(Method):
    """One LoRA expert for all tasks: L = L_SFT."""

    name: ClassVar[str] = "sequential_lora"
    experts: ClassVar[tuple[str, ...]] = ("expert",)

    def init_shared(self, key: jax.Array, task_count: int) -> Tree:
        """The one expert."""
        del task_count
        return {"expert": self.new_expert(key)}

    def init_task_expert(self, key: jax.Array) -> Tree:
        """Nothing."""
        del key
        return {}

    def feed_forward(self, training: bool) -> FeedForward:
        """The FFN with one LoRA expert."""
        rate = self.settings.dropout if training else 0.0
        return functools.partial(lora_ffn, scale=self.settings.scale, dropout_rate=rate)

    def adapter(self, shared: Tree, expert: Tree) -> Tree:
        """The one expert."""
        del expert
        return shared
