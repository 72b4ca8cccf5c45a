"""A tiny model of each family, and what the decoder makes of it.

Weights and LoRA factors are functions of their names, so that a fixture holds results alone.
Texts are longer than every sliding window here.
"""

import functools
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.decoder import Decoder
from moecl_jax.models.experts import lora_layer
from moecl_jax.models.lora import TARGETS, lora_term, projection_sizes
from moecl_jax.weights.families import FAMILIES, family_of
from moecl_jax.weights.load import Backbone

RANK, SCALE, VOCABULARY, LENGTHS = 2, 1.5, 61, (11, 7, 4)
TOKENS = sum(LENGTHS)

_TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}

_SLIDING = ["full_attention", "sliding_attention"]

# The content of config.json, some as transformers 4 writes it and some as transformers 5 does.
CASES: dict[str, dict[str, Any]] = {
    "Llama 2": {"model_type": "llama", "num_key_value_heads": 4, "rope_theta": 10000.0},
    "Llama, biases, linear rope": {
        "model_type": "llama",
        "attention_bias": True,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
    # Wavelengths 6, 25, 101 and 402: the first is kept, the second blended, two are divided.
    "Llama 3.1": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 256.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "Llama 3.2, tied": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_theta": 256.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "Mistral": {"model_type": "mistral", "head_dim": 8, "sliding_window": 5},
    "Qwen2": {"model_type": "qwen2", "rope_theta": 1000.0},
    "Qwen2, tied, window from layer 1": {
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "Qwen3": {"model_type": "qwen3", "head_dim": 16},
    "Qwen3, tied": {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    "Gemma 3": {
        "model_type": "gemma3_text",
        "tie_word_embeddings": True,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
        "sliding_window": 3,
        "sliding_window_pattern": 2,
        "rope_theta": 5000.0,
        "rope_local_base_freq": 50.0,
        "rope_scaling": None,
    },
    "Gemma 3, linear rope": {
        "model_type": "gemma3_text",
        "tie_word_embeddings": True,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 8,
        "sliding_window": 5,
        "layer_types": [_SLIDING[1], _SLIDING[1], _SLIDING[0]],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
    "HunYuan": {
        "model_type": "hunyuan_v1_dense",
        "head_dim": 8,
        "rope_theta": 100.0,
        "rope_scaling": {"type": "dynamic", "alpha": 50.0, "factor": 1.0, "mscale": 1.0},
    },
    "HunYuan, tied": {
        "model_type": "hunyuan_v1_dense",
        "head_dim": 16,
        "tie_word_embeddings": True,
        "rope_theta": 100.0,
        "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "mscale": 1.0},
    },
}
CASES = {name: _TINY | settings for name, settings in CASES.items()}


def numbers(name: str, shape: tuple[int, ...], deviation: float) -> np.ndarray:
    """Uniform numbers of mean 0 that depend on the name alone, in float32.

    From the bit generator itself: NumPy promises its stream, but not the distributions'.
    """
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    uniform = (raw >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5
    return (uniform * deviation * 12**0.5).astype(np.float32).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of a checkpoint [out, in], large enough for every term to matter."""
    return numbers(name, shape, 0.18) + np.float32("norm" in name)


def factor(target: str, kind: str, layer: int, shape: tuple[int, ...]) -> np.ndarray:
    """A LoRA factor of one layer, "a" `[I, r]` or "b" `[r, O]`."""
    return numbers(f"{layer}.{target}.{kind}", shape, 0.2)


def text(index: int) -> np.ndarray:
    """Token ids of one text."""
    raw = np.random.PCG64(index).random_raw(LENGTHS[index])
    return (raw % VOCABULARY).astype(np.int32)


def cotangent() -> np.ndarray:
    """What logits `[TOKENS, V]` are multiplied by, to be summed and differentiated."""
    return numbers("cotangent", (TOKENS, VOCABULARY), 1.0)


class Results(NamedTuple):
    """Of all texts one after another: logits `[TOKENS, V]`, and the gradient of each factor.

    Gradients are those of sum(logits * cotangent), by "q_proj.a" and so on, `[L, I, r]` or
    `[L, r, O]`.
    """

    logits: np.ndarray
    gradients: dict[str, np.ndarray]


class Found(NamedTuple):
    """What the decoder gives: logits with a row a text, and all results with one row for all."""

    padded: np.ndarray
    packed: Results


class Parity(NamedTuple):
    """Largest differences in logits, and in a gradient relative to its factor's largest entry."""

    padded: float
    packed: float
    gradients: float


def parity(found: Found, expected: Results) -> Parity:
    """Compares one case with the reference."""
    assert found.packed.gradients.keys() == expected.gradients.keys()
    relative = [
        np.abs(found.packed.gradients[name] - values).max() / np.abs(values).max()
        for name, values in expected.gradients.items()
    ]
    return Parity(
        float(np.abs(found.padded - expected.logits).max()),
        float(np.abs(found.packed.logits - expected.logits).max()),
        float(max(relative)),
    )


def write_folder(folder: Path, config: dict[str, Any]) -> Path:
    """Writes a case as a Hugging Face folder, without transformers."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(state_of(config), folder / "model.safetensors")
    return folder


def parse_config(config: dict[str, Any], file: Path) -> DecoderConfig:
    """What the content of a config.json means."""
    return family_of(config, file).parse_config(config, file)


def state_of(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a case's checkpoint."""
    decoder_config = parse_config(config, Path("config.json"))
    family = FAMILIES[config["model_type"]]()
    ids, membership = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2))
    init = functools.partial(Decoder(decoder_config).init, jax.random.key(0))
    shapes = jax.eval_shape(init, ids, ids, ids, ids, membership)["params"]
    state = {}
    for path, name in family.tensor_names(decoder_config).items():
        leaf = functools.reduce(lambda tree, key: tree[key], path, shapes)
        for layer in range(config["num_hidden_layers"] if path[0] == "layers" else 1):
            shape = leaf.shape[1:] if path[0] == "layers" else leaf.shape
            tensor = name.format(layer=layer)
            state[tensor] = weight(tensor, shape[::-1] if path[-1] == "kernel" else shape)
            if "norm" in tensor:
                state[tensor] -= np.float32(family.norm_offset)
    return state


def layout(packed: bool) -> tuple[np.ndarray, ...]:
    """Tokens, positions, segments and branches `[R, S]`: one row of all texts, or a row a text."""
    rows = [range(len(LENGTHS))] if packed else [[index] for index in range(len(LENGTHS))]
    slots = TOKENS + 3 if packed else max(LENGTHS) + 1
    tokens, positions, segments = (np.zeros((len(rows), slots), np.int32) for _ in range(3))
    for row, members in enumerate(rows):
        begin = 0
        for index in members:
            where = slice(begin, begin + LENGTHS[index])
            tokens[row, where], segments[row, where] = text(index), index + 1
            positions[row, where] = np.arange(LENGTHS[index])
            begin += LENGTHS[index]
    return tokens, positions, segments, np.zeros_like(tokens)


def with_lora(config: DecoderConfig, dtype: Any = jnp.float32) -> tuple[Decoder, Any]:
    """The decoder with a LoRA on every projection, and its factors."""
    expert = {
        target: {
            kind: np.stack([factor(target, kind, layer, shape) for layer in range(config.layers)])
            for kind, shape in (("a", (inputs, RANK)), ("b", (RANK, outputs)))
        }
        for target, (inputs, outputs) in projection_sizes(config).items()
    }
    assert set(expert) == set(TARGETS)
    settings: Any = {"scale": SCALE, "dropout_rate": 0.0}
    decoder = Decoder(
        config,
        dtype,
        feed_forward=functools.partial(lora_layer, **settings),
        attention_term=functools.partial(lora_term, experts=("expert",), **settings),
    )
    return decoder, {"expert": expert}


def texts_logits(decoder: Decoder, params: Any, adapter: Any, packed: bool) -> jax.Array:
    """Logits `[TOKENS, V]`."""
    arrays, variables = layout(packed), {"params": params}
    membership = jnp.ones((1, arrays[0].size))
    out: Any = decoder.apply(variables, *arrays, membership, adapter)
    logits: Any = decoder.apply(variables, out[0][np.flatnonzero(arrays[2])], method="logits")
    return logits


def run(backbone: Backbone, compiler_options: dict[str, Any] | None = None) -> Found:
    """Logits in both layouts, and gradients in one."""
    decoder, adapter = with_lora(backbone.config)
    compiled = functools.partial(jax.jit, compiler_options=compiler_options)
    padded = compiled(functools.partial(texts_logits, decoder, packed=False))

    @compiled
    @functools.partial(jax.grad, has_aux=True)
    def packed(adapter: Any, params: Any) -> Any:
        logits = texts_logits(decoder, params, adapter, packed=True)
        return jnp.sum(logits * cotangent()), logits

    gradients, logits = packed(adapter, backbone.params)
    by_name = {
        f"{target}.{kind}": np.asarray(values)
        for target, factors in gradients["expert"].items()
        for kind, values in factors.items()
    }
    return Found(np.asarray(padded(backbone.params, adapter)), Results(np.asarray(logits), by_name))
