"""Demonstrations: prompts with their answers, put before another prompt."""

from collections.abc import Sequence

import numpy as np

from moecl_jax.data.tokenize import PromptFormat, TokenizedExample
from moecl_jax.models.light_tokenizer import AnyTokenizer

SEPARATOR = "\n\n"
"""What stands between a demonstration and what follows, where no chat template ends the turn."""


def front_of(tokenizer: AnyTokenizer) -> np.ndarray:
    """The ids that a tokenizer puts before any text, such as a beginning of sequence, int32 `[F]`.

    None, where these are no more than what it puts after the text.
    """
    bare = list(tokenizer.encode("a", add_special_tokens=False))
    full = list(tokenizer.encode("a", add_special_tokens=True))
    places = range(len(full) - len(bare) + 1)
    start = next((n for n in places if full[n : n + len(bare)] == bare), 0)
    return np.array(full[:start], np.int32)


def separator_of(form: PromptFormat, tokenizer: AnyTokenizer) -> np.ndarray:
    """The ids between a demonstration and what follows it, int32 `[S]`; none in a chat."""
    if not form.special_tokens:
        return np.zeros(0, np.int32)
    return np.array(tokenizer.encode(SEPARATOR, add_special_tokens=False), np.int32)


def demonstration(
    example: TokenizedExample, form: PromptFormat, front: np.ndarray, end: int
) -> np.ndarray:
    """The ids of an example's prompt with its answer, as they precede another prompt.

    In a chat the answer ends its turn, by the end of sequence. Else it has no end: what follows is
    of the same text.

    Args:
      example: has the ids of its answer as its response.
      form: how the task's prompts are written.
      front: what `front_of` gives.
      end: id of the end of sequence.
    """
    answer = example.response
    assert answer is not None  # whoever asks has put it there
    if form.special_tokens and len(answer) and answer[-1] == end:
        answer = answer[:-1]
    return np.concatenate([without_front(example.prompt, front), answer]).astype(np.int32)


def without_front(ids: np.ndarray, front: np.ndarray) -> np.ndarray:
    """Ids less the front, if they begin with it; never to nothing, after which no answer stands."""
    begins = 0 < len(front) < len(ids) and np.array_equal(ids[: len(front)], front)
    return ids[len(front) :] if begins else ids


def fitting(lengths: Sequence[int], room: int) -> list[int]:
    """Places of the pieces that are used: in their order each that still fits in the room.

    With lengths 3, 5, 2 and room for 6 tokens these are 0 and 2.
    """
    used = []
    for place, length in enumerate(lengths):
        if length <= room:
            used.append(place)
            room -= length
    return used


def one_after_another(pieces: Sequence[np.ndarray], separator: np.ndarray) -> np.ndarray:
    """The ids of pieces, the first one last, with a separator after each; int32 `[P]`."""
    parts = [part for piece in reversed(pieces) for part in (piece, separator)]
    return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)
