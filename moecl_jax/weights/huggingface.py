"""Reads a Hugging Face model folder: config.json and safetensors files.

The safetensors format is read here directly (an 8-byte little-endian length, a JSON header, then
the tensors' bytes): the numpy side of the safetensors package knows no bfloat16, and memory-mapped
bytes serve the fingerprint too. Specification: https://github.com/huggingface/safetensors#format
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from moecl_jax.errors import UserError
from moecl_jax.models.config import DecoderConfig
from moecl_jax.weights import Checkpoint, StoredTensor
from moecl_jax.weights.families import Family, family_of

_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


def read_checkpoint(folder: Path, family: Family | None = None) -> Checkpoint:
    """Opens a folder with config.json and one or more safetensors files.

    Args:
      folder: a Hugging Face model folder.
      family: how config.json is read; None for the one that its `model_type` names.

    Raises:
      UserError: the model is of an unsupported kind, or a file is missing, truncated or damaged.
    """
    config_file = folder / "config.json"
    raw = _read_json(config_file)
    family = family or family_of(raw, config_file)
    config = family.parse_config(raw, config_file)
    tensors = _open_all(_weight_files(folder))
    _drop_redundant(tensors, config, family)
    names = family.tensor_names(config)
    if offset := family.norm_offset:
        scales = [name for path, name in names.items() if path[-1] == "scale"]
        stored = {name.format(layer=layer) for name in scales for layer in range(config.layers)}
        for name in stored & tensors.keys():
            decode = functools.partial(_add, offset, tensors[name].decode)
            tensors[name] = dataclasses.replace(tensors[name], decode=decode)
    return Checkpoint(folder, family.model_type, config, names, tensors)


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


def _add(offset: float, decode: Callable[[], np.ndarray]) -> np.ndarray:
    return decode().astype(np.float32) + np.float32(offset)


def _drop_redundant(
    tensors: dict[str, StoredTensor], config: DecoderConfig, family: Family
) -> None:
    """Removes tensors that carry no information: rotary tables, and a copy of tied embeddings."""
    for name in [name for name in tensors if name.endswith("rotary_emb.inv_freq")]:
        del tensors[name]
    names = family.tensor_names(dataclasses.replace(config, tied_embeddings=False))
    head = tensors.get(names["lm_head", "kernel"])
    embedding = tensors.get(names["embedder", "embedding"])
    if not config.tied_embeddings or head is None or embedding is None:
        return
    if head.encoding != embedding.encoding or not np.array_equal(head.stored, embedding.stored):
        raise UserError(
            f"{head.file}: tie_word_embeddings is true in config.json, but tensor "
            f"{head.name!r} differs from {embedding.name!r}. Set tie_word_embeddings "
            "to false if the model has an output projection of its own."
        )
    del tensors[head.name]
