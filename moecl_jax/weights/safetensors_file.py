"""Reads and writes safetensors files.

The format: the header's length in 8 bytes, little-endian, the header as JSON, the tensors' bytes.
Specification: https://github.com/huggingface/safetensors#format

Files are read here and not by the safetensors package, whose numpy side knows no bfloat16; the
mapped bytes serve the fingerprint too. The package still has to accept a file. It sorts the tensors
that it writes; here they keep their order.
"""

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

from moecl_jax.errors import UserError, one_line
from moecl_jax.outside import parse_json, shortened
from moecl_jax.weights import StoredTensor
from moecl_jax.weights.files import map_bytes
from moecl_jax.writing import whole_file

_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_ENCODINGS = {dtype: name for name, dtype in _DTYPES.items()}

# The package's own limit.
_MOST_HEADER_BYTES = 100_000_000
_MOST_AXES = 8


def open_safetensors(file: Path) -> dict[str, StoredTensor]:
    """Opens one safetensors file without reading its tensors.

    Raises:
      UserError: the file cannot be read, is truncated or damaged, the safetensors package refuses
        it, or a tensor's dtype is not F32, F16 or BF16.
    """
    content = map_bytes(file)
    header_size = int.from_bytes(content[:8].tobytes(), "little") if content.size >= 8 else 0
    if header_size > _MOST_HEADER_BYTES:
        raise UserError(
            f"{file}: not a safetensors file, or damaged: by its first 8 bytes its header has "
            f"{header_size} bytes; the format allows {_MOST_HEADER_BYTES}. Download the file again."
        )
    if content.size < 8 + header_size:
        raise UserError(
            f"{file}: truncated in its header: it has {content.size} bytes, expected at least "
            f"{8 + header_size}. Download the file again."
        )
    try:
        header = parse_json(content[8 : 8 + header_size].tobytes())
    except ValueError as error:
        raise UserError(
            f"{file}: the header is not a JSON object ({one_line(error)}). Download the file again."
        ) from error
    if not isinstance(header, dict):
        raise UserError(f"{file}: the header is not a JSON object. Download the file again.")
    data = content[8 + header_size :]
    tensors = {
        name: _describe(name, entry, file, data)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    _refuse_what_the_package_refuses(file)
    return tensors


def write_safetensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes float32, float16 or bfloat16 arrays, whole or not at all."""
    header, end = {}, 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": _ENCODINGS[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that the tensors are aligned
    with whole_file(file) as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for array in tensors.values():
            stream.write(array.tobytes())


def _describe(name: str, entry: Any, file: Path, data: np.ndarray) -> StoredTensor:
    """One header entry, checked against the bytes [bytes] that follow the header."""
    tensor = shortened(name, 200)
    problem = _malformed(entry)
    if problem:
        raise UserError(
            f"{file}: the header entry of tensor {tensor} is malformed: {problem}. Download the "
            "file again."
        )
    encoding, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if encoding not in _DTYPES:
        raise UserError(
            f"{file}: tensor {tensor} is stored as {shortened(encoding)[1:-1]}, which is not "
            f"supported; expected {', '.join(_DTYPES)}. Use an unquantised version of the model."
        )
    if end > data.size:
        raise UserError(
            f"{file}: truncated in tensor {tensor} of shape {list(shape)}: {data.size} bytes "
            f"follow the header, expected at least {end}. Download the file again."
        )
    dtype = _DTYPES[encoding]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise UserError(
            f"{file}: tensor {tensor} has {end - begin} bytes, expected "
            f"{shortened(math.prod(shape) * dtype.itemsize)} for shape {shortened(list(shape))} in "
            f"{encoding}. Download the file again."
        )
    stored = data[begin:end]
    return StoredTensor(
        name, file, shape, encoding, stored, functools.partial(_decode, stored, dtype, shape)
    )


def _malformed(entry: Any) -> str:
    """What is wrong with the types of a header entry; "" if nothing is."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return f"it is {shortened(entry)}; expected an object with dtype, shape and data_offsets"
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str):
        return f"dtype is {shortened(entry['dtype'])}; expected a text"
    if not _are_sizes(shape) or len(shape) > _MOST_AXES:
        return f"shape is {shortened(shape)}; expected at most {_MOST_AXES} sizes"
    if not _are_sizes(offsets) or len(offsets) != 2:
        return f"data_offsets is {shortened(offsets)}; expected two offsets"
    return ""


def _are_sizes(value: Any) -> bool:
    """Whether it is a list of integers of at least 0."""
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def _decode(stored: np.ndarray, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    # A copy when a writer did not align the tensor; numpy refuses to view those in place.
    return np.frombuffer(stored, dtype).reshape(shape)


def _refuse_what_the_package_refuses(file: Path) -> None:
    """Leaves the fine print of the format to its own package: overlaps, holes, double keys."""
    try:
        with safe_open(file, framework="numpy"):
            pass
    except Exception as error:  # of its own kind, and whatever the system raises
        raise UserError(
            f"{file}: damaged: the safetensors package refuses it "
            f"({shortened(one_line(error), 200)}). Download the file again."
        ) from error
