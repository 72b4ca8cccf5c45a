"""Characters that nobody sees: which texts are blank to a reader, and which two look the same."""

import re
import unicodedata

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a pair, which JSON may hold as \\ud800 and no tokenizer takes."""

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Control characters (Unicode category Cc, tabs and line feeds among them) and line separators."""

# Default_Ignorable_Code_Point of the Unicode Character Database, the blank of Braille, and the
# marks of annotations.
_UNSEEN = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_SEEN = re.compile(f"[^\\s\x00-\x1f\x7f-\x9f{_UNSEEN}]")
_NOT_SEEN = re.compile(f"[{_UNSEEN}]")


def is_blank(text: str) -> bool:
    """Whether a text has no character that is seen, such as one of zero-width spaces alone."""
    return _SEEN.search(text) is None


def appearance(text: str) -> str:
    """A text as a reader sees it: composed characters (NFC), and none that are not seen.

    Two labels with one appearance cannot be told apart on a screen.
    """
    return _NOT_SEEN.sub("", unicodedata.normalize("NFC", text))
