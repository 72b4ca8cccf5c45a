"""Llama 1 to 3 (arXiv 2302.13971, 2307.09288, 2407.21783) and models of their kind."""

from moecl_jax.weights.families.base import Family, register


@register
class Llama(Family):
    """A `Family` as it stands."""

    model_type = "llama"
    gguf_architecture = "llama"
