"""Reads what others wrote: JSON within limits, and names of files inside a folder.

Everything that the package did not write itself is read through this module: a file that is broken
or hostile gives a ValueError with one short line, whatever is wrong with it.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

MOST_DEPTH = 100
"""Lists and objects within each other; the files that are read here have less than ten."""
MOST_DIGITS = 100
"""Digits of a number."""


def parse_json(text: str | bytes, *, nan_as_null: bool = False) -> Any:
    """Parses a JSON text (RFC 8259).

    Args:
      text: the text; bytes are UTF-8, with or without a byte order mark.
      nan_as_null: whether NaN and Infinity are read as null; Python's json writes them, and
        they are no JSON.

    Raises:
      ValueError: it is malformed (a `json.JSONDecodeError`, which knows the place), is not UTF-8,
        is nested more than `MOST_DEPTH` deep, or holds a number that is not finite or has more
        than `MOST_DIGITS` digits.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    start = len(text) - len(text.lstrip(_SPACE))
    value, end = decode_json(text, start, nan_as_null=nan_as_null)
    rest = text[end:].lstrip(_SPACE)
    if rest:
        raise json.JSONDecodeError("text after the end", text, len(text) - len(rest))
    return value


def decode_json(text: str, start: int, *, nan_as_null: bool = False) -> tuple[Any, int]:
    """Parses the JSON value that begins at an index.

    Args:
      text: holds the value, and maybe more.
      start: where the value begins.
      nan_as_null: whether NaN and Infinity are read as null; else they are refused.

    Returns:
      The value, and the index after its end.

    Raises:
      ValueError: as `parse_json` says.
    """
    try:
        value, end = (_NAN_AS_NULL if nan_as_null else _DECODER).raw_decode(text, start)
    except RecursionError as error:
        raise _too_deep() from error
    if _depth_exceeds(value, MOST_DEPTH):
        raise _too_deep()
    return value, end


def inside(folder: Path, name: Any) -> Path:
    """The path of a file in a folder, by a name that another file gives.

    Links are not followed: the caches of model hubs hold links alone.

    Raises:
      ValueError: the name is no text, or would lead out of the folder.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{shortened(name)} is not the name of a file")
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or PureWindowsPath(name).drive or "\0" in name:
        raise ValueError(f"{shortened(name)} leads out of the folder")
    return folder / pure


def shortened(value: Any, most: int = 80) -> str:
    """A value as it may stand in a message: its `repr`, cut to a number of characters."""
    if isinstance(value, str | bytes) and len(value) > most:
        value = value[:most]  # before repr, which copies
        return f"{value!r}..."
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, lists within lists
        text = f"<{type(value).__name__}>"
    return text if len(text) <= most else f"{text[:most]}..."


_SPACE = " \t\n\r"


def _too_deep() -> ValueError:
    return ValueError(f"lists and objects are nested more than {MOST_DEPTH} deep")


def _depth_exceeds(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [below for each in level for below in _below(each)]
        if not level:
            return False
    return True


def _below(value: Any) -> Iterator[Any]:
    children = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list):
        yield from (child for child in children if isinstance(child, dict | list))


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits; at most {MOST_DIGITS} are read")
    return int(digits)


def _float(digits: str) -> float:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits; at most {MOST_DIGITS} are read")
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits} is larger than any number that can be read")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=_constant)
_NAN_AS_NULL = json.JSONDecoder(
    parse_int=_integer, parse_float=_float, parse_constant=lambda _: None
)
