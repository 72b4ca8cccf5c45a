"""Loads a frozen LLM from a Hugging Face folder, the Hugging Face cache, or a GGUF file."""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import traverse_util

from moecl_jax import programs
from moecl_jax.errors import UserError, one_line
from moecl_jax.kernels import ATTENTIONS, QUANTIZATIONS, as_bits, one_by_one, quantize_layers
from moecl_jax.models.attention import check_attention
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.decoder import REMAT_POLICIES
from moecl_jax.models.light_tokenizer import AnyTokenizer
from moecl_jax.models.model import Architecture, Model
from moecl_jax.models.sharding import AXES, Placement
from moecl_jax.outside import shortened
from moecl_jax.weights import (
    Checkpoint,
    StoredTensor,
    TreePath,
    gguf,
    gguf_tokenizer,
    huggingface,
    tokenizer,
)
from moecl_jax.weights.families import Family, family_named
from moecl_jax.weights.files import shown
from moecl_jax.weights.packaged import PACKAGED, packaged_file

_MOST_AT_ONCE = 4
"""Tensors read at the same time: each takes memory, and few threads use all of its bandwidth."""

_DTYPES = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16))


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A pretrained decoder, ready to be frozen.

    Axes: L layers, V vocabulary, D width, F ffn_width, H heads, J kv_heads, K head_width.

    Attributes:
      config: the architecture.
      params: nested dict of numpy arrays, kernels as [in, out], layers stacked on a leading axis:
        embedder.embedding [V, D]; layers.input_norm.scale [L, D];
        layers.attention.{q,k,v,o}_proj.kernel [L, D, HK], [L, D, JK], [L, D, JK], [L, HK, D];
        layers.post_attention_norm.scale [L, D]; layers.feed_forward.{gate,up,down}_proj.kernel
        [L, D, F], [L, D, F], [L, F, D]; final_norm.scale [D]; lm_head.kernel [D, V], which is
        absent when config.tied_embeddings; and where the config says so
        layers.attention.{q,k,v,o}_proj.bias [L, HK], [L, JK], [L, JK], [L, D];
        layers.attention.{q,k}_norm.scale [L, K];
        layers.{attention,feed_forward}_output_norm.scale [L, D].
        Norm scales are float32, all else the dtype asked for.
      tokenizer: the model's tokenizer; None when the checkpoint holds none.
      fingerprint: 16 hexadecimal digits that identify architecture and weights as stored,
        whatever the dtype asked for, the file's name, or how it is cut into shards.
      source: what was loaded, as the user named it.
    """

    config: DecoderConfig
    params: dict[str, Any]
    tokenizer: AnyTokenizer | None
    fingerprint: str
    source: str


def load_model(
    path: str | Path,
    *,
    dtype: str = "bfloat16",
    quantization: str = "none",
    remat: str = "auto",
    attention: str = "xla",
    mesh: Mapping[str, int] | None = None,
    family: str | type[Family] | None = None,
    shapes_only: bool = False,
) -> Model:
    """Loads a frozen LLM onto the devices, ready to be adapted.

    Args:
      path: a Hugging Face folder, a GGUF file, the name of a model in the Hugging Face cache (for
        example "meta-llama/Llama-2-7b-hf" after `hf download meta-llama/Llama-2-7b-hf`), or the
        name of a model in Python packages, "smollm2-135m" or "gemma3-270m".
      dtype: "bfloat16" or "float32", of activations and of all parameters but the norms' scales.
      quantization: "none", or a key of `moecl_jax.kernels.linear.QUANTIZATIONS`: how the kernels
        of all layers are stored.
      remat: what training recomputes in the backward pass: "none", a key of
        `moecl_jax.models.decoder.REMAT_POLICIES`, or "auto" for "projections" on one CPU and
        "full" elsewhere.
      attention: what computes attention, a key of `moecl_jax.models.attention.ATTENTIONS`.
      mesh: number of devices along the axes "data", "fsdp" and "tensor"; an axis left out has one,
        and -1 stands for the devices that the others leave. None for one device.
      family: the model's family as "package.module:Class" or as a class, whatever its files say;
        "" or None for the one that they name.
      shapes_only: whether no weights are read: `params` are then shapes (`jax.ShapeDtypeStruct`),
        and the fingerprint is "". It is enough to tokenise, and to compile a step.

    Returns:
      The model. Nothing is downloaded, and no code of the model's folder is run.

    Raises:
      UserError: an argument is not one of its choices or does not suit the devices, there is
        nothing at `path`, or it is damaged or of an unsupported kind.
    """
    _check_choice("dtype", dtype, ("bfloat16", "float32"))
    _check_choice("quantization", quantization, ("none", *QUANTIZATIONS))
    _check_choice("remat", remat, ("auto", "none", *REMAT_POLICIES))
    _check_choice("attention", attention, tuple(ATTENTIONS))
    for axis in mesh or {}:
        _check_choice("axis of mesh", axis, AXES)
    programs.keep()
    programs.leave_compilation_out()
    placement = Placement.over({**dict.fromkeys(AXES, 1), **(mesh or {})})
    if remat == "auto":
        remat = "projections" if placement.one_cpu else "full"
    backbone = load_backbone(path, jnp.dtype(dtype), family, shapes_only=shapes_only)
    check_attention(attention, backbone.config, dtype, placement.device_count)

    def stored(params: Any, over_layers: Any) -> Any:
        params = quantize_layers(params, quantization, over_layers=over_layers)
        return as_bits(params) if jax.default_backend() == "cpu" else params

    if shapes_only:
        shapes = jax.eval_shape(functools.partial(stored, over_layers=jax.lax.map), backbone.params)
        params = placement.shapes(shapes)
    else:
        params = placement.put(stored(backbone.params, one_by_one))
    return Model(
        Architecture(backbone.config, jnp.dtype(dtype), remat, attention, placement),
        params,
        backbone.tokenizer,
        backbone.fingerprint,
        backbone.source,
        quantization,
    )


def load_backbone(
    path: str | Path,
    dtype: Any = np.float32,
    family: str | type[Family] | None = None,
    *,
    shapes_only: bool = False,
) -> Backbone:
    """Loads weights, architecture and tokenizer of a pretrained decoder into host memory.

    Args:
      path: a Hugging Face folder, a GGUF file, the name of a model in the Hugging Face cache, or a
        key of `moecl_jax.weights.packaged.PACKAGED` (write "./smollm2-135m" for a folder of that
        name).
      dtype: float32 or bfloat16, of all parameters but the norms' scales.
      family: the model's family as "package.module:Class" or as a class, whatever its files say;
        "" or None for the one that they name.
      shapes_only: whether no weights are read, as for `load_model`.

    Raises:
      UserError: there is nothing at `path`, or it is damaged or of an unsupported kind; or
        `family` is no usable family.
    """
    if np.dtype(dtype) not in _DTYPES:
        raise UserError(f"dtype is {np.dtype(dtype)}; expected float32 or bfloat16.")
    asked_for = family_named(family)
    location = locate(path)
    read_tokenizer: AnyTokenizer | None
    if location.is_dir():
        checkpoint = huggingface.read_checkpoint(location, asked_for)
        read_tokenizer = tokenizer.from_folder(location)
    elif location.is_file() and location.suffix == ".gguf":
        checkpoint, metadata = gguf.read_checkpoint(location, asked_for)
        read_tokenizer = gguf_tokenizer.from_gguf(metadata, location)
    else:
        found = "neither a folder nor a *.gguf file" if location.exists() else "no such path"
        raise _no_model(path, found)
    if read_tokenizer is not None:
        tokenizer.fit_to_rows(read_tokenizer, checkpoint.config.vocabulary_size, location)
    if shapes_only:
        params, fingerprint = _shapes_of_params(checkpoint, np.dtype(dtype)), ""
    else:
        params, fingerprint = read_params(checkpoint, np.dtype(dtype))
    return Backbone(checkpoint.config, params, read_tokenizer, fingerprint, str(path))


def locate(path: str | Path) -> Path:
    """The folder or file that a user names; it need not exist.

    Raises:
      UserError: the system cannot tell whether it exists.
    """
    if str(path) in PACKAGED:
        return packaged_file(str(path))
    try:
        location = Path(path).expanduser()
        location.stat()
    except (FileNotFoundError, NotADirectoryError):
        if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)):
            return _in_hub_cache(str(path)) or location
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise _no_model(path, f"cannot be opened ({reason})") from error
    return location


def _no_model(path: str | Path, found: str) -> UserError:
    return UserError(
        f"{shown(path)}: {found}. Expected a Hugging Face folder, a GGUF file or one of "
        f"{', '.join(PACKAGED)}. "
        "Models of a hub must be downloaded first, for example: "
        "hf download meta-llama/Llama-2-7b-hf --local-dir llama-2-7b"
    )


def _in_hub_cache(name: str) -> Path | None:
    """The folder of a hub's model whose config.json was downloaded before; None if it was not.

    What else the model needs is checked when the folder is read, so that a download of the needed
    files alone will do.
    """
    # Imported late: most models are named by their folder.
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(file).parent if isinstance(file, str) else None


def read_params(checkpoint: Checkpoint, dtype: np.dtype[Any]) -> tuple[dict[str, Any], str]:
    """Reads every tensor once, into the parameter tree and into the fingerprint.

    Memory peaks at the tree plus a few tensors: each tensor goes straight from the memory-mapped
    file to its place in a preallocated array, a few of them at the same time on several cores. The
    fingerprint and the errors are those of one tensor after the other.

    Args:
      checkpoint: an opened checkpoint.
      dtype: dtype of all parameters but the norms' scales.

    Returns:
      The tree described in `Backbone`, and the fingerprint.

    Raises:
      UserError: a tensor is missing, unexpected, of the wrong shape, or not finite.
    """
    shapes = _tree_shapes(checkpoint.config)
    sources = {path: _tensor_names(checkpoint, path) for path in checkpoint.names}
    _check_tensors(checkpoint, sources, shapes)
    digest = hashlib.sha256(json.dumps(_fingerprinted(checkpoint.config)).encode())
    params: dict[TreePath, np.ndarray] = {}
    workers = min(_MOST_AT_ONCE, os.cpu_count() or 1)
    pending: collections.deque[futures.Future[None]] = collections.deque()
    with futures.ThreadPoolExecutor(workers) as pool:
        for path, names in sources.items():
            target = np.empty((len(names), *shapes[path]), _dtype_of(path, dtype))
            for index, name in enumerate(names):
                tensor = checkpoint.tensors[name]
                pending.append(pool.submit(_read_into, target[index], tensor, path))
                _update(digest, path, index, tensor)
                if len(pending) > workers:
                    pending.popleft().result()
            params[path] = target if path[0] == "layers" else target[0]
        for read in pending:
            read.result()
    return traverse_util.unflatten_dict(params), digest.hexdigest()[:16]


def _shapes_of_params(checkpoint: Checkpoint, dtype: np.dtype[Any]) -> dict[str, Any]:
    """What `read_params` gives, in shapes; the tensors' names and shapes are checked likewise."""
    shapes = _tree_shapes(checkpoint.config)
    sources = {path: _tensor_names(checkpoint, path) for path in checkpoint.names}
    _check_tensors(checkpoint, sources, shapes)
    params = {
        path: jax.ShapeDtypeStruct(
            (len(names), *shapes[path]) if path[0] == "layers" else shapes[path],
            _dtype_of(path, dtype),
        )
        for path, names in sources.items()
    }
    return traverse_util.unflatten_dict(params)


def _read_into(target: np.ndarray, tensor: StoredTensor, path: TreePath) -> None:
    """Reads a tensor to its place in the tree."""
    numbers = tensor.read()
    if path[-1] == "kernel":
        # Numbers are made short before they are transposed: that takes a third of the time.
        numbers = numbers.astype(target.dtype, casting="same_kind", copy=False).T
    np.copyto(target, numbers, casting="same_kind")


def _fingerprinted(config: DecoderConfig) -> dict[str, Any]:
    """The part of the architecture that is hashed: all sizes, and what is no plain Llama's.

    Fields that the decoder gains must not change the fingerprints in workdirs of before.
    """
    content = dataclasses.asdict(config)
    for field in dataclasses.fields(config):
        if field.kw_only and getattr(config, field.name) == field.default:
            del content[field.name]
    return content


def _tree_shapes(config: DecoderConfig) -> dict[TreePath, tuple[int, ...]]:
    """Shape of every parameter a decoder can have, of one layer for those under "layers"."""
    width, ffn_width = config.width, config.ffn_width
    query, key = config.heads * config.head_width, config.kv_heads * config.head_width
    outputs = {"q_proj": query, "k_proj": key, "v_proj": key, "o_proj": width}
    shapes: dict[TreePath, tuple[int, ...]] = {
        ("embedder", "embedding"): (config.vocabulary_size, width),
        ("layers", "input_norm", "scale"): (width,),
        ("layers", "attention_output_norm", "scale"): (width,),
        ("layers", "attention", "q_norm", "scale"): (config.head_width,),
        ("layers", "attention", "k_norm", "scale"): (config.head_width,),
        ("layers", "post_attention_norm", "scale"): (width,),
        ("layers", "feed_forward", "gate_proj", "kernel"): (width, ffn_width),
        ("layers", "feed_forward", "up_proj", "kernel"): (width, ffn_width),
        ("layers", "feed_forward", "down_proj", "kernel"): (ffn_width, width),
        ("layers", "feed_forward_output_norm", "scale"): (width,),
        ("final_norm", "scale"): (width,),
        ("lm_head", "kernel"): (width, config.vocabulary_size),
    }
    for name, size in outputs.items():
        shapes["layers", "attention", name, "kernel"] = (query if name == "o_proj" else width, size)
        shapes["layers", "attention", name, "bias"] = (size,)
    return shapes


def _dtype_of(path: TreePath, dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float32) if path[-1] == "scale" else dtype


def _tensor_names(checkpoint: Checkpoint, path: TreePath) -> list[str]:
    """Names of the tensors behind one parameter: one a layer under "layers", else one."""
    count = checkpoint.config.layers if path[0] == "layers" else 1
    return [checkpoint.names[path].format(layer=layer) for layer in range(count)]


def _check_tensors(
    checkpoint: Checkpoint,
    sources: dict[TreePath, list[str]],
    shapes: dict[TreePath, tuple[int, ...]],
) -> None:
    """Raises a UserError unless exactly the tensors of `sources` exist, with the right shapes."""
    expected = {
        name: shapes[path][::-1] if path[-1] == "kernel" else shapes[path]
        for path, names in sources.items()
        for name in names
    }
    missing = [name for name in expected if name not in checkpoint.tensors]
    if missing:
        raise UserError(
            f"{checkpoint.location}: {_some(missing)} missing; expected it with shape "
            f"{list(expected[missing[0]])} in a model of {checkpoint.config.layers} layers, as its "
            "config says. Download the model again, with all its files."
        )
    for name, shape in expected.items():
        tensor = checkpoint.tensors[name]
        if tensor.shape != shape:
            raise UserError(
                f"{tensor.file}: tensor {name!r} has shape {shortened(list(tensor.shape))}, "
                f"expected {list(shape)} from the model's config. Take both from one download."
            )
    surplus = [name for name in checkpoint.tensors if name not in expected]
    if surplus:
        raise UserError(
            f"{checkpoint.tensors[surplus[0]].file}: {_some(surplus)} unexpected: a "
            f"{checkpoint.family} model of {checkpoint.config.layers} layers has no place for it. "
            "The config and the weights disagree, or the architecture is not supported."
        )


def _some(names: list[str]) -> str:
    rest = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"tensor {shortened(names[0], 200)}{rest} is"


def _update(digest: "hashlib._Hash", path: TreePath, index: int, tensor: StoredTensor) -> None:
    header = [path, index, tensor.shape, tensor.encoding]
    digest.update(json.dumps(header).encode())
    digest.update(tensor.stored.data)


def _check_choice(argument: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{argument} = {value!r} is not one of {', '.join(choices)}")
