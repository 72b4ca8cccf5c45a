"""Writes safetensors files in the order of their tensors, which the safetensors package sorts.

The format: the header's length in 8 bytes, little-endian, the header as JSON, the tensors' bytes.
Specification: https://github.com/huggingface/safetensors#format
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

_ENCODINGS = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}


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
    beside = file.with_name(file.name + ".part")
    with beside.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for array in tensors.values():
            stream.write(array.tobytes())
    os.replace(beside, file)
