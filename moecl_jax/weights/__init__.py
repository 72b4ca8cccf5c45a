"""Pretrained backbones: several file formats in, one parameter tree out.

`huggingface` and `gguf` each describe a checkpoint on disk as a `Checkpoint`; `load` turns any of
them into the parameter tree of the decoder. The two classes here are all that they share.
`families` knows what Hugging Face's config.json means for each kind of model.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from moecl_jax.models.config import DecoderConfig

# Where a parameter lives in the tree, for example ("layers", "attention", "q_proj", "kernel").
TreePath = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, still on disk.

    Attributes:
      name: its name in the file.
      file: the file that holds it.
      shape: its shape, projections as [out, in].
      encoding: how its numbers are stored, for example "BF16" or "Q4_1".
      stored: its bytes as they are in the file, a memory-mapped uint8 array [bytes].
      decode: reads it as a floating point array of `shape`.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    encoding: str
    stored: np.ndarray
    decode: Callable[[], np.ndarray]


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
