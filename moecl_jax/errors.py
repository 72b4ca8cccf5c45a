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


def suggestion(wrong: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`"; did you mean 'name'?"` with the known name that is most like a wrong one, or `""`.

    In dotted names a wrong last part may stand for the initials of the right one, as
    `optimizer.lr` does for `optimizer.learning_rate`, or stand in the wrong section.

    Args:
      wrong: the name that does not exist.
      known: the names that exist.
      cutoff: how alike two names must be, from 0 to 1.
    """
    known = list(known)
    section, _, last = wrong.rpartition(".")
    initials = [
        name
        for name in known
        if name.rpartition(".")[0] == section
        and last == "".join(word[:1] for word in name.rpartition(".")[2].split("_"))
    ]
    same_last = [name for name in known if "." in wrong + name and name.rpartition(".")[2] == last]
    close = initials or difflib.get_close_matches(wrong, same_last, n=1, cutoff=0.0)
    close = close or difflib.get_close_matches(wrong, known, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""
