"""Damage of every kind to files, for property tests of what reads them."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

from moecl_jax.errors import UserError

CASES = 7_500
"""Damaged files of all property tests together; each test has a share, and the shares make one."""
SECONDS = 10
"""The longest that reading one of them may take."""

# In place of a number's bytes: all and no bits, signs, the largest sizes, NaN and infinity.
_WORDS = [
    bytes(8),
    b"\xff" * 8,
    b"\x01" + bytes(7),
    bytes(7) + b"\x80",
    b"\xff" * 7 + b"\x7f",
    b"\x00\x00\xc0\x7f",
    b"\x00\x00\x80\xff",
    b"\xff\xff\xff\x7f",
    b"\x00\xca\x9a\x3b",
    b"\x7f",
]
_DEEP = "[" * 50_000
_VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**31,
    10**9,
    10**18,
    -(10**18),
    2**63,
    2**64,
    10**99,
    0.5,
    -1.5,
    1e-300,
    1e300,
    -0.0,
    "",
    "0",
    "x" * 5_000,
    "../b.safetensors",
    "/etc/passwd",
    "a\0b",
    "a\nb",
    "\ud800",
    "model.safetensors",
    "F32",
    "I8",
    [],
    {},
    [[]],
    [None],
    [1, 2],
    {"a": 1},
    [0] * 1_000,
    [[[[[[[[[[]]]]]]]]]],
]
_TEXTS = ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5_000, _DEEP, '{"a":' * 50_000, "'", ""]


def share(of_all: float) -> hypothesis.settings:
    """Settings of a test that reads a share of all `CASES`; the same cases in every session."""
    return hypothesis.settings(
        max_examples=round(CASES * of_all),
        deadline=SECONDS * 1_000,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def refusal(read: Callable[[], Any]) -> str | None:
    """The message of a refusal, checked to be one short line; None where the file is accepted."""
    try:
        read()
    except UserError as error:
        message = str(error)
        assert len(message) < 1_000
        assert message.splitlines() == [message]
        return message
    return None


def read_with(file: Path, content: bytes | str, read: Callable[[], Any]) -> str | None:
    """The `refusal` of reading a file with another content, which is then put back."""
    before = file.read_bytes()
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "ignore"))
    try:
        return refusal(read)
    finally:
        file.write_bytes(before)


@st.composite
def damaged_bytes(draw: st.DrawFn, whole: bytes, header: int) -> bytes:
    """A file with bytes changed, put in, left out or cut off, mostly in its header.

    Args:
      draw: draws from a strategy.
      whole: the file before.
      header: number of bytes at its beginning that say how the rest is read.
    """
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        within = draw(st.sampled_from([header, header, header, len(content)]))
        place = draw(st.integers(0, max(min(within, len(content)) - 1, 0)))
        kind = draw(st.sampled_from(["bit", "byte", "word", "cut", "out", "in", "again"]))
        if kind == "bit" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte":
            content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "word":
            word = draw(st.sampled_from(_WORDS))
            content[place : place + len(word)] = word
        elif kind == "cut":
            del content[place:]
        elif kind == "out":
            del content[place : place + draw(st.integers(1, 40))]
        elif kind == "in":
            content[place:place] = draw(st.binary(min_size=1, max_size=40))
        else:
            content[place:place] = content[place : place + draw(st.integers(1, 400))]
    return bytes(content)


@st.composite
def damaged_json(draw: st.DrawFn, whole: Any) -> str:
    """A JSON text with values changed for others, left out, or doubled, or no JSON any more."""
    content = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 2))):
        containers = [value for value in _values(content) if isinstance(value, dict | list)]
        filled = [value for value in containers if value]
        if not filled:
            break
        chosen = draw(st.sampled_from(filled))
        key = draw(
            st.sampled_from(list(chosen) if isinstance(chosen, dict) else range(len(chosen)))
        )
        kind = draw(st.sampled_from(["other", "other", "other", "near", "out", "name"]))
        if kind == "other":
            chosen[key] = copy.deepcopy(draw(st.sampled_from(_VALUES)))
        elif kind == "near":
            chosen[key] = _near(chosen[key], draw(st.integers(-3, 3)))
        elif kind == "name" and isinstance(chosen, dict):
            chosen[draw(st.sampled_from(["", "x" * 3_000, "a\nb", "__metadata__"]))] = chosen[key]
        else:
            del chosen[key]
    text = json.dumps(content)
    if draw(st.integers(0, 5)) == 0:
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(st.sampled_from(_TEXTS)) + text[place + 1 :]
    return text


def _near(value: Any, step: int) -> Any:
    """A value like another, which may pass for it."""
    if isinstance(value, int | float):
        return value + step if step else value * 1_000_000
    if isinstance(value, str):
        return value[:step] if step else value * 2
    return [value]


def _values(content: Any) -> list[Any]:
    """A JSON value and all that are in it; of a long list or object, the first few."""
    below = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(content, dict | list):
        return [content]
    return [content, *(value for child in below[:60] for value in _values(child))]
