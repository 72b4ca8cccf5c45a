"""Opens files of models: JSON objects, and memory maps.

What is wrong with a file as such is said here, in one line that names it: it is absent, a folder,
not readable, or the pointer that Git LFS leaves in place of a large file.
"""

import stat
from pathlib import Path
from typing import Any

import numpy as np

from moecl_jax.errors import UserError, one_line
from moecl_jax.outside import parse_json, shortened

MOST_JSON_BYTES = 2**28
"""Size of a JSON file; the largest tokenizers have a tenth of it."""

_POINTER = b"version https://git-lfs.github.com/spec/"
_WHOLE_MODEL = "Download the model again, with all its files."


def read_object(
    file: Path, missing: str = _WHOLE_MODEL, *, nan_as_null: bool = False
) -> dict[str, Any]:
    """Parses a file that holds one JSON object.

    Args:
      file: the file.
      missing: sentence that says what to do if there is no such file.
      nan_as_null: whether NaN and Infinity are read as null; else they are refused.

    Raises:
      UserError: the file cannot be read, is larger than `MOST_JSON_BYTES`, or holds something else.
    """
    content = map_bytes(file, missing)
    if content.size > MOST_JSON_BYTES:
        raise UserError(
            f"{shown(file)}: has {content.size} bytes; expected a JSON object of at most "
            f"{MOST_JSON_BYTES}. Download or copy the file again."
        )
    try:
        value = parse_json(content.tobytes(), nan_as_null=nan_as_null)
    except ValueError as error:
        raise UserError(
            f"{shown(file)}: not valid JSON ({one_line(error)}). Download or copy the file again."
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{shown(file)}: expected a JSON object. Download or copy the file again.")
    return value


def map_bytes(file: Path, missing: str = _WHOLE_MODEL) -> np.ndarray:
    """The bytes of a file, a read-only uint8 array [bytes], memory-mapped unless it is empty.

    Args:
      file: the file.
      missing: sentence that says what to do if there is no such file.

    Raises:
      UserError: the file cannot be read, or is a Git LFS pointer.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            found = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
            raise UserError(f"{shown(file)}: is {found}; expected a file. {missing}")
        if status.st_size == 0:
            return np.zeros(0, np.uint8)
        content = np.asarray(np.memmap(file, np.uint8, mode="r"))
    except FileNotFoundError as error:
        link = ": it is a link to a file that is not there" if file.is_symlink() else ""
        raise UserError(f"{shown(file)}: no such file{link}. {missing}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise UserError(f"{shown(file)}: cannot be read ({reason}). {missing}") from error
    if content[: len(_POINTER)].tobytes() == _POINTER:
        raise UserError(
            f"{shown(file)}: holds a Git LFS pointer and not the file itself. Run 'git lfs pull' "
            "in its folder, or download the file."
        )
    return content


def shown(path: Path | str) -> str:
    """A path as it may stand in a message of one line."""
    text = str(path)
    return text if text.isprintable() and len(text) <= 300 else shortened(text, 300)
