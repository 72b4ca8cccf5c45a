"""Sequential full fine-tuning: all weights of the LLM, trained on one task after another.

What is trained is the difference from the LLM as it was loaded, in float32, so that a small step
is not lost in bfloat16's rounding. Weight decay pulls towards the loaded weights. For small models:
the difference, its optimizer state and its copies are each as large as the LLM in float32.
"""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from moecl_jax.kernels import from_bits
from moecl_jax.methods.base import Method, Traits, blank
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.decoder import Decoder


class SequentialFull(Method):
    """No LoRA; every weight is trained: L = L_SFT."""

    name: ClassVar[str] = "sequential_full"
    traits = Traits(
        trains_llm=True,
        experts=(),
        no_single_lora="all weights of the LLM were trained, and no LoRA",
    )

    def init_shared(self, key: jax.Array, sizes: DecoderConfig, task_count: int) -> Tree:
        """The difference from the loaded weights, zero, in the decoder's structure."""
        del key, task_count
        tokens = jnp.zeros((1, 2), jnp.int32)
        init = functools.partial(Decoder(sizes).init, jax.random.key(0))
        shapes = jax.eval_shape(init, tokens, tokens, tokens, tokens, jnp.zeros((1, 2)))
        return {"difference": blank(shapes["params"])}

    def llm_weights(self, frozen: Tree, shared: Tree) -> Tree:
        """The loaded weights and the difference, in the loaded dtype."""

        def add(loaded: jax.Array, difference: jax.Array) -> jax.Array:
            weights = from_bits(loaded)
            return (weights.astype(jnp.float32) + difference).astype(weights.dtype)

        return jax.tree.map(add, frozen, shared["difference"])

    def adapter(self, parameters: TaskParameters, query: jax.Array | None = None) -> Tree:
        """No LoRA."""
        del parameters, query
        return {"expert": {}}
