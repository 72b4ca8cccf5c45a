"""Reads a Hugging Face model folder: config.json and safetensors files.

The safetensors format is read here directly (an 8-byte little-endian length, a JSON header, then
the tensors' bytes): the numpy side of the safetensors package knows no bfloat16, and memory-mapped
bytes serve the fingerprint too. Specification: https://github.com/huggingface/safetensors#format
"""

import functools
import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from moecl_jax.errors import UserError
from moecl_jax.models.config import DecoderConfig
from moecl_jax.weights import Checkpoint, StoredTensor, TreePath

_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}

_LLAMA_NAMES: dict[TreePath, str] = {
    ("embedder", "embedding"): "model.embed_tokens.weight",
    ("layers", "input_norm", "scale"): "model.layers.{layer}.input_layernorm.weight",
    **{
        ("layers", "attention", name, "kernel"): f"model.layers.{{layer}}.self_attn.{name}.weight"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    },
    ("layers", "post_attention_norm", "scale"): (
        "model.layers.{layer}.post_attention_layernorm.weight"
    ),
    **{
        ("layers", "feed_forward", name, "kernel"): f"model.layers.{{layer}}.mlp.{name}.weight"
        for name in ("gate_proj", "up_proj", "down_proj")
    },
    ("final_norm", "scale"): "model.norm.weight",
    ("lm_head", "kernel"): "lm_head.weight",
}

# Tensor names by the `model_type` of config.json; a further family needs one more entry.
_NAMES = {"llama": _LLAMA_NAMES}

# Keys of config.json that change what the model computes, with the one value that is implemented.
_ONLY_VALUE: dict[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}


def read_checkpoint(folder: Path) -> Checkpoint:
    """Opens a folder with config.json and one or more safetensors files.

    Raises:
      UserError: the model is of an unsupported kind, or a file is missing, truncated or damaged.
    """
    config_file = folder / "config.json"
    raw = _read_json(config_file)
    model_type = raw.get("model_type")
    if model_type not in _NAMES:
        raise UserError(
            f"{config_file}: model_type is {model_type!r}, which is not supported. "
            f"Supported: {', '.join(sorted(_NAMES))}."
        )
    config = parse_config(raw, config_file)
    names = dict(_NAMES[model_type])
    tensors = _open_all(_weight_files(folder))
    _drop_redundant(tensors, config)
    if config.tied_embeddings:
        del names[("lm_head", "kernel")]
    return Checkpoint(folder, config, names, tensors)


def parse_config(raw: dict[str, Any], file: Path) -> DecoderConfig:
    """Turns the content of config.json into a DecoderConfig.

    What a Llama config may leave out gets the default of transformers' LlamaConfig.

    Args:
      raw: the content of config.json.
      file: where it came from, for messages.

    Raises:
      UserError: a key is missing, malformed, or asks for something that is not implemented.
    """
    for key, only in _ONLY_VALUE.items():
        if raw.get(key, only) not in (only, None):
            raise UserError(
                f"{file}: {key} is {raw[key]!r}, which is not supported yet; expected {only!r}. "
                "Use a model without it."
            )
    heads = _positive_integer(raw, "num_attention_heads", file)
    width = _positive_integer(raw, "hidden_size", file)
    try:
        return DecoderConfig(
            vocabulary_size=_positive_integer(raw, "vocab_size", file),
            width=width,
            ffn_width=_positive_integer(raw, "intermediate_size", file),
            layers=_positive_integer(raw, "num_hidden_layers", file),
            heads=heads,
            kv_heads=_positive_integer(raw, "num_key_value_heads", file, default=heads),
            head_width=_positive_integer(raw, "head_dim", file, default=width // heads),
            rope_theta=_rope_theta(raw, file),
            norm_epsilon=_number(raw, "rms_norm_eps", file, default=1e-6),
            tied_embeddings=_tied(raw, file),
            context_length=_positive_integer(raw, "max_position_embeddings", file, default=2048),
        )
    except ValueError as error:
        raise UserError(f"{file}: {error}. Download the file again.") from error


def _rope_theta(raw: dict[str, Any], file: Path) -> float:
    """Base of the rotary embedding; old files have `rope_theta`, new ones `rope_parameters`."""
    found = {}
    if raw.get("rope_theta") is not None:
        found["rope_theta"] = _number(raw, "rope_theta", file)
    for key in ("rope_parameters", "rope_scaling"):
        rope = raw.get(key) or {}
        if not isinstance(rope, dict):
            raise UserError(f"{file}: {key} is {rope!r}; expected an object or null.")
        kind = rope.get("rope_type", rope.get("type", "default"))
        unknown = set(rope) - {"rope_type", "type", "rope_theta"}
        if kind != "default" or unknown:
            raise UserError(
                f"{file}: {key} is {rope!r}, which is not supported yet; expected no more than "
                "rope_theta and rope_type 'default'. Use a model without scaled positions."
            )
        if "rope_theta" in rope:
            found[f"{key}.rope_theta"] = _number(rope, "rope_theta", file)
    if len(set(found.values())) > 1:
        raise UserError(f"{file}: the values disagree: {found}. Keep the right one only.")
    return next(iter(found.values()), 10000.0)


def _tied(raw: dict[str, Any], file: Path) -> bool:
    value = raw.get("tie_word_embeddings", False)
    if not isinstance(value, bool):
        raise UserError(f"{file}: tie_word_embeddings is {value!r}; expected true or false.")
    return value


def _positive_integer(raw: dict[str, Any], key: str, file: Path, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(
            f"{file}: {key} is {value!r}; expected a positive integer. Download the file again."
        )
    return value


def _number(raw: dict[str, Any], key: str, file: Path, default: float | None = None) -> float:
    value = raw.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(
            f"{file}: {key} is {value!r}; expected a positive number. Download the file again."
        )
    return float(value)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        beside = ", ".join(sorted(path.name for path in file.parent.glob("*.gguf")))
        hint = f" To read a GGUF file, name it and not its folder ({beside})." if beside else ""
        raise UserError(
            f"{file}: no such file. A Hugging Face model folder holds config.json and "
            f"*.safetensors; download the whole model.{hint}"
        ) from error
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}). Download the file again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a JSON object. Download the file again.")
    return content


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files: model.safetensors, else those of the index, else all of them."""
    single = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{index}: the key weight_map is missing. Download the file again.")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        for file in files:
            if not file.exists():
                raise UserError(f"{file}: no such file, but {index.name} names it. Download it.")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pth"))
        hint = "Only pickled weights (*.bin, *.pth) are there, which are never read. "
        raise UserError(
            f"{folder}: holds no *.safetensors. {hint if pickled else ''}"
            "Download the safetensors files of the model, or write them with "
            "save_pretrained of transformers."
        )
    return files


def _open_all(files: list[Path]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in open_safetensors(file).items():
            if name in tensors:
                raise UserError(
                    f"{file}: tensor {name!r} is also in {tensors[name].file}. "
                    "Remove the file that does not belong to the model."
                )
            tensors[name] = tensor
    return tensors


def open_safetensors(file: Path) -> dict[str, StoredTensor]:
    """Opens one safetensors file without reading its tensors.

    Raises:
      UserError: the file is truncated or damaged, or a tensor's dtype is not F32, F16 or BF16.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        if size < 8 + header_size:
            raise UserError(
                f"{file}: truncated in its header: it has {size} bytes, expected at least "
                f"{8 + header_size}. Download the file again."
            )
        try:
            header = dict(json.loads(stream.read(header_size)))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{file}: the header is not a JSON object ({error}). Download the file again."
            ) from error
    header.pop("__metadata__", None)
    content = np.memmap(file, np.uint8, mode="r")
    return {
        name: _describe(name, entry, file, content[8 + header_size :])
        for name, entry in header.items()
    }


def _describe(name: str, entry: dict[str, Any], file: Path, data: np.ndarray) -> StoredTensor:
    """One header entry, checked against the bytes [bytes] that follow the header."""
    try:
        encoding, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if any(not isinstance(number, int) or number < 0 for number in (*shape, begin, end)):
            raise ValueError("sizes and offsets must be integers of at least 0")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: the header entry of tensor {name!r} is malformed ({error!r}). Download the "
            "file again."
        ) from error
    if encoding not in _DTYPES:
        raise UserError(
            f"{file}: tensor {name!r} is stored as {encoding}, which is not supported; expected "
            f"{', '.join(_DTYPES)}. Use an unquantised version of the model."
        )
    if end > data.size:
        raise UserError(
            f"{file}: truncated in tensor {name!r} of shape {list(shape)}: {data.size} bytes "
            f"follow the header, expected at least {end}. Download the file again."
        )
    dtype = _DTYPES[encoding]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise UserError(
            f"{file}: tensor {name!r} has {end - begin} bytes, expected "
            f"{math.prod(shape) * dtype.itemsize} for shape {list(shape)} in {encoding}. "
            "Download the file again."
        )
    stored = data[begin:end]
    decode = functools.partial(_decode, stored, dtype, shape)
    return StoredTensor(name, file, shape, encoding, stored, decode)


def _decode(stored: np.ndarray, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    # A copy when a writer did not align the tensor; numpy refuses to view those in place.
    return np.frombuffer(stored, dtype).reshape(shape)


def _drop_redundant(tensors: dict[str, StoredTensor], config: DecoderConfig) -> None:
    """Removes tensors that carry no information: rotary tables, and a copy of tied embeddings."""
    for name in [name for name in tensors if name.endswith("rotary_emb.inv_freq")]:
        del tensors[name]
    head, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if not config.tied_embeddings or head is None or embedding is None:
        return
    if head.encoding != embedding.encoding or not np.array_equal(head.stored, embedding.stored):
        raise UserError(
            f"{head.file}: tie_word_embeddings is true in config.json, but tensor "
            "'lm_head.weight' differs from 'model.embed_tokens.weight'. Set tie_word_embeddings "
            "to false if the model has an output projection of its own."
        )
    del tensors["lm_head.weight"]
