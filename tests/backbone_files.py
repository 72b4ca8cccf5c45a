"""Writes tiny checkpoints to disk, and checks what was read back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
import safetensors.numpy
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from moecl_jax.errors import UserError
from moecl_jax.models.config import DecoderConfig
from moecl_jax.weights.load import Backbone, load_backbone

LAYERS, WIDTH, FFN, HEADS, KV_HEADS, HEAD, VOCABULARY = 3, 32, 64, 4, 2, 8, 11

CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
}

EXPECTED_CONFIG = DecoderConfig(
    vocabulary_size=11,
    width=32,
    ffn_width=64,
    layers=3,
    heads=4,
    kv_heads=2,
    head_width=8,
    rope_theta=500.0,
    norm_epsilon=1e-5,
    tied_embeddings=False,
    context_length=64,
)

# Hugging Face name, path in the tree, llama.cpp name, shape [out, in].
TENSORS = (
    ("self_attn.q_proj", "attention/q_proj/kernel", "attn_q", (32, 32)),
    ("self_attn.k_proj", "attention/k_proj/kernel", "attn_k", (16, 32)),
    ("self_attn.v_proj", "attention/v_proj/kernel", "attn_v", (16, 32)),
    ("self_attn.o_proj", "attention/o_proj/kernel", "attn_output", (32, 32)),
    ("mlp.gate_proj", "feed_forward/gate_proj/kernel", "ffn_gate", (64, 32)),
    ("mlp.up_proj", "feed_forward/up_proj/kernel", "ffn_up", (64, 32)),
    ("mlp.down_proj", "feed_forward/down_proj/kernel", "ffn_down", (32, 64)),
    ("input_layernorm", "input_norm/scale", "attn_norm", (32,)),
    ("post_attention_layernorm", "post_attention_norm/scale", "ffn_norm", (32,)),
)

# A tensor in the middle, for tests that damage one.
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"

# What Git LFS leaves in place of a file that was not pulled.
LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 12345\n"
)


def random_state() -> dict[str, np.ndarray]:
    """A Hugging Face state dict of random float32 numbers."""
    generator = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (VOCABULARY, WIDTH),
    }
    for layer in range(LAYERS):
        for name, _, _, shape in TENSORS:
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return {
        name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }


def write_folder(
    folder: Path,
    state: dict[str, np.ndarray],
    shards: int = 1,
    index: bool = True,
    **config: Any,
) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    if shards == 1:
        safetensors.numpy.save_file(state, folder / "model.safetensors")
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(state.items())[shard::shards])
        safetensors.numpy.save_file(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    if index:
        content = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(content)
    return folder


def edit_json(file: Path, edit: Callable[[Any], object]) -> None:
    """Changes the content of a JSON file in place."""
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def without(state: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {name: value for name, value in state.items() if name not in names}


def assert_holds(backbone: Backbone, state: dict[str, np.ndarray]) -> None:
    """Checks the whole tree, value by value, against a state dict [out, in]."""
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): value
        for path, value in jax.tree_util.tree_leaves_with_path(backbone.params)
    }
    expected = {
        "embedder/embedding": state["model.embed_tokens.weight"],
        "final_norm/scale": state["model.norm.weight"],
    }
    if "lm_head.weight" in state:
        expected["lm_head/kernel"] = state["lm_head.weight"].T
    for name, path, _, _ in TENSORS:
        values = [state[f"model.layers.{layer}.{name}.weight"] for layer in range(LAYERS)]
        expected[f"layers/{path}"] = np.stack([value.T for value in values])
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def message_of(path: Path | str, **arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_backbone(path, **arguments)
    return str(caught.value)


def write_gguf(
    file: Path,
    state: dict[str, np.ndarray],
    encoding: GGMLQuantizationType = GGMLQuantizationType.F32,
    skip_key: str = "",
    architecture: str = "llama",
    extra_keys: dict[str, int | str] | None = None,
    extra_tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Writes a model as llama.cpp's converter does, without a tokenizer."""
    writer = gguf.GGUFWriter(file, architecture)
    keys = {
        "vocab_size": VOCABULARY,
        "embedding_length": WIDTH,
        "feed_forward_length": FFN,
        "block_count": LAYERS,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "rope.dimension_count": HEAD,
        "context_length": 64,
    } | (extra_keys or {})
    for key, value in keys.items():
        if key != skip_key:
            add = writer.add_string if isinstance(value, str) else writer.add_uint32
            add(f"llama.{key}", value)
    writer.add_float32("llama.rope.freq_base", 500.0)
    if skip_key != "attention.layer_norm_rms_epsilon":
        writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, value in state.items():
        stem = name.removesuffix(".weight")
        if stem in top:
            target = top[stem]
        else:
            layer, short = stem.removeprefix("model.layers.").split(".", 1)
            target = f"blk.{layer}." + next(row[2] for row in TENSORS if row[0] == short)
        if target.endswith("attn_q"):
            value = permuted(value, HEADS)
        if target.endswith("attn_k"):
            value = permuted(value, KV_HEADS)
        kind = encoding if value.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(f"{target}.weight", quantize(value, kind), raw_dtype=kind)
    for name, value in (extra_tensors or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows that llama.cpp wants: pair (i, i + K / 2) of a head side by side."""
    order = []
    for head in range(heads):
        for i in range(HEAD // 2):
            order += [head * HEAD + i, head * HEAD + i + HEAD // 2]
    return rows[order]
