"""Qwen3 (arXiv 2505.09388), the dense models."""

from moecl_jax.weights.families.base import register
from moecl_jax.weights.families.qwen2 import Qwen2


@register
class Qwen3(Qwen2):
    """Qwen2 with norms of queries and keys in place of the biases."""

    model_type = "qwen3"
    defaults = {**Qwen2.defaults, "head_dim": 128}
    biases = None
    qk_norm = "before_rotary"
