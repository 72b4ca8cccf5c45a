"""Reads the models in GGUF files, as written by llama.cpp's convert_hf_to_gguf.py.

The metadata is turned into what config.json would say, which the family then reads.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moecl_jax.errors import UserError
from moecl_jax.models.config import (
    LEAST_NUMBER,
    LEAST_ROPE_THETA,
    MOST_LAYERS,
    MOST_NORM_EPSILON,
    MOST_NUMBER,
    MOST_SIZE,
)
from moecl_jax.outside import shortened
from moecl_jax.weights import Checkpoint, StoredTensor, TreePath
from moecl_jax.weights.families import FAMILIES, Family
from moecl_jax.weights.gguf_file import read_gguf

_NAMES: dict[TreePath, str] = {
    ("embedder", "embedding"): "token_embd.weight",
    ("layers", "input_norm", "scale"): "blk.{layer}.attn_norm.weight",
    ("layers", "attention", "q_proj", "kernel"): "blk.{layer}.attn_q.weight",
    ("layers", "attention", "k_proj", "kernel"): "blk.{layer}.attn_k.weight",
    ("layers", "attention", "v_proj", "kernel"): "blk.{layer}.attn_v.weight",
    ("layers", "attention", "o_proj", "kernel"): "blk.{layer}.attn_output.weight",
    ("layers", "post_attention_norm", "scale"): "blk.{layer}.ffn_norm.weight",
    ("layers", "feed_forward", "gate_proj", "kernel"): "blk.{layer}.ffn_gate.weight",
    ("layers", "feed_forward", "up_proj", "kernel"): "blk.{layer}.ffn_up.weight",
    ("layers", "feed_forward", "down_proj", "kernel"): "blk.{layer}.ffn_down.weight",
    ("final_norm", "scale"): "output_norm.weight",
    ("lm_head", "kernel"): "output.weight",
    ("layers", "attention", "q_norm", "scale"): "blk.{layer}.attn_q_norm.weight",
    ("layers", "attention", "k_norm", "scale"): "blk.{layer}.attn_k_norm.weight",
    ("layers", "attention_output_norm", "scale"): "blk.{layer}.post_attention_norm.weight",
    ("layers", "feed_forward_output_norm", "scale"): "blk.{layer}.post_ffw_norm.weight",
}

# Metadata that changes what the model computes, with the values that ask for nothing special.
# All keys below follow the architecture's name and a dot.
_ONLY_VALUES: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "rope.scaling.type": ("none", "linear"),
    "rope.scale_linear": (0.0, 1.0),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
}

# Metadata that only some families have, with what config.json calls it.
_INTEGERS = {
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
}
_ROPE_BASES = {"rope.freq_base": "rope_theta", "rope.freq_base_swa": "rope_local_base_freq"}


def read_checkpoint(file: Path, family: Family | None = None) -> tuple[Checkpoint, dict[str, Any]]:
    """Opens a GGUF file.

    Args:
      file: a GGUF file.
      family: what the model must be; None for the one that `general.architecture` names.

    Returns:
      The checkpoint, its tensors in Hugging Face's order of rows; and all metadata, in which the
      tokenizer is described.

    Raises:
      UserError: the file is truncated or damaged, or holds an unsupported kind of model.
    """
    metadata, tensors = read_gguf(file)
    family, values = _described(metadata, tensors, file, family)
    config = family.parse_config(values, file)
    names = {path: _NAMES[path] for path in family.tensor_names(config)}
    if family.gguf_interleaved:
        for layer in range(config.layers):
            _undo_permutation(tensors, f"blk.{layer}.attn_q.weight", config.heads)
            _undo_permutation(tensors, f"blk.{layer}.attn_k.weight", config.kv_heads)
    return Checkpoint(file, family.model_type, config, names, tensors), metadata


def describe(file: Path, family: Family | None = None) -> tuple[Family, dict[str, Any]]:
    """The family of the model in a file, and what its config.json would say.

    Arguments and errors as for `read_checkpoint`.
    """
    return _described(*read_gguf(file), file, family)


def _described(
    metadata: dict[str, Any], tensors: Mapping[str, Any], file: Path, family: Family | None
) -> tuple[Family, dict[str, Any]]:
    _refuse_part(metadata, file)
    if "rope_freqs.weight" in tensors:
        raise UserError(
            f"{file}: tensor 'rope_freqs.weight' (scaled rotary positions, as of Llama 3.1) is "
            "not supported yet. Use a model without it."
        )
    family = _checked(family, metadata.get("general.architecture"), file)
    values = config_values(metadata, file, metadata["general.architecture"])
    values["tie_word_embeddings"] = _NAMES["lm_head", "kernel"] not in tensors
    return family, family.from_gguf(values)


def config_values(metadata: dict[str, Any], file: Path, architecture: str) -> dict[str, Any]:
    """Turns GGUF metadata into what config.json would say.

    Optional keys get the defaults of the specification, or are left out where it has none.

    Args:
      metadata: all metadata of the file.
      file: where it came from, for messages.
      architecture: what most keys begin with.

    Returns:
      Values by their key in config.json, without `tie_word_embeddings`, which the tensors tell.

    Raises:
      UserError: a key is missing, malformed, or asks for something that is not implemented.
    """
    prefix = f"{architecture}."
    for end, allowed in _ONLY_VALUES.items():
        key = prefix + end
        if key in metadata and metadata[key] not in allowed:
            raise UserError(
                f"{file}: {key} is {shortened(metadata[key])}, which is not supported yet. "
                "Use a model without it."
            )
    tokens = metadata.get("tokenizer.ggml.tokens")
    rows = len(tokens) if isinstance(tokens, list) and tokens else None
    width = _positive_integer(metadata, f"{prefix}embedding_length", file)
    heads = _positive_integer(metadata, f"{prefix}attention.head_count", file)
    head_width = _positive_integer(
        metadata, f"{prefix}attention.key_length", file, width // heads or None
    )
    for key in (f"{prefix}attention.value_length", f"{prefix}rope.dimension_count"):
        if metadata.get(key, head_width) != head_width:
            raise UserError(
                f"{file}: {key} is {shortened(metadata[key])}, which is not supported; expected "
                f"the width of a head, {head_width}."
            )
    values: dict[str, Any] = {
        "num_hidden_layers": _positive_integer(
            metadata, f"{prefix}block_count", file, most=MOST_LAYERS
        ),
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": _positive_integer(
            metadata, f"{prefix}attention.head_count_kv", file, heads
        ),
        "head_dim": head_width,
        "intermediate_size": _positive_integer(metadata, f"{prefix}feed_forward_length", file),
        "vocab_size": _positive_integer(metadata, f"{prefix}vocab_size", file, rows),
        "max_position_embeddings": _positive_integer(metadata, f"{prefix}context_length", file),
        "rms_norm_eps": _number(
            metadata,
            f"{prefix}attention.layer_norm_rms_epsilon",
            file,
            most=MOST_NORM_EPSILON,
        ),
    }
    for end, name in _INTEGERS.items():
        if prefix + end in metadata:
            values[name] = _positive_integer(metadata, prefix + end, file)
    for end, name in _ROPE_BASES.items():
        if prefix + end in metadata:
            values[name] = _number(metadata, prefix + end, file, least=LEAST_ROPE_THETA)
    factor = _rope_factor(metadata, prefix, file)
    if factor != 1.0:
        values["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    return values


def _rope_factor(metadata: dict[str, Any], prefix: str, file: Path) -> float:
    """What rotary frequencies are divided by; 1.0 where they are not scaled."""
    key = f"{prefix}rope.scaling.factor"
    none = metadata.get(f"{prefix}rope.scaling.type") == "none"
    if none or metadata.get(key, 0.0) in (0.0, 1.0):
        return 1.0
    return _number(metadata, key, file, least=1.0)


def _checked(family: Family | None, architecture: Any, file: Path) -> Family:
    """The family of a file, which must be the one asked for.

    Raises:
      UserError: no family has this architecture, or the one asked for has another.
    """
    known = {each.gguf_architecture: each for each in FAMILIES.values() if each.gguf_architecture}
    if family is None:
        if not isinstance(architecture, str) or architecture not in known:
            raise UserError(
                f"{file}: general.architecture is {shortened(architecture)}, which is not "
                f"supported. Supported: {', '.join(sorted(known))}."
            )
        return known[architecture]()
    if family.gguf_architecture is None:
        raise UserError(
            f"{file}: the family {family.model_type} is not read from GGUF files: its "
            "gguf_architecture is None. Load the Hugging Face version of the model instead."
        )
    if family.gguf_architecture != architecture:
        raise UserError(
            f"{file}: general.architecture is {shortened(architecture)}, and the "
            f"gguf_architecture of the family {family.model_type} is "
            f"{family.gguf_architecture!r}. Use the file's own family, or correct the class."
        )
    return family


def _refuse_part(metadata: dict[str, Any], file: Path) -> None:
    """Raises a UserError for a part of a model that llama.cpp has split into several files."""
    count = metadata.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return
    number = metadata.get("split.no", 0)
    number = f"part {number + 1}" if isinstance(number, int) else "one"
    first = re.sub(r"-\d{5}-of-(\d{5})\.gguf$", r"-00001-of-\1.gguf", file.name)
    raise UserError(
        f"{file}: is {number} of {count} files of one model, which are read only when joined. Join "
        f"them with llama.cpp, beginning at the first: llama-gguf-split --merge {first} joined.gguf"
    )


def _required(metadata: dict[str, Any], key: str, file: Path, default: Any) -> Any:
    if key not in metadata and default is None:
        raise UserError(
            f"{file}: the metadata key {key} is missing. Convert the model again with "
            "llama.cpp's convert_hf_to_gguf.py."
        )
    return metadata.get(key, default)


def _positive_integer(
    metadata: dict[str, Any],
    key: str,
    file: Path,
    default: int | None = None,
    *,
    most: int = MOST_SIZE,
) -> int:
    value = _required(metadata, key, file, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        limit = f", at most {most}" if isinstance(value, int) and value > most else ""
        raise UserError(
            f"{file}: {key} is {shortened(value)}; expected one positive integer{limit}."
        )
    return value


def _number(
    metadata: dict[str, Any],
    key: str,
    file: Path,
    default: float | None = None,
    *,
    least: float = LEAST_NUMBER,
    most: float = MOST_NUMBER,
) -> float:
    value = _required(metadata, key, file, default)
    if not isinstance(value, float) or not least <= value <= most:
        limits = f" from {least:g} to {most:g}" if isinstance(value, float) and value > 0 else ""
        raise UserError(
            f"{file}: {key} is {shortened(value)}; expected one positive number{limits}."
        )
    # The file stores float32; the shortest decimal that means it is what config.json had.
    return float(str(np.float32(value)))


def _undo_permutation(tensors: dict[str, StoredTensor], name: str, heads: int) -> None:
    """Gives a query or key projection Hugging Face's order of rows (first half, second half).

    llama.cpp rotates neighbouring pairs, so its converter interleaves the two halves of every
    head's rows. A tensor that is missing or of another shape is reported later, with the others.
    """
    tensor = tensors.get(name)
    if tensor is None or len(tensor.shape) != 2 or tensor.shape[0] % (2 * heads):
        return
    decode = functools.partial(_decode_permuted, tensor, heads)
    tensors[name] = StoredTensor(
        tensor.name, tensor.file, tensor.shape, tensor.encoding, tensor.stored, decode
    )


def _decode_permuted(tensor: StoredTensor, heads: int) -> np.ndarray:
    rows, columns = tensor.shape
    pairs = tensor.decode().reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)
