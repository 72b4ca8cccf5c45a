"""Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115)."""

from typing import ClassVar

from moecl_jax.weights.families.base import FULL, SLIDING, Family, listed_layer_types, register
from moecl_jax.weights.families.values import Values


@register
class Qwen2(Family):
    """Queries, keys and values have a bias; the upper layers may see a window."""

    model_type = "qwen2"
    defaults = {
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }
    biases: ClassVar[tuple[str, ...] | None] = ("q_proj", "k_proj", "v_proj")

    def layer_types(self, values: Values) -> list[str]:
        """Those listed, else sliding from layer `max_window_layers` on if windows are used."""
        listed = listed_layer_types(values)
        if listed is not None:
            return listed
        first = values.integer("max_window_layers", least=0)
        window = values.raw.get("sliding_window")
        slides = values.truth("use_sliding_window") and window is not None
        layers = range(values.integer("num_hidden_layers"))
        return [SLIDING if slides and layer >= first else FULL for layer in layers]
