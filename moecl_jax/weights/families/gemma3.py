"""Gemma 3 (arXiv 2503.19786), the text models."""

from typing import Any

from moecl_jax.errors import UserError
from moecl_jax.models.config import AttentionKind
from moecl_jax.outside import shortened
from moecl_jax.weights.families.base import (
    FULL,
    LAYER_TYPES,
    SLIDING,
    Family,
    listed_layer_types,
    register,
)
from moecl_jax.weights.families.rope import read_rope
from moecl_jax.weights.families.values import Values

_LAYERS_OF_27B = 62


@register
class Gemma3(Family):
    """Four norms a layer, scaled embeddings, and local layers with a rotary base of their own."""

    model_type = "gemma3_text"
    gguf_architecture = "gemma3"
    gguf_interleaved = False
    defaults = {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "tie_word_embeddings": True,
    }
    refused = {
        "gemma2": "Gemma 2 caps its logits, which is not implemented",
        "gemma3": (
            "this is Gemma 3 with images. Its text model alone is supported: "
            "Gemma3ForCausalLM.from_pretrained(...).save_pretrained(...) of transformers writes it"
        ),
    }
    activation_key = "hidden_activation"
    qk_norm = "before_rotary"
    post_norms = True
    norm_offset = 1.0
    tensors = {
        ("layers", "post_attention_norm", "scale"): (
            "model.layers.{layer}.pre_feedforward_layernorm.weight"
        ),
        ("layers", "attention_output_norm", "scale"): (
            "model.layers.{layer}.post_attention_layernorm.weight"
        ),
        ("layers", "feed_forward_output_norm", "scale"): (
            "model.layers.{layer}.post_feedforward_layernorm.weight"
        ),
    }

    def layer_types(self, values: Values) -> list[str]:
        """Those listed, else every `sliding_window_pattern`-th is full."""
        listed = listed_layer_types(values)
        if listed is not None:
            return listed
        layers = range(values.integer("num_hidden_layers"))
        pattern = values.integer("sliding_window_pattern")
        return [SLIDING if (layer + 1) % pattern else FULL for layer in layers]

    def attention_kinds(
        self, values: Values, window: int | None, head_width: int
    ) -> tuple[float, dict[str, AttentionKind]]:
        """Sliding layers have the base `rope_local_base_freq`, and no `rope_scaling`."""
        parameters = values.mapping("rope_parameters")
        scaling = values.mapping("rope_scaling")
        of_kind = Values(parameters, values.file, "rope_parameters.")
        if set(parameters) - set(LAYER_TYPES):
            raise UserError(
                f"{values.file}: rope_parameters is {shortened(parameters)}; expected no keys but "
                f"{FULL!r} and {SLIDING!r}."
            )
        objects = {kind: {f"rope_parameters.{kind}": of_kind.mapping(kind)} for kind in LAYER_TYPES}
        objects[FULL]["rope_scaling"] = scaling
        theta, full = read_rope(
            values,
            "rope_theta",
            1e6,
            objects[FULL],
            types=self.rope_types,
            head_width=head_width,
        )
        local_theta, local = read_rope(
            values,
            "rope_local_base_freq",
            1e4,
            objects[SLIDING],
            types=self.rope_types,
            head_width=head_width,
        )
        return theta, {
            FULL: AttentionKind(scaling=full),
            SLIDING: AttentionKind(window, local_theta, local),
        }

    def embedding_scale(self, values: Values) -> float:
        """The square root of the width."""
        return values.integer("hidden_size") ** 0.5

    def attention_scale(self, values: Values) -> float | None:
        """The inverse square root of `query_pre_attn_scalar`, which need not be the head width."""
        return values.number("query_pre_attn_scalar") ** -0.5

    def from_gguf(self, values: dict[str, Any]) -> dict[str, Any]:
        """Adds the scale of attention, which llama.cpp knows by the number of layers.

        It is that of a head's width, and in the model of 27B that of the width over the heads. A
        file that says no window has full layers alone.
        """
        heads, width = values["num_attention_heads"], values["hidden_size"]
        largest = values["num_hidden_layers"] == _LAYERS_OF_27B
        scalar = width // heads if largest else values["head_dim"]
        pattern = {} if "sliding_window" in values else {"sliding_window_pattern": 1}
        return {**values, **pattern, "query_pre_attn_scalar": scalar}
