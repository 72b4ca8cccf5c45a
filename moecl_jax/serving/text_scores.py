"""Scores of written answers: exact match and ROUGE-L."""

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moecl_jax.runs.classification import NO_LABEL

# Words of letters and digits; a character each of Chinese and Japanese, which write no spaces.
_CHARACTER = r"[\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_WORDS = re.compile(rf"{_CHARACTER}|(?:(?!{_CHARACTER})\w)+")


def labels_of(
    written: Sequence[np.ndarray | None], answers: Sequence[np.ndarray]
) -> NDArray[np.int64]:
    """The labels that a model has written, `[n]`, or `NO_LABEL`.

    Args:
      written: ids of n texts without end of sequence, which must be exactly a label's; None where
        nothing was written.
      answers: ids of each label's text with its end.
    """
    places = {tuple(ids[:-1].tolist()): place for place, ids in enumerate(answers)}
    found = [
        NO_LABEL if ids is None else places.get(tuple(ids.tolist()), NO_LABEL) for ids in written
    ]
    return np.array(found, np.int64)


def score_texts(generated: Sequence[str], expected: Sequence[str], metric: str) -> float:
    """Mean of `text_scores`; NaN where there are no texts."""
    scores = text_scores(generated, expected, metric)
    return sum(scores) / len(scores) if scores else math.nan


def text_scores(generated: Sequence[str], expected: Sequence[str], metric: str) -> list[float]:
    """Scores in [0, 1] of generated texts.

    Args:
      generated: n texts.
      expected: the n right ones, in the same order.
      metric: "exact_match" (but for white space) or "rouge_l" (see `rouge_l`).
    """
    measure = {"exact_match": _exact_match, "rouge_l": rouge_l}[metric]
    return [measure(ours, right) for ours, right in zip(generated, expected, strict=True)]


def rouge_l(generated: str, expected: str) -> float:
    """ROUGE-L (Lin 2004): F1 of the longest common subsequence of words, not a stretch.

        P = lcs / words generated    R = lcs / words expected    F1 = 2 P R / (P + R)

    Words are lower-cased runs of letters and digits; of Chinese and Japanese, which write no
    spaces, each character is a word. Texts without words score by exact match.

    Example: "The cat sat." against "the black cat sat down" has lcs 3, F1 = 2 * 3 / (3 + 5).
    """
    ours, right = (_WORDS.findall(text.lower()) for text in (generated, expected))
    if not ours or not right:
        return _exact_match(generated, expected)
    return 2 * _longest_common_subsequence(ours, right) / (len(ours) + len(right))


def _exact_match(generated: str, expected: str) -> float:
    return float(generated.split() == expected.split())


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time as bits (Hyyro 2004).

    Bit j of `row` is 0 where the length grows from the first j words of `second` to the next.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << index
    every = (1 << len(second)) - 1
    row = every
    for word in first:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & every
    return len(second) - row.bit_count()
