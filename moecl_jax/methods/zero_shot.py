"""Zero-shot: the frozen LLM answers with the task's template alone, and nothing is trained.

    answer = argmax_label log p(label | template with the text)

The floor that other methods are held against: what the LLM knows of a task before any training. It
costs nothing but the scoring.
"""

from typing import ClassVar

import jax

from moecl_jax.methods.base import Method, Traits
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.experts import FeedForward, frozen_layer
from moecl_jax.models.lora import AttentionTerm, no_term


class ZeroShot(Method):
    """The frozen LLM as it is."""

    name: ClassVar[str] = "zero_shot"
    traits = Traits(
        output="lm",
        settled=True,
        experts=(),
        trains=False,
        no_single_lora="nothing was trained, and there is no LoRA",
    )

    def init_shared(self, key: jax.Array, sizes: DecoderConfig, task_count: int) -> Tree:
        """Nothing is shared."""
        del key, sizes, task_count
        return {}

    def adapter(self, parameters: TaskParameters, query: jax.Array | None = None) -> Tree:
        """No LoRA."""
        del parameters, query
        return {}

    def feed_forward(self, training: bool) -> FeedForward:
        """The model's own."""
        del training
        return frozen_layer

    def attention_term(self, training: bool) -> AttentionTerm:
        """Nothing is added."""
        del training
        return no_term
