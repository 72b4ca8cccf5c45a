"""State dicts in torch's own format. The only module that imports torch, and only when called."""

import io
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from moecl_jax.errors import UserError, one_line
from moecl_jax.outside import shortened
from moecl_jax.weights.files import map_bytes
from moecl_jax.writing import whole_file

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# What zipfile raises where an archive is damaged, or is one that it does not know.
_NO_ARCHIVE = (
    zipfile.BadZipFile,
    NotImplementedError,
    OSError,
    OverflowError,
    ValueError,
    struct.error,
)


def read_state(file: Path) -> dict[str, np.ndarray]:
    """Reads a dictionary of tensors; nothing else in the file is made or executed.

    Returns:
      Arrays in float32, float16 or bfloat16, in the file's order.

    Raises:
      UserError: torch is not installed, or the file is missing, damaged, no dictionary of dense
        floating point tensors, or holds objects or code, which are refused.
    """
    torch = _import_torch(f"{file} is in torch's format")
    _refuse_compression(file, map_bytes(file, "Copy all files of the checkpoint.").size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # on how the file was pickled, which is no user's choice
            state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = one_line(error)
        blocked = re.search(r"GLOBAL (\S+)", reason)
        code = shortened(blocked[1])[1:-1] if blocked else ""
        why = f"asks for {code}, which is code" if blocked else "is damaged, or holds code"
        raise UserError(
            f"{file}: refused, because it {why}; nothing of it was executed. Expected a dictionary "
            "of tensors, as torch.save(state_dict) writes it. Do not open this file by other means "
            "unless you trust its source."
        ) from error
    except Exception as error:  # whatever torch raises here, the file is at fault
        raise UserError(
            f"{file}: truncated, damaged or not in torch's format "
            f"({type(error).__name__}: {one_line(error)[:200]}). It has {file.stat().st_size} "
            "bytes; copy it again."
        ) from error
    if not isinstance(state, dict):
        raise UserError(
            f"{file}: holds a {type(state).__name__}; expected a dictionary of tensors."
        )
    return {_checked_name(name, file): _array(name, value, file) for name, value in state.items()}


def write_state(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes what `read_state` reads, whole or not at all.

    Raises:
      UserError: torch is not installed.
    """
    torch = _import_torch(f"{file} is to be in torch's format")
    state = {}
    for name, array in tensors.items():
        if array.dtype == _BFLOAT16:
            state[name] = torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        else:
            state[name] = torch.from_numpy(array.copy())
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with whole_file(file) as stream:
        stream.write(buffer.getbuffer())


def _refuse_compression(file: Path, size: int) -> None:
    """Raises a UserError if a file would unpack to more than its size [bytes]; torch's never do."""
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
    except _NO_ARCHIVE as error:  # torch reads it with code of its own, which may read more
        raise UserError(
            f"{file}: truncated, damaged or not in torch's format "
            f"({type(error).__name__}: {one_line(error)[:200]}). It has {size} bytes; copy it "
            "again."
        ) from error
    if unpacked > size:
        raise UserError(
            f"{file}: would unpack to {unpacked} bytes, and has {size}: it was not written by "
            "torch.save. Copy it again."
        )


def _import_torch(why: str) -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{why}, and torch is not installed. Install it with: pip install 'moecl_jax[torch]' "
            "(from a checkout: pip install -e '.[torch]'), or use safetensors."
        ) from error
    return torch


def _checked_name(name: Any, file: Path) -> str:
    if not isinstance(name, str):
        raise UserError(
            f"{file}: holds an entry named {shortened(name)}; expected names of tensors."
        )
    return name


def _array(name: Any, value: Any, file: Path) -> np.ndarray:
    import torch

    dense = isinstance(value, torch.Tensor) and value.layout == torch.strided
    if not dense or value.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        found = f"a {value.dtype} tensor" if dense else f"a {type(value).__name__}"
        raise UserError(
            f"{file}: {shortened(name, 200)} is {found}; expected a dense tensor in float32, "
            "float16 or bfloat16."
        )
    value = value.detach()
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise UserError(
            f"{file}: {shortened(name, 200)} has the shape {shortened(list(value.shape))}, for "
            "which the file does not hold the numbers. Copy it again."
        )
    if value.dtype == torch.bfloat16:
        return np.asarray(value.contiguous().view(torch.int16).numpy()).view(_BFLOAT16)
    return np.asarray(value.numpy())
