"""JSON within limits, and names inside a folder."""

import json
from pathlib import Path

import pytest

from moecl_jax.outside import MOST_DEPTH, decode_json, inside, parse_json, shortened


@pytest.mark.parametrize(
    "value", [None, True, 3, -2.5, "ä\u2028", [], {}, [[1, {"a": [2]}]], {"a": {"b": 1e-7}}]
)
def test_what_json_writes_is_read(value):
    text = json.dumps(value)
    assert parse_json(text) == value
    assert parse_json(f" \n{text}\t".encode()) == value
    assert parse_json(b"\xef\xbb\xbf" + text.encode()) == value
    assert decode_json(f"x{text} y", 1) == (value, 1 + len(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[1] 2", "text after the end"),
        ("[1,]", "Expecting value|Illegal trailing comma"),
        (b"\xff", "utf-8"),
        ("NaN", "NaN is no JSON"),
        ("[-Infinity]", "-Infinity is no JSON"),
        ("1e999", "1e999 is larger"),
        ("9" * 5000, "a number has 5000 digits"),
        ("0." + "9" * 5000, "a number has 5002 digits"),
        ("[" * 100_000, f"nested more than {MOST_DEPTH} deep"),
        ("[" * 101 + "]" * 101, f"nested more than {MOST_DEPTH} deep"),
        ('{"a":' * 101 + "1" + "}" * 101, f"nested more than {MOST_DEPTH} deep"),
    ],
)
def test_what_is_broken_or_hostile_is_one_short_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 200


def test_what_python_writes_for_no_number_may_be_read_as_null():
    text = '{"a": [NaN, Infinity, -Infinity, 1.5]}'
    assert parse_json(text, nan_as_null=True) == {"a": [None, None, None, 1.5]}
    with pytest.raises(ValueError, match="1e999 is larger"):
        parse_json("1e999", nan_as_null=True)


def test_a_hundred_levels_are_read():
    text = "[" * 100 + "]" * 100
    assert json.dumps(parse_json(text)) == text


def test_names_stay_inside_their_folder():
    folder = Path("models")
    assert inside(folder, "a/b.safetensors") == Path("models/a/b.safetensors")
    for name in ("../b", "a/../../b", "/etc/passwd", "C:\\b", "", 3, None, ["a"], "a\0b"):
        with pytest.raises(ValueError, match=r"not the name of a file|leads out of the folder"):
            inside(folder, name)


def test_values_in_messages_are_short():
    assert shortened("ab") == "'ab'"
    assert shortened("x" * 10**6) == "'" + "x" * 80 + "'..."
    assert len(shortened(list(range(10**5)))) == 83


def test_a_value_without_a_text_is_named_by_its_type():
    assert shortened(10**5000) == "<int>"
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert shortened(nested) == "<list>"
