"""Small changes of texts that a reader hardly minds, to try whether a model does.

What is drawn depends on the text and the kind of change alone: all runs and methods are tried with
the same changed texts.
"""

import random
import re
from collections.abc import Callable, Mapping

from moecl_jax.data.lookalikes import HOMOGLYPHS, HOMOPHONES, NEIGHBOURS, SPLITS

Change = Callable[[str, random.Random], str]

_WORD = re.compile(r"[A-Za-z]{4,}")
_TWO_LETTERS = re.compile(r"([^\W\d_])(?!\1)([^\W\d_])")


def _typo(letter: str, draw: random.Random) -> str:
    """A letter as a hasty writer types it: the key beside it, twice, or not at all."""
    beside = draw.choice(NEIGHBOURS[letter.lower()])
    return draw.choice([beside.upper() if letter.isupper() else beside, letter * 2, ""])


def _swapped(letters: str, draw: random.Random) -> str:
    del draw
    return letters[::-1]


def _other_case(letter: str, draw: random.Random) -> str:
    del draw
    return letter.swapcase()


def _of(table: Mapping[str, str]) -> Change:
    """One of the characters that stand for a character."""

    def change(character: str, draw: random.Random) -> str:
        return draw.choice(table[character])

    return change


def _parts(character: str, draw: random.Random) -> str:
    del draw
    return SPLITS[character]


Spans = list[tuple[int, int]]


def _letters_of_words(text: str) -> Spans:
    """Letters of words of at least four, which are still read with one that is wrong."""
    spans = [match.span() for match in _WORD.finditer(text)]
    return [(place, place + 1) for start, stop in spans for place in range(start, stop)]


def _pairs(text: str) -> Spans:
    return [match.span() for match in _TWO_LETTERS.finditer(text)]


def _cased(text: str) -> Spans:
    return _where(text, lambda c: c != c.swapcase() and len(c.swapcase()) == 1)


def _in(table: Mapping[str, str]) -> Callable[[str], Spans]:
    return lambda text: _where(text, table.__contains__)


def _where(text: str, holds: Callable[[str], bool]) -> Spans:
    return [(place, place + 1) for place, character in enumerate(text) if holds(character)]


# Where a kind can change a text, and what it makes of such a place.
_KINDS: dict[str, tuple[Callable[[str], Spans], Change]] = {
    "typos": (_letters_of_words, _typo),
    "swaps": (_pairs, _swapped),
    "case": (_cased, _other_case),
    "homoglyphs": (_in(HOMOGLYPHS), _of(HOMOGLYPHS)),
    "homophones": (_in(HOMOPHONES), _of(HOMOPHONES)),
    "split": (_in(SPLITS), _parts),
}

PERTURBATIONS = tuple(_KINDS)
"""Names of the kinds of changes:

typos       a letter is doubled, left out, or that of a key beside it (words of four Latin letters)
swaps       two letters or Chinese characters that follow each other change places
case        a capital letter becomes a small one, or the other way
homoglyphs  a Latin letter becomes one of another script that looks like it
homophones  a Chinese character becomes one that sounds like it
split       a Chinese character becomes its two parts
"""


def perturbed(text: str, kind: str, rate: float) -> str:
    """A text with some of its places changed.

    Args:
      text: any text.
      kind: one of `PERTURBATIONS`.
      rate: part of the places which the kind can change that are changed, rounded, and at least
        one if there is any.

    Returns:
      The changed text; the text itself if the kind finds no place in it.
    """
    places, change = _KINDS[kind]
    spans = places(text)
    if not spans:
        return text
    draw = random.Random(f"{kind} {text}")
    chosen = sorted(draw.sample(range(len(spans)), max(1, round(rate * len(spans)))))
    pieces, end = [], 0
    for start, stop in (spans[place] for place in chosen):
        pieces += [text[end:start], change(text[start:stop], draw)]
        end = stop
    return "".join([*pieces, text[end:]])
