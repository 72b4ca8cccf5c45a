"""Opens GGUF files: metadata, and tensors as they are stored.

The header is parsed here and not by `gguf.GGUFReader`, which takes seconds over a vocabulary and
cannot say which tensor of a truncated file is incomplete; block formats are those of the gguf
package. What llama.cpp refuses is refused here too. Specification:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import functools
import math
import struct
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGMLQuantizationType,
    GGUFValueType,
)
from gguf.quants import dequantize

from moecl_jax.errors import UserError
from moecl_jax.outside import shortened
from moecl_jax.weights import StoredTensor
from moecl_jax.weights.files import map_bytes

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)

_SCALAR_FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}

_LEAST_KEY_BYTES = 8 + 4 + 1  # an empty name, a type, one byte
_LEAST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # an empty name, one axis, a type, an offset
_MOST_AXES = 4

_PIECE = 2**18
"""Numbers decoded at a time: enough for NumPy to be fast, few enough for a processor's cache."""


def read_gguf(file: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Reads the metadata of a GGUF file and opens its tensors without reading them.

    Memory is bounded by a few times the file's size, whatever the file says.

    Returns:
      Metadata by key, where arrays of texts are lists and those of numbers `array.array`; tensors
      by name, shapes in row-major order.

    Raises:
      UserError: the file cannot be read, is no GGUF file, or is truncated or damaged.
    """
    content = map_bytes(file)
    if content.size == 0:
        raise UserError(f"{file}: the file is empty. Download it again.")
    reader = _HeaderReader(file, content)
    metadata, entries = reader.read()
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise UserError(
            f"{file}: general.alignment is {shortened(alignment)}; expected a power of two. The "
            "file is damaged; download it again."
        )
    data = content[math.ceil(reader.offset / alignment) * alignment :]
    tensors: dict[str, StoredTensor] = {}
    begin = 0
    for name, shape, encoding, offset in entries:
        if name in tensors or offset != begin:
            raise UserError(
                f"{file}: tensor {shortened(name)} begins at byte {offset} of the data; expected "
                f"{begin}, as tensors lie one after the other, and each name once. The file is "
                "damaged; download it again."
            )
        tensors[name] = _describe(name, shape, encoding, offset, file, data)
        begin = math.ceil((offset + tensors[name].stored.size) / alignment) * alignment
    return metadata, tensors


class _HeaderReader:
    """Walks through the little-endian header of a GGUF file."""

    def __init__(self, file: Path, content: np.ndarray):
        self.offset = 0
        self._file = file
        self._view = content.data

    def read(self) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]]]:
        """Returns metadata, and name, shape, type and offset of every tensor."""
        if bytes(self._view[:4]) != _MAGIC:
            raise UserError(f"{self._file}: not a GGUF file: it does not start with 'GGUF'.")
        self.offset = 4
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise UserError(
                f"{self._file}: GGUF version {version} is not supported; expected "
                f"{' or '.join(map(str, _VERSIONS))}, little-endian."
            )
        tensor_count, key_count = self._scalar("Q"), self._scalar("Q")
        self._expect(tensor_count * _LEAST_TENSOR_BYTES + key_count * _LEAST_KEY_BYTES)
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._string()
            if key in metadata:
                raise self._damaged(f"metadata key {shortened(key)} is there twice")
            metadata[key] = self._value(self._scalar("I"), key)
        return metadata, [self._tensor_entry() for _ in range(tensor_count)]

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, axes = self._string(), self._scalar("I")
        if not 1 <= axes <= _MOST_AXES:
            raise self._damaged(f"tensor {shortened(name)} has {axes} axes, not 1 to {_MOST_AXES}")
        # The file lists the fastest-running axis first.
        shape = tuple(self._scalar("Q") for _ in range(axes))[::-1]
        return name, shape, self._scalar("I"), self._scalar("Q")

    def _value(self, code: int, key: str) -> Any:
        if code in _SCALAR_FORMATS:
            return self._scalar(_SCALAR_FORMATS[GGUFValueType(code)])
        if code == GGUFValueType.STRING:
            return self._string()
        if code == GGUFValueType.ARRAY:
            return self._array(self._scalar("I"), self._scalar("Q"), key)
        raise self._damaged(f"metadata key {shortened(key)} has the unknown type {code}")

    def _array(self, code: int, length: int, key: str) -> Any:
        if code in _SCALAR_FORMATS:
            numbers = array(_SCALAR_FORMATS[GGUFValueType(code)].replace("?", "B"))
            numbers.frombytes(self._take(length * numbers.itemsize))
            return numbers
        if code == GGUFValueType.STRING:
            self._expect(length * 8)
            return self._strings(length)
        kind = "arrays" if code == GGUFValueType.ARRAY else f"the unknown type {code}"
        raise self._damaged(f"metadata key {shortened(key)} is an array of {kind}")

    def _string(self) -> str:
        return self._strings(1)[0]

    def _strings(self, length: int) -> list[str]:
        """Reads texts that follow one another, in one pass: a vocabulary has 100,000 of them."""
        view, begin = self._view, self.offset
        read_size, texts = struct.Struct("<Q").unpack_from, []
        for _ in range(length):
            if begin + 8 > len(view) or begin + 8 + (size := read_size(view, begin)[0]) > len(view):
                self.offset = begin
                self._take(self._scalar("Q"))  # says which of the two is cut off
            self.offset = end = begin + 8 + size
            try:
                texts.append(str(view[begin + 8 : end], "utf-8"))
            except UnicodeDecodeError as error:
                raise self._damaged("a string is not UTF-8") from error
            begin = end
        return texts

    def _scalar(self, format_: str) -> Any:
        return struct.unpack("<" + format_, self._take(struct.calcsize("<" + format_)))[0]

    def _take(self, count: int) -> memoryview:
        self._expect(count)
        taken = self._view[self.offset : self.offset + count]
        self.offset += count
        return taken

    def _expect(self, count: int) -> None:
        """Raises a UserError unless so many bytes follow."""
        end = self.offset + count
        if end > len(self._view):
            raise UserError(
                f"{self._file}: truncated in its header: it has {len(self._view)} bytes, expected "
                f"at least {end}, as byte {self.offset} says. Download the file again."
            )

    def _damaged(self, problem: str) -> UserError:
        return UserError(
            f"{self._file}: {problem}, before byte {self.offset}. The file is damaged; download it "
            "again."
        )


def _describe(
    name: str, shape: tuple[int, ...], code: int, offset: int, file: Path, data: np.ndarray
) -> StoredTensor:
    """One tensor entry, checked against the bytes [bytes] that follow the header."""
    try:
        encoding = GGMLQuantizationType(code)
        block, block_bytes = GGML_QUANT_SIZES[encoding]
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{file}: tensor {shortened(name)} has the unknown type {code}. "
            "Use a common quantisation, for example Q8_0."
        ) from error
    if not math.prod(shape) or shape[-1] % block:
        raise UserError(
            f"{file}: tensor {shortened(name)} has shape {list(shape)}, but {encoding.name} stores "
            f"rows in blocks of {block} numbers. The file is damaged; download it again."
        )
    end = offset + math.prod(shape) // block * block_bytes
    if end > data.size:
        raise UserError(
            f"{file}: truncated in tensor {shortened(name)} of shape {list(shape)}: {data.size} "
            f"bytes follow the header, expected at least {end}. Download the file again."
        )
    stored = data[offset:end]
    decode = functools.partial(_decode, name, file, stored, encoding, shape)
    return StoredTensor(name, file, shape, encoding.name, stored, decode)


def _decode(
    name: str,
    file: Path,
    stored: np.ndarray,
    encoding: GGMLQuantizationType,
    shape: tuple[int, ...],
) -> np.ndarray:
    if encoding == GGMLQuantizationType.F32:
        return np.frombuffer(stored, np.float32).reshape(shape)
    if encoding == GGMLQuantizationType.F16:
        return np.frombuffer(stored, np.float16).reshape(shape)
    block, block_bytes = GGML_QUANT_SIZES[encoding]
    numbers = np.empty(math.prod(shape), np.float32)
    step = max(1, _PIECE // block)
    try:
        # As one row each: the package takes 16 rows at a time, which are few numbers.
        for first in range(0, numbers.size // block, step):
            piece = stored[first * block_bytes : (first + step) * block_bytes].reshape(1, -1)
            with np.errstate(all="ignore"):  # what is not finite is refused by the reader
                numbers[first * block : (first + step) * block] = dequantize(piece, encoding)[0]
    except NotImplementedError as error:
        raise UserError(
            f"{file}: tensor {shortened(name)} is stored as {encoding.name}, which is not "
            "supported. Use a common quantisation, for example Q8_0."
        ) from error
    return numbers.reshape(shape)
