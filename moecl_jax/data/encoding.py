"""Texts to token ids, so that what a user writes never becomes a control token.

A tokenizer makes one token of a special token's text, such as "<|im_end|>", wherever that stands.
In a template that is wanted. In a text, a response or a label it is not: whoever writes the text
could end the user's turn and speak for the assistant. There it is tokenised as the plain characters
that it is. Whoever wants special tokens in a prompt gives `input_ids`.
"""

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from moecl_jax.errors import UserError
from moecl_jax.models.light_tokenizer import IN_USE, AnyTokenizer

TEXTS_A_CALL = 1024
"""Enough for the tokenizer to use all cores, few enough to hold their offsets in memory."""

Encoded = tuple[list[int], list[tuple[int, int]]]
"""Token ids, and the characters that each came from: first, and one after the last."""


def encode_between(
    texts: Sequence[str],
    before: str,
    after: str,
    tokenizer: AnyTokenizer,
    *,
    special_tokens: bool,
) -> Iterator[Encoded]:
    """The token ids of each text between two pieces of a template.

    The three are tokenised as one. Only where a special token would come out of the text, they are
    tokenised one by one, and the text without special tokens.

    Args:
        texts: what stands between the pieces.
        before: the piece before a text; its special tokens are special.
        after: the piece after a text, likewise.
        tokenizer: a fast tokenizer (it must know which characters a token came from).
        special_tokens: whether the tokenizer adds its own, such as a beginning of sequence.

    Returns:
        For each text ids and offsets in `before + text + after`; the offsets of the tokens that
        the tokenizer adds are empty.

    Raises:
        UserError: the tokenizer is slow, or a text holds a special token that cannot be read as
            plain characters.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} does not tell which characters a token came from. Use a "
            "fast tokenizer: a folder with tokenizer.json."
        )
    special = special_texts(tokenizer)
    for start in range(0, len(texts), TEXTS_A_CALL):
        chunk = texts[start : start + TEXTS_A_CALL]
        wholes = [before + text + after for text in chunk]
        many = _encode(tokenizer, wholes, add_special_tokens=special_tokens)
        for text, whole, (ids, offsets) in zip(chunk, wholes, many, strict=True):
            span = len(before), len(before) + len(text)
            if _specials(whole, ids, offsets, span, special, tokenizer):
                yield _encode_apart(text, before, after, tokenizer, special_tokens)
            else:
                yield ids, offsets


def special_in_label(ids: Sequence[int], label: str, tokenizer: Any) -> str | None:
    """The special token that a label's text has become, or None.

    Args:
        ids: the label's token ids.
        label: the label's text.
        tokenizer: the tokenizer that gave the ids.
    """
    special = special_texts(tokenizer)
    found = [special[token] for token in ids if token in special]
    # Unknown words have a special token too: it is no mistake unless it is written there.
    unknown = special.get(tokenizer.unk_token_id)
    return next((text for text in found if text != unknown or text in label), None)


@functools.lru_cache(maxsize=4)
def special_texts(tokenizer: Any) -> Mapping[int, str]:
    """The special tokens of a tokenizer: their texts by their ids."""
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    added = tokenizer.added_tokens_decoder.items()
    return dict(named) | {index: token.content for index, token in added if token.special}


def _encode(
    tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool, split: bool = False
) -> list[Encoded]:
    """The ids of each text, not cut, by the part of a tokenizer that is not of transformers.

    With `split`, special tokens in the texts are read as plain characters.
    """
    core = tokenizer.backend_tokenizer
    with IN_USE:
        core.no_truncation()
        core.no_padding()
        core.encode_special_tokens = split or tokenizer.split_special_tokens
        many = core.encode_batch(list(texts), add_special_tokens=add_special_tokens)
    return [(encoded.ids, encoded.offsets) for encoded in many]


def _specials(
    whole: str,
    ids: Collection[int],
    offsets: Sequence[tuple[int, int]],
    span: tuple[int, int],
    special: Mapping[int, str],
    tokenizer: Any,
) -> list[tuple[int, int]]:
    """Where special tokens came out of the characters span[0]:span[1] of a text."""
    if special.keys().isdisjoint(ids):
        return []
    return [
        (start, stop)
        for token, (start, stop) in zip(ids, offsets, strict=True)
        if token in special
        and max(start, span[0]) < min(stop, span[1])
        # Any unknown word becomes the unknown token; only its own text is a special token.
        and (token != tokenizer.unk_token_id or whole[start:stop].strip() == special[token])
    ]


def _encode_apart(
    text: str, before: str, after: str, tokenizer: Any, special_tokens: bool
) -> Encoded:
    """`before`, a text without special tokens and `after`, each tokenised by itself."""
    frame = [before + after or "a"]  # in an empty text, the front would look like the end
    [(bare, _)] = _encode(tokenizer, frame, add_special_tokens=False)
    [(full, _)] = _encode(tokenizer, frame, add_special_tokens=special_tokens)
    surplus = len(full) - len(bare)
    places = (n for n in range(surplus + 1) if full[n : n + len(bare)] == bare)
    added = next(places, 0)  # tokens that the tokenizer adds at the front; the others at the end
    [first, last] = _encode(tokenizer, [before, after], add_special_tokens=False)
    ids, offsets = list(full[:added]), [(0, 0)] * added
    start = 0
    encoded = (first, _encode_plain(text, tokenizer), last)
    for part, (own, own_offsets) in zip((before, text, after), encoded, strict=True):
        ids += own
        offsets += _moved(own_offsets, start)
        start += len(part)
    rest = full[added + len(bare) :]
    return [*ids, *rest], [*offsets, *[(0, 0)] * len(rest)]


def _encode_plain(text: str, tokenizer: Any) -> Encoded:
    """A text without special tokens.

    A vocabulary of words or pieces may still hold a special token's text as one of them. Then the
    text is cut within it, and its parts are tokenised.
    """
    [(ids, offsets)] = _encode(tokenizer, [text], add_special_tokens=False, split=True)
    found = _specials(text, ids, offsets, (0, len(text)), special_texts(tokenizer), tokenizer)
    if not found:
        return ids, offsets
    for start, stop in found:
        if stop - start < 2:
            raise UserError(
                f"the text holds {text[start:stop]!r}, which the tokenizer knows as a special "
                "token alone; take it out of the text, or give input_ids"
            )
    cuts = [(start + stop) // 2 for start, stop in found]
    ids, offsets = [], []
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        own, own_offsets = _encode_plain(text[start:stop], tokenizer)
        ids += own
        offsets += _moved(own_offsets, start)
    return ids, offsets


def _moved(offsets: Sequence[tuple[int, int]], start: int) -> list[tuple[int, int]]:
    return [(start + first, start + last) for first, last in offsets]
