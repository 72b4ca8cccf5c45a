"""Writes a decoder's parameters as a Hugging Face folder, such as other programs serve.

What the tensors mean is said by config.json. It is that of the model which was loaded, or what a
GGUF file's metadata says in its place. Beside them are that model's tokenizer and its settings of
generation.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from moecl_jax import quiet
from moecl_jax.errors import UserError
from moecl_jax.weights import TreePath, gguf, gguf_tokenizer
from moecl_jax.weights.families import Family, family_named, family_of
from moecl_jax.weights.files import read_object
from moecl_jax.weights.gguf_file import read_gguf
from moecl_jax.weights.load import locate
from moecl_jax.weights.safetensors_file import write_safetensors
from moecl_jax.writing import whole_file

_COPIED = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja"),
    "generation_config.json",
)


def write_folder(
    folder: Path,
    params: Mapping[str, Any],
    source: str | Path,
    dtype: np.dtype[Any],
    family: str | None = None,
) -> list[Path]:
    """Writes a model that transformers, vLLM and llama.cpp's converter read.

    Args:
      folder: folder to write; it must not exist, or be empty.
      params: the parameters as `load.Backbone` describes them.
      source: the model that was loaded, as for `load.load_model`.
      dtype: float32 or bfloat16, of all tensors.
      family: the model's family, named as for `load.load_model`; or None.

    Returns:
      The files of the folder.

    Raises:
      UserError: the folder is not empty, or the source cannot be read.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output={folder} exists and is no empty folder; name another")
    location = locate(source)
    of, raw = _described(location, family_named(family))
    config = of.parse_config(raw, location)
    flat = traverse_util.flatten_dict(dict(params))
    tensors: dict[str, np.ndarray] = {}
    for path, name in of.tensor_names(config).items():
        stacked = flat[path] if path[0] == "layers" else flat[path][None]
        for layer, array in enumerate(stacked):
            tensors[name.format(layer=layer)] = _stored(array, path, of).astype(dtype)
    content = {
        **raw,
        "model_type": raw.get("model_type", of.model_type),
        "dtype": dtype.name,
        "torch_dtype": dtype.name,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors)
    content |= _copy_tokenizer(location, folder)
    content.setdefault("architectures", _architectures(content["model_type"]))
    with whole_file(folder / "config.json") as stream:
        stream.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    return sorted(folder.iterdir())


def _described(location: Path, family: Family | None) -> tuple[Family, dict[str, Any]]:
    """The family of a model, and the content of its config.json."""
    if not location.is_dir():
        return gguf.describe(location, family)
    file = location / "config.json"
    raw = read_object(file)
    return family or family_of(raw, file), raw


def _stored(array: np.ndarray, path: TreePath, family: Family) -> np.ndarray:
    """A parameter of one layer as its tensor is stored."""
    if path[-1] == "kernel":
        return array.T
    return array - np.float32(family.norm_offset) if path[-1] == "scale" else array


def _copy_tokenizer(location: Path, folder: Path) -> dict[str, Any]:
    """Writes the tokenizer; gives what config.json has to say of it."""
    if location.is_dir():
        for name in _COPIED:
            if (location / name).exists():
                shutil.copyfile(location / name, folder / name)
        return {}
    metadata, _ = read_gguf(location)
    tokenizer = gguf_tokenizer.from_gguf(metadata, location)
    if tokenizer is None:
        return {}
    with quiet.transformers():
        tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return {name: index for name, index in ids.items() if index is not None}


def _architectures(model_type: str) -> list[str]:
    """The class of transformers that has this model type and the LM head."""
    with quiet.transformers():
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    return [name] if isinstance(name, str) else []
