"""The model families of Hugging Face folders: what config.json means, and what tensors are called.

Every family is one `DecoderConfig` and one table of names. What a config.json leaves out gets the
default of the family's config class in transformers.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from moecl_jax.errors import UserError
from moecl_jax.models.config import AttentionKind, DecoderConfig, RotaryScaling
from moecl_jax.weights import TreePath

EMBEDDING, OUTPUT_PROJECTION = "model.embed_tokens.weight", "lm_head.weight"

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")

_QWEN = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

# What config.json may leave out, by its `model_type`, beside what all families share.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "tie_word_embeddings": True,
    },
    "hunyuan_v1_dense": {"rms_norm_eps": 1e-5},
    "llama": {},
    "mistral": {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
}

_GEMMA, _HUNYUAN = "gemma3_text", "hunyuan_v1_dense"

_REFUSED = {
    "gemma2": "Gemma 2 caps its logits, which is not implemented",
    "gemma3": (
        "this is Gemma 3 with images. Its text model alone is supported: "
        "Gemma3ForCausalLM.from_pretrained(...).save_pretrained(...) of transformers writes it"
    ),
}

# Keys of config.json that change what the model computes, with the one value that is implemented.
_ONLY_VALUE: dict[str, Any] = {
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
}

_ACTIVATIONS: dict[Any, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}

_LAYER_TYPES = ("full_attention", "sliding_attention")

_QK_NORM: dict[str, Literal["before_rotary", "after_rotary"]] = {
    "qwen3": "before_rotary",
    _GEMMA: "before_rotary",
    _HUNYUAN: "after_rotary",
}

_SHARED_ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}

# Keys of rope_scaling and rope_parameters by rope_type, beside those that all have.
_ROPE_KEYS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    # Only alpha counts, as in transformers: with it the frequencies do not depend on the length.
    "dynamic": {"alpha", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"},
}


def check_model_type(raw: dict[str, Any], file: Path) -> str:
    """The `model_type` of config.json.

    Raises:
      UserError: it is missing or not supported.
    """
    model_type = raw.get("model_type")
    supported = f"Supported: {', '.join(_DEFAULTS)}."
    if model_type is None:
        raise UserError(
            f"{file}: the key model_type is missing, so the model's family is not known. Download "
            f'the whole config.json, or add for example "model_type": "llama". {supported}'
        )
    if not isinstance(model_type, str) or model_type not in _DEFAULTS:
        reason = _REFUSED.get(str(model_type), "which is not supported")
        raise UserError(f"{file}: model_type is {model_type!r}, {reason}. {supported}")
    return model_type


def parse_config(raw: dict[str, Any], file: Path) -> DecoderConfig:
    """Turns the content of config.json into a DecoderConfig.

    Args:
      raw: the content of config.json, as transformers 4 or 5 write it.
      file: where it came from, for messages.

    Raises:
      UserError: a key is missing, malformed, or asks for something that is not implemented.
    """
    model_type = check_model_type(raw, file)
    for key, only in _ONLY_VALUE.items():
        if raw.get(key, only) not in (only, None):
            raise UserError(
                f"{file}: {key} is {raw[key]!r}, which is not supported yet; expected {only!r}. "
                "Use a model without it."
            )
    values = _Values(_DEFAULTS[model_type] | raw, file)
    heads = values.integer("num_attention_heads")
    width = values.integer("hidden_size")
    gemma = model_type == _GEMMA
    try:
        head_width = values.integer("head_dim", width // heads)
        layer_types = _layer_types(model_type, values)
        rope_theta, kinds = _attention_kinds(model_type, values, head_width)
        used = [kind for kind in _LAYER_TYPES if kind in layer_types]
        return DecoderConfig(
            vocabulary_size=values.integer("vocab_size"),
            width=width,
            ffn_width=values.integer("intermediate_size"),
            layers=len(layer_types),
            heads=heads,
            kv_heads=values.integer("num_key_value_heads", heads),
            head_width=head_width,
            rope_theta=rope_theta,
            norm_epsilon=values.number("rms_norm_eps", 1e-6),
            tied_embeddings=values.truth("tie_word_embeddings"),
            context_length=values.integer("max_position_embeddings", 2048),
            activation=_activation(values, "hidden_activation" if gemma else "hidden_act"),
            attention_bias=_attention_bias(model_type, values),
            qk_norm=_QK_NORM.get(model_type, "none"),
            post_norms=gemma,
            embedding_scale=width**0.5 if gemma else 1.0,
            attention_scale=values.number("query_pre_attn_scalar") ** -0.5 if gemma else None,
            attention_kinds=tuple(kinds[kind] for kind in used),
            layer_kinds=tuple(map(used.index, layer_types)) if len(used) > 1 else (),
        )
    except (ValueError, ArithmeticError, TypeError) as error:
        raise UserError(f"{file}: {error}. Download the file again.") from error


def tensor_names(model_type: str, config: DecoderConfig) -> dict[TreePath, str]:
    """Name of the tensor behind each parameter; "{layer}" stands for the layer's index.

    The order is part of a backbone's fingerprint.
    """
    gemma = model_type == _GEMMA
    names: dict[TreePath, str] = {("embedder", "embedding"): EMBEDDING}

    def add(*path: str, name: str) -> None:
        names["layers", *path] = f"model.layers.{{layer}}.{name}"

    add("input_norm", "scale", name="input_layernorm.weight")
    for projection in _PROJECTIONS:
        add("attention", projection, "kernel", name=f"self_attn.{projection}.weight")
    second = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
    add("post_attention_norm", "scale", name=f"{second}.weight")
    for projection in ("gate_proj", "up_proj", "down_proj"):
        add("feed_forward", projection, "kernel", name=f"mlp.{projection}.weight")
    names["final_norm", "scale"] = "model.norm.weight"
    if not config.tied_embeddings:
        names["lm_head", "kernel"] = OUTPUT_PROJECTION
    for projection in config.attention_bias:
        add("attention", projection, "bias", name=f"self_attn.{projection}.bias")
    if config.qk_norm != "none":
        hunyuan = model_type == _HUNYUAN
        query, key = ("query_layernorm", "key_layernorm") if hunyuan else ("q_norm", "k_norm")
        add("attention", "q_norm", "scale", name=f"self_attn.{query}.weight")
        add("attention", "k_norm", "scale", name=f"self_attn.{key}.weight")
    if config.post_norms:
        add("attention_output_norm", "scale", name="post_attention_layernorm.weight")
        add("feed_forward_output_norm", "scale", name="post_feedforward_layernorm.weight")
    return names


def norm_offset(model_type: str) -> float:
    """What a family's stored norm scales lack: Gemma multiplies by 1 + weight."""
    return 1.0 if model_type == _GEMMA else 0.0


def _activation(values: "_Values", key: str) -> Literal["silu", "gelu_tanh"]:
    name = values.raw.get(key, "silu")
    if name not in _ACTIVATIONS:
        raise UserError(
            f"{values.file}: {key} is {name!r}, which is not supported yet; expected "
            f"{' or '.join(map(repr, _ACTIVATIONS))}. Use a model without it."
        )
    return _ACTIVATIONS[name]


def _attention_bias(model_type: str, values: "_Values") -> tuple[str, ...]:
    if model_type == "qwen2":
        return ("q_proj", "k_proj", "v_proj")
    return _PROJECTIONS if values.truth("attention_bias") else ()


def _layer_types(model_type: str, values: "_Values") -> list[str]:
    """One of `_LAYER_TYPES` for each layer."""
    layers = range(values.integer("num_hidden_layers"))
    full, sliding = _LAYER_TYPES
    if model_type == "mistral":
        return [full if values.raw["sliding_window"] is None else sliding for _ in layers]
    if "sliding_window" not in _DEFAULTS[model_type]:
        return [full for _ in layers]
    listed = values.raw.get("layer_types")
    if listed is not None:
        wrong = not isinstance(listed, list) or len(listed) != len(layers)
        if wrong or any(entry not in _LAYER_TYPES for entry in listed):
            raise UserError(
                f"{values.file}: layer_types is {listed!r}; expected {len(layers)} entries, each "
                f"{full!r} or {sliding!r}."
            )
        return listed
    if model_type == _GEMMA:
        pattern = values.integer("sliding_window_pattern")
        return [sliding if (layer + 1) % pattern else full for layer in layers]
    first = values.integer("max_window_layers", least=0)
    slides = values.truth("use_sliding_window") and values.raw["sliding_window"] is not None
    return [sliding if slides and layer >= first else full for layer in layers]


def _attention_kinds(
    model_type: str, values: "_Values", head_width: int
) -> tuple[float, dict[str, AttentionKind]]:
    """Base of the rotary embedding, and the kind of attention behind each of `_LAYER_TYPES`."""
    full, sliding = _LAYER_TYPES
    slides = sliding in _layer_types(model_type, values)
    window = values.integer("sliding_window") if slides else None
    ropes = {key: values.mapping(key) for key in ("rope_parameters", "rope_scaling")}
    if model_type != _GEMMA:
        theta, scaling = _rope(values, "rope_theta", 10000.0, ropes, model_type, head_width)
        return theta, {
            full: AttentionKind(scaling=scaling),
            sliding: AttentionKind(window, scaling=scaling),
        }
    parameters = ropes["rope_parameters"]
    if set(parameters) - set(_LAYER_TYPES):
        raise UserError(
            f"{values.file}: rope_parameters is {parameters!r}; expected no keys but {full!r} and "
            f"{sliding!r}."
        )
    by_type = {
        layer_type: {f"rope_parameters.{layer_type}": parameters.get(layer_type) or {}}
        for layer_type in _LAYER_TYPES
    }
    by_type[full]["rope_scaling"] = ropes["rope_scaling"]
    theta, scaling = _rope(values, "rope_theta", 1e6, by_type[full], model_type, head_width)
    local_theta, local_scaling = _rope(
        values, "rope_local_base_freq", 1e4, by_type[sliding], model_type, head_width
    )
    return theta, {
        full: AttentionKind(scaling=scaling),
        sliding: AttentionKind(window, local_theta, local_scaling),
    }


def _rope(
    values: "_Values",
    theta_key: str,
    default_theta: float,
    ropes: dict[str, dict[str, Any]],
    model_type: str,
    head_width: int,
) -> tuple[float, RotaryScaling | None]:
    """Base and scaling of a rotary embedding: old files have `theta_key`, new ones `ropes`."""
    thetas, scalings = {}, {}
    if values.raw.get(theta_key) is not None:
        thetas[theta_key] = values.number(theta_key)
    for name, content in ropes.items():
        rope = _Values(content, values.file, f"{name}.")
        if rope.raw.get("rope_theta") is not None:
            thetas[f"{name}.rope_theta"] = rope.number("rope_theta")
        if rope.raw:
            context = values.raw.get("max_position_embeddings")
            scalings[name] = _scaling(name, rope, model_type, head_width, context)
    for found in (thetas, scalings):
        if len(set(found.values())) > 1:
            shown = found if found is thetas else {name: ropes[name] for name in found}
            raise UserError(
                f"{values.file}: the values disagree: {shown}. Keep the right one only."
            )
    scaling, stretch = next(iter(scalings.values()), (None, 1.0))
    return next(iter(thetas.values()), default_theta) * stretch, scaling


def _scaling(
    name: str, rope: "_Values", model_type: str, head_width: int, context_length: int | None
) -> tuple[RotaryScaling | None, float]:
    """The scaling that an object of config.json asks for, and what it multiplies the base by."""
    raw = rope.raw
    kind = raw.get("rope_type", raw.get("type", "default"))
    supported = kind in _ROPE_KEYS and set(raw) <= _ROPE_KEYS[kind] | _SHARED_ROPE_KEYS
    if kind == "dynamic":
        supported &= model_type == _HUNYUAN and bool(raw.get("alpha"))
    if not supported or raw.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"{rope.file}: {name} is {raw!r}, which is not supported yet. Supported are the "
            f"rope_type 'default', 'linear' and 'llama3', each with its own keys only, and in "
            f"{_HUNYUAN} 'dynamic' with alpha. Use a model without it."
        )
    if kind == "linear":
        return RotaryScaling(rope.number("factor")), 1.0
    if kind == "llama3":
        length = rope.integer("original_max_position_embeddings", context_length)
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if low >= high:
            raise UserError(
                f"{rope.file}: {name} is {raw!r}; expected low_freq_factor < high_freq_factor."
            )
        return RotaryScaling(rope.number("factor"), (length / high, length / low)), 1.0
    if kind == "dynamic":
        return None, rope.number("alpha") ** (head_width / (head_width - 2))
    return None, 1.0


@dataclasses.dataclass(frozen=True)
class _Values:
    """Checked access to a JSON object; `prefix` stands before its keys in messages."""

    raw: dict[str, Any]
    file: Path
    prefix: str = ""

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number; `default` stands in for null and a missing key."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            expected = "a positive integer" if least == 1 else f"an integer of at least {least}"
            raise self._error(key, value, expected)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number above zero; `default` stands in for null and a missing key."""
        value = self._get(key, default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise self._error(key, value, "a positive number")
        return float(value)

    def truth(self, key: str) -> bool:
        """True or false; false where the key is missing."""
        value = self.raw.get(key, False)
        if not isinstance(value, bool):
            raise self._error(key, value, "true or false")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """An object; empty for null and a missing key."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self._error(key, value, "an object or null")
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        return default if value is None else value

    def _error(self, key: str, value: Any, expected: str) -> UserError:
        return UserError(
            f"{self.file}: {self.prefix}{key} is {value!r}; expected {expected}. "
            "Download the file again."
        )
