"""Mistral 7B (arXiv 2310.06825) and models of its kind."""

from moecl_jax.weights.families.base import FULL, SLIDING, Family, register
from moecl_jax.weights.families.values import Values


@register
class Mistral(Family):
    """All layers see a window, or none does."""

    model_type = "mistral"
    defaults = {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    }

    def layer_types(self, values: Values) -> list[str]:
        """All sliding, or all full where `sliding_window` is null."""
        kind = FULL if values.raw.get("sliding_window") is None else SLIDING
        return [kind] * values.integer("num_hidden_layers")
