"""The one exception a user is meant to see, and how others are put into its message."""

import difflib
import re
from collections.abc import Iterable

_MOST = 990
"""Characters of a message. Whoever writes one shortens what it quotes; this holds in any case."""

# Control characters, line separators, halves of surrogate pairs, and marks that turn text around.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """A mistake the user can mend: says what is wrong, where, what was expected and what to do.

    The command line prints its message without a stack trace and exits with status 1. A message is
    one line of printable characters and less than 1000 of them, whatever a file or a name that it
    quotes holds: others are escaped, and the middle of a longer message is left out.
    """

    def __init__(self, message: str):
        # Cut before, for it may be megabytes, and after, for what is escaped is longer.
        super().__init__(_without_middle(printable(_without_middle(message))))


def printable(text: str) -> str:
    """A text in one line of printable characters; others are escaped."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def _without_middle(message: str) -> str:
    if len(message) <= _MOST:
        return message
    return f"{message[: _MOST - 400]} ... {message[-300:]}"


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks, cut to 300 characters; KeyError's unquoted."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    text = " ".join(str(message)[:10_000].split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def listed(names: Iterable[object], most: int = 200) -> str:
    """Names joined by commas, the first of them if there are many.

    Args:
      names: the names.
      most: about how many characters the result may have.
    """
    shown: list[str] = []
    length = 0
    for name in names:
        shown.append(str(name)[:most])
        length += len(shown[-1]) + 2
        if length > most and len(shown) > 1:
            return ", ".join(shown[:-1]) + ", ..."
    return ", ".join(shown)


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
