"""Pretrained backbones: several file formats in, one parameter tree out.

`huggingface` and `gguf` each describe a checkpoint on disk as a `Checkpoint`; `load` turns any of
them into the parameter tree of the decoder. The two classes here are all that they share.
`families` knows what Hugging Face's config.json means for each kind of model; `tokenizer` and
`gguf_tokenizer` read tokenizers. `files`, `safetensors_file` and `gguf_file` open files, of models
and of adapters, and `packaged` finds models that Python packages carry. `folder` goes the other
way: parameters out, as a Hugging Face folder.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from moecl_jax.errors import UserError
from moecl_jax.models.config import DecoderConfig

# Where a parameter lives in the tree, for example ("layers", "attention", "q_proj", "kernel").
TreePath = tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint, still on disk.

    Attributes:
      name: its name in the file.
      file: the file that holds it.
      shape: its shape, projections as [out, in].
      encoding: how its numbers are stored, for example "BF16" or "Q4_1".
      stored: its bytes as they are in the file, a memory-mapped uint8 array [bytes].
      decode: reads it as a floating point array of `shape`, unchecked.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    encoding: str
    stored: np.ndarray
    decode: Callable[[], np.ndarray]

    def read(self) -> np.ndarray:
        """Reads it as a floating point array of `shape`.

        Raises:
          UserError: a number is NaN or infinite.
        """
        array = self.decode()
        if not all_finite(array):
            raise UserError(
                f"{self.file}: tensor {self.name!r} holds numbers that are not finite (NaN or "
                "infinite): the file is damaged, or training diverged. Download it again, or use "
                "another checkpoint."
            )
        return array


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: its architecture, and its tensors not yet read.

    Attributes:
      location: the file or folder, for messages.
      family: its name in config.json or in the GGUF file, for messages.
      config: the architecture.
      names: the name of the tensor behind each parameter; "{layer}" stands for the layer's index.
      tensors: every tensor that has a meaning, by name.
    """

    location: Path
    family: str
    config: DecoderConfig
    names: Mapping[TreePath, str]
    tensors: Mapping[str, StoredTensor]


def all_finite(array: np.ndarray) -> bool:
    """Whether no number is NaN or infinite, of a float32, float16 or bfloat16 array.

    In these formats (IEEE 754 binary32, binary16 and the upper half of binary32) what is not finite
    has the largest bits of its sign: as integers, two maxima tell, one for each sign. That takes a
    fraction of the time of `np.isfinite`, which makes an array and is slow for bfloat16.
    """
    if array.size == 0:
        return True
    bits = {2: (np.int16, np.uint16), 4: (np.int32, np.uint32)}[array.dtype.itemsize]
    infinities = np.array([np.inf, -np.inf]).astype(array.dtype)
    positive, negative = (array.view(integer).max() for integer in bits)
    return bool(positive < infinities.view(bits[0])[0] and negative < infinities.view(bits[1])[1])
