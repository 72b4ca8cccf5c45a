"""Texts that are pasted or uploaded."""

import pytest

from moecl_jax.errors import UserError
from moecl_jax.service.incoming import read_texts


@pytest.mark.parametrize(
    ("form", "content", "texts"),
    [
        ("lines", "\ufeffone\n\n  two \r\n\u200b\n", [("one", {}), ("two", {})]),
        ("jsonl", '{"text": "a\\nb", "from": "x", "n": 1}\n', [("a\nb", {"from": "x", "n": 1})]),
        ("csv", 'text,from\n"a, b\nc",x\n', [("a, b\nc", {"from": "x"})]),
        ("tsv", "from\ttext\nx\ta,b\n", [("a,b", {"from": "x"})]),
        ("tsv", 'text\n"no\n"quoted"\r\n', [('"no', {}), ('"quoted"', {})]),
    ],
)
def test_texts_are_read_with_their_context(form, content, texts):
    assert read_texts(content, form) == texts


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("lines", " \n\n", "no text"),
        ("lines", "\ud800", "surrogate"),
        ("jsonl", '{"text": "a"}\n{"text": 3}', "line 2: text is 3"),
        ("jsonl", '{"text": "a"}\nno', "line 2: no JSON"),
        ("jsonl", "[1]", r"line 1: \[1\]; expected an object"),
        ("jsonl", '{"text": "\\ud800"}', "line 1: holds half of a surrogate pair"),
        ("jsonl", "[" * 100_000, "line 1: no JSON"),
        ("csv", "body,from\na,b\n", "no column 'text'; the columns are body, from"),
        ("csv", "", "no column 'text'"),
        ("csv", "text,from,text\na,b,c\n", "column 'text' stands twice"),
        ("csv", "text,from\na\n", "line 2: expected 2 cells"),
        ("csv", "text,from\na,b,c\n", "line 2: expected 2 cells"),
        ("csv", 'text\n"a', "unexpected end of data"),
        ("csv", "text\n \n", "line 2: text is ' '"),
    ],
)
def test_what_is_malformed_is_named_with_its_line(form, content, message):
    with pytest.raises(UserError, match=message):
        read_texts(content, form)
