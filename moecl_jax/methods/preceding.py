"""What stands before a text's prompt: demonstrations, or whatever else is to be read first.

A method whose `traits.precedes` is set says by `Method.preceding` what precedes the texts that a
task is asked, as pieces of token ids. What fits the model's context is used:

    front | common pieces | a text's own pieces | its prompt

The front is what the tokenizer puts before any text, such as a beginning of sequence. The keys and
values of the common pieces are computed once for all texts.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from moecl_jax.data.tokenize import TokenizedExample

Pieces = Sequence[np.ndarray]
"""Token ids, int32 `[P]` each, without the front; the most important piece is the first."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """The texts that a task is asked, for a method to choose what precedes them.

    Attributes:
      index: place of the task in the stream.
      examples: n texts with their prompts as the task's; their answers must not be looked at.
      features: gives what the frozen model makes of each text alone, `[n, D]` float32.
      encode: gives the ids of a text, for a piece.
      separator: number of the ids that follow each piece.
    """

    index: int
    examples: Sequence[TokenizedExample]
    features: Callable[[], np.ndarray]
    encode: Callable[[str], np.ndarray]
    separator: int


@dataclasses.dataclass(frozen=True)
class Preceding:
    """What precedes n texts of a task.

    The most important piece stands last, next to the prompt. Those that do not fit are left out,
    and counted.

    Attributes:
      common: pieces before each of the texts.
      own: for each text further pieces, between the common ones and its prompt; empty for none.
      own_limit: the most tokens of a text's own pieces, with the separators after them. Shapes of
        batches depend on it, so it should be the same for all texts of a task.
    """

    common: Pieces = ()
    own: Sequence[Pieces] = ()
    own_limit: int = 0


NOTHING = Preceding()
"""Texts are asked as they are."""
