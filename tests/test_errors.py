"""Messages to users: one line, short, and without characters that a terminal would obey."""

import pytest
from messages import is_one_line

from moecl_jax.errors import UserError, listed, one_line


@pytest.mark.parametrize(
    ("quoted", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\ud800", r"\ud800"),
        ("\u2028\u202e", r"\u2028\u202e"),
        ("日本 é", "日本 é"),
    ],
)
def test_what_cannot_be_shown_is_escaped(quoted: str, shown: str) -> None:
    assert str(UserError(f"the file {quoted} is broken")) == f"the file {shown} is broken"


@pytest.mark.parametrize("quoted", ["x" * 10**6, "\n" * 10**6, "é\x00" * 700])
def test_a_long_message_keeps_its_beginning_and_what_to_do(quoted: str) -> None:
    error = UserError(f"data.csv:7: the label {quoted} is unknown. Mend the file.")
    assert is_one_line(error)
    assert str(error).startswith("data.csv:7: the label ")
    assert str(error).endswith(" is unknown. Mend the file.")
    assert UserError(*error.args).args == error.args


def test_an_exception_s_message_is_one_short_line() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(KeyError("name")) == "name"
    assert len(one_line(ValueError("x" * 10**6))) == 303


def test_many_names_are_listed_by_the_first_of_them() -> None:
    assert listed([]) == ""
    assert listed(["a", 1]) == "a, 1"
    assert listed(str(index) for index in range(10**9)).endswith(", ...")
    assert len(listed(f"name {index}" for index in range(10**6))) < 220
    assert len(listed(["x" * 10**6, "y" * 10**6])) < 220
