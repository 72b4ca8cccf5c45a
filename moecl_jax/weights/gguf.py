"""Reads GGUF files of plain Llamas, as written by llama.cpp's convert_hf_to_gguf.py.

The header is parsed here and not by `gguf.GGUFReader`, which takes seconds over a vocabulary and
cannot say which tensor of a truncated file is incomplete; block formats are those of the gguf
package. What llama.cpp refuses is refused here too. Specification:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import functools
import math
import re
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
from moecl_jax.models.config import (
    LEAST_NUMBER,
    LEAST_ROPE_THETA,
    MOST_LAYERS,
    MOST_NORM_EPSILON,
    MOST_NUMBER,
    MOST_SIZE,
    DecoderConfig,
)
from moecl_jax.outside import shortened
from moecl_jax.weights import Checkpoint, StoredTensor, TreePath
from moecl_jax.weights.families import FAMILIES, Family
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
}

# Metadata that changes what the model computes, with the values that ask for nothing special.
# These keys and those below follow the architecture's name and a dot.
_ONLY_VALUES: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scale_linear": (0.0, 1.0),
}


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
    _refuse_part(metadata, file)
    if "rope_freqs.weight" in tensors:
        raise UserError(
            f"{file}: tensor 'rope_freqs.weight' (scaled rotary positions, as of Llama 3.1) is "
            "not supported yet. Use a model without it."
        )
    family = _checked(family, metadata.get("general.architecture"), file)
    names = dict(_NAMES)
    tied = "output.weight" not in tensors
    if tied:
        del names[("lm_head", "kernel")]
    config = parse_config(metadata, file, metadata["general.architecture"], tied)
    for layer in range(config.layers):
        _undo_permutation(tensors, f"blk.{layer}.attn_q.weight", config.heads)
        _undo_permutation(tensors, f"blk.{layer}.attn_k.weight", config.kv_heads)
    return Checkpoint(file, family.model_type, config, names, tensors), metadata


def parse_config(
    metadata: dict[str, Any], file: Path, architecture: str, tied: bool
) -> DecoderConfig:
    """Turns GGUF metadata into a DecoderConfig.

    Optional keys get the defaults of the specification.

    Args:
      metadata: all metadata of the file.
      file: where it came from, for messages.
      architecture: what most keys begin with.
      tied: whether the output projection is the token embedding.

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
    layers = _positive_integer(metadata, f"{prefix}block_count", file, most=MOST_LAYERS)
    width = _positive_integer(metadata, f"{prefix}embedding_length", file)
    heads = _positive_integer(metadata, f"{prefix}attention.head_count", file)
    head_width = _positive_integer(metadata, f"{prefix}attention.key_length", file, width // heads)
    for key in (f"{prefix}attention.value_length", f"{prefix}rope.dimension_count"):
        if metadata.get(key, head_width) != head_width:
            raise UserError(
                f"{file}: {key} is {shortened(metadata[key])}, which is not supported; expected "
                f"the width of a head, {head_width}."
            )
    try:
        return DecoderConfig(
            vocabulary_size=_positive_integer(metadata, f"{prefix}vocab_size", file),
            width=width,
            ffn_width=_positive_integer(metadata, f"{prefix}feed_forward_length", file),
            layers=layers,
            heads=heads,
            kv_heads=_positive_integer(metadata, f"{prefix}attention.head_count_kv", file, heads),
            head_width=head_width,
            rope_theta=_number(
                metadata, f"{prefix}rope.freq_base", file, 10000.0, least=LEAST_ROPE_THETA
            ),
            norm_epsilon=_number(
                metadata,
                f"{prefix}attention.layer_norm_rms_epsilon",
                file,
                most=MOST_NORM_EPSILON,
            ),
            tied_embeddings=tied,
            context_length=_positive_integer(metadata, f"{prefix}context_length", file),
        )
    except ValueError as error:
        raise UserError(f"{file}: {error}. Download the file again.") from error


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
    alignment = _positive_integer(metadata, "general.alignment", file, GGUF_DEFAULT_ALIGNMENT)
    if alignment & (alignment - 1):
        raise UserError(
            f"{file}: general.alignment is {alignment}; expected a power of two. The file is "
            "damaged; download it again."
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
