"""What every message to a user must be, whatever it quotes."""

import re

_BROKEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]")


def is_one_line(error: Exception) -> bool:
    """Whether an error's message is one line of characters that can be shown, and not too long."""
    message = str(error)
    return 10 < len(message) < 1000 and not _BROKEN.search(message)
