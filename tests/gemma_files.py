"""Tiny Gemma 3 models as GGUF files, as llama.cpp's converter writes them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize

# Hugging Face name, llama.cpp name.
TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
}

KEYS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "context_length": "max_position_embeddings",
}

# A vocabulary; the spaces of what users have defined are written as spaces, those of others not.
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
USERS = ["\n", "\n\n", "<b>", "  ", "   "]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LEARNT = [
    *("▁t", "he", "▁the", "in", "▁a", "你好", "的", "▁the▁", "een", "12"),
    *("▁", "t", "h", "e", "i", "n", "a", "你", "好", "1", "2", "3", "b", "<", ">", "s", "o"),
]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
    "{{ message['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def vocabulary(**keys: Any) -> dict[str, Any]:
    """Metadata of a tiny SentencePiece vocabulary with Gemma's kinds of pieces."""
    tokens = [*CONTROL, *USERS, *BYTES, *LEARNT]
    types = [3] * len(CONTROL) + [4] * len(USERS) + [6] * len(BYTES) + [1] * len(LEARNT)
    scores = [-1000.0] * (len(CONTROL) + len(USERS)) + [0.0] * len(BYTES)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [*scores, *(-float(place) for place in range(len(LEARNT)))],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": TEMPLATE,
    } | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def write_gemma(
    file: Path,
    config: dict[str, Any],
    state: dict[str, np.ndarray],
    *,
    keys: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
    encodings: dict[str, GGMLQuantizationType] | None = None,
    raw: dict[str, np.ndarray] | None = None,
) -> Path:
    """Writes a model.

    Args:
      file: the file.
      config: content of its config.json.
      state: Hugging Face's state dict, float32; norms hold w, and the file will hold 1 + w.
      keys: metadata beside that of `KEYS`, without the architecture's name; None leaves one out.
      tokenizer: metadata of a tokenizer, as whole keys.
      encodings: how a tensor is stored, by its llama.cpp name without layer and ".weight".
      raw: bytes `[out, bytes of a row]` of tensors that are stored already, by their whole name.
    """
    writer = gguf.GGUFWriter(file, "gemma3")
    values = {end: config[name] for end, name in KEYS.items()} | {
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config.get("rope_theta", 1e6),
        **(keys or {}),
    }
    for end, value in values.items():
        if value is not None:
            _add(writer, f"gemma3.{end}", value)
    for key, value in (tokenizer or {}).items():
        _add(writer, key, value)
    for name, value in state.items():
        stem = name.removesuffix(".weight")
        layer, _, short = stem.removeprefix("model.layers.").partition(".")
        blocks = stem.startswith("model.layers.")
        target = TENSORS[short if blocks else stem]
        whole = f"blk.{layer}.{target}.weight" if blocks else f"{target}.weight"
        kind = (encodings or {}).get(target, GGMLQuantizationType.F32)
        if raw and whole in raw:
            stored = raw[whole]
        else:
            stored = quantize(value + np.float32("norm" in target), kind)
        writer.add_tensor(whole, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_string(key, value)
