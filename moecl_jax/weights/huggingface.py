"""Reads a Hugging Face model folder: config.json and safetensors files."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moecl_jax.errors import UserError
from moecl_jax.models.config import DecoderConfig
from moecl_jax.outside import inside, shortened
from moecl_jax.weights import Checkpoint, StoredTensor
from moecl_jax.weights.families import Family, family_of
from moecl_jax.weights.files import read_object, shown
from moecl_jax.weights.safetensors_file import open_safetensors

# Characters of a file's name, on every common file system.
_MOST_NAME = 255


def read_checkpoint(folder: Path, family: Family | None = None) -> Checkpoint:
    """Opens a folder with config.json and one or more safetensors files.

    Args:
      folder: a Hugging Face model folder.
      family: how config.json is read; None for the one that its `model_type` names.

    Raises:
      UserError: the model is of an unsupported kind, or a file is missing, truncated or damaged.
    """
    config_file = folder / "config.json"
    raw = read_object(config_file, _what_a_folder_holds(folder))
    family = family or family_of(raw, config_file)
    config = family.parse_config(raw, config_file)
    tensors = _open_weights(folder)
    _drop_redundant(tensors, config, family)
    names = family.tensor_names(config)
    if offset := family.norm_offset:
        scales = [name for path, name in names.items() if path[-1] == "scale"]
        stored = {name.format(layer=layer) for name in scales for layer in range(config.layers)}
        for name in stored & tensors.keys():
            decode = functools.partial(_add, offset, tensors[name].decode)
            tensors[name] = dataclasses.replace(tensors[name], decode=decode)
    return Checkpoint(folder, family.model_type, config, names, tensors)


def _what_a_folder_holds(folder: Path) -> str:
    beside = ", ".join(sorted(path.name for path in folder.glob("*.gguf")))
    hint = f" To read a GGUF file, name it and not its folder ({beside})." if beside else ""
    return (
        "A Hugging Face model folder holds config.json and *.safetensors; download the whole "
        f"model.{hint}"
    )


def _open_weights(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of model.safetensors, else of the index's files, else of all *.safetensors.

    Raises:
      UserError: there are none, there are two sets of them, a file is damaged, or the index belongs
        to other files.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    indexed = _read_index(index) if os.path.lexists(index) else {}
    if os.path.lexists(single):
        shards = {*indexed.values(), *folder.glob("model-*-of-*.safetensors")} - {single}
        stray = sorted(shard.name for shard in shards if shard.exists())
        if stray:
            raise UserError(
                f"{folder}: holds two sets of weights: {single.name}, and {_some_files(stray)}. "
                "Delete the one that does not belong to config.json, or download the model again "
                "into an empty folder."
            )
        return _open_all([single])
    if indexed:
        _refuse_absent(sorted(set(indexed.values())), index)
        tensors = _open_all(sorted(set(indexed.values())))
        for name, file in indexed.items():
            if name not in tensors or tensors[name].file != file:
                raise UserError(
                    f"{index}: says that tensor {shortened(name, 200)} is in {file.name}, where it "
                    "is not: the index belongs to other weights. Download both again, "
                    "or delete it if the folder holds no other *.safetensors than the model's."
                )
        return tensors
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pth"))
        hint = "Only pickled weights (*.bin, *.pth) are there, which are never read. "
        raise UserError(
            f"{folder}: holds no *.safetensors. {hint if pickled else ''}"
            "Download the safetensors files of the model, or write them with "
            "save_pretrained of transformers."
        )
    return _open_all(files)


def _read_index(index: Path) -> dict[str, Path]:
    """The file of each tensor, by the tensor's name.

    Raises:
      UserError: it is no index, or names something that is no file of its folder.
    """
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        found = "is missing" if weight_map is None else f"is {shortened(weight_map)}"
        raise UserError(
            f"{index}: the key weight_map {found}; expected the name of each tensor's file. "
            "Download the file again."
        )
    files: dict[Any, Path] = {}
    for tensor, name in weight_map.items():
        try:
            if isinstance(name, str) and (len(name) > _MOST_NAME or not name.isprintable()):
                raise ValueError(f"{shortened(name)} is not the name of a file")
            files[tensor] = inside(index.parent, name)
        except ValueError as error:
            raise UserError(
                f"{index}: the file of tensor {shortened(tensor, 200)}: {error}; expected a "
                "*.safetensors file in the same folder. Download the file again."
            ) from error
    return files


def _refuse_absent(files: list[Path], index: Path) -> None:
    """Raises a UserError for the first file that the index names and the folder lacks."""
    absent = [file for file in files if not file.exists()]
    if not absent:
        return
    others = sorted({file.name for file in index.parent.glob("*.safetensors")})
    others = [name for name in others if index.parent / name not in files]
    if others:
        raise UserError(
            f"{absent[0]}: no such file, but {index.name} names it, and not {_some_files(others)}, "
            "which is there: the index belongs to other weights. Download it and the weights again "
            "into an empty folder."
        )
    more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    raise UserError(
        f"{shown(absent[0])}: no such file, but {index.name} names it. Download it{more}."
    )


def _some_files(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def _open_all(files: list[Path]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in open_safetensors(file).items():
            if name in tensors:
                raise UserError(
                    f"{file}: tensor {shortened(name, 200)} is also in {tensors[name].file}. "
                    "Remove the file that does not belong to the model."
                )
            tensors[name] = tensor
    return tensors


def _add(offset: float, decode: Callable[[], np.ndarray]) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # what is not finite is refused by `StoredTensor.read`
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
