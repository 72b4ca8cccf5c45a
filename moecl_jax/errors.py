"""The one exception a user is meant to see, and how others are put into its message."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend: says what is wrong, where, what was expected and what to do.

    The command line prints its message without a stack trace and exits with status 1.
    """


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks; KeyError's without its quotes."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(message).split())


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """`" Did you mean 'name'?"` for the known name that is most like a wrong one, or ""."""
    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
