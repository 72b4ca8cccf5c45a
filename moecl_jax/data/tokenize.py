"""Texts to token ids: prompts that fit, and the answers of a task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moecl_jax.data.tasks import Example, Task
from moecl_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS_A_CALL = 1024
"""Enough for the tokenizer to use all cores, few enough to hold their offsets in memory."""


@dataclass(frozen=True)
class TokenizedExample:
    """A prompt's token ids, int32 [P], and the class of its answer."""

    prompt: np.ndarray
    label: int


@dataclass(frozen=True)
class TokenizedTask:
    """A task in token ids.

    Attributes:
        name: the task's name.
        labels: the answers as text, in class order.
        answers: for each label the ids of " " + label followed by end of sequence, int32 [A].
        splits: examples by "train", "validation" and "test".
        truncated: by split, how many texts were cut to fit.
        dropped: by split, how many examples were left out because they did not fit.
    """

    name: str
    labels: tuple[str, ...]
    answers: tuple[np.ndarray, ...]
    splits: dict[str, tuple[TokenizedExample, ...]]
    truncated: dict[str, int]
    dropped: dict[str, int]


def tokenize_task(
    task: Task, tokenizer: "PreTrainedTokenizerBase", *, max_length: int, over_long: str
) -> TokenizedTask:
    """Tokenises a task so that every prompt with the task's longest answer fits in max_length.

    Args:
        task: the task's texts.
        tokenizer: a fast tokenizer (it must know which characters a token came from).
        max_length: tokens of a prompt and an answer together, special tokens included.
        over_long: "truncate" cuts the end of a text that does not fit; "drop" leaves it out.

    Raises:
        UserError: the template and an answer alone do not fit, an example split is dropped
            whole, or the tokenizer is slow or has no end-of-sequence token.
    """
    if over_long not in ("truncate", "drop"):
        raise UserError(f"over_long = {over_long!r} must be 'truncate' or 'drop'.")
    answers = tokenize_answers(task.labels, tokenizer)
    max_prompt = max_length - max(len(answer) for answer in answers)
    splits: dict[str, tuple[TokenizedExample, ...]] = {}
    truncated, dropped = {}, {}
    for split in ("train", "validation", "test"):
        examples: Sequence[Example] = getattr(task, split)
        texts = [example.text for example in examples]
        try:
            prompts = list(_tokenize_prompts(texts, task.template, tokenizer, max_prompt))
        except UserError as error:
            raise UserError(
                f"task '{task.name}' with max_length = {max_length} (its longest answer takes "
                f"{max_length - max_prompt}): {error}"
            ) from error
        cut = sum(was_cut for _, was_cut in prompts)
        truncated[split] = cut if over_long == "truncate" else 0
        dropped[split] = cut if over_long == "drop" else 0
        splits[split] = tuple(
            TokenizedExample(prompt, example.label)
            for (prompt, was_cut), example in zip(prompts, examples, strict=True)
            if over_long == "truncate" or not was_cut
        )
        if examples and not splits[split]:
            raise UserError(
                f"task '{task.name}': no {split} example fits in max_length = {max_length} "
                "tokens. Raise max_length, or set over_long='truncate'."
            )
    return TokenizedTask(task.name, task.labels, answers, splits, truncated, dropped)


def tokenize_answers(
    labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[np.ndarray, ...]:
    """The ids of " " + label and end of sequence for each label, int32 [A] each.

    Raises:
        UserError: the tokenizer has no end-of-sequence token, a label has no tokens, or two
            labels have the same.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token, which ends every answer. Set eos_token "
            "in its tokenizer_config.json."
        )
    label_of: dict[tuple[int, ...], str] = {}
    for label in labels:
        ids = tuple(tokenizer.encode(f" {label}", add_special_tokens=False))
        if not ids:
            raise UserError(f"the tokenizer gives no tokens for the label {label!r}; reword it.")
        if ids in label_of:
            raise UserError(
                f"the tokenizer gives the labels {label_of[ids]!r} and {label!r} the same tokens "
                f"{list(ids)} (unknown words, or no capital letters?); reword one."
            )
        label_of[ids] = label
    return tuple(np.array([*ids, tokenizer.eos_token_id], dtype=np.int32) for ids in label_of)


def tokenize_prompt(
    text: str, template: str, tokenizer: "PreTrainedTokenizerBase", max_prompt: int
) -> tuple[np.ndarray, bool]:
    """The token ids of a template with its text, and whether the text was cut to fit.

    Tokens are removed from the end of the text only; the template and the tokenizer's own
    special tokens (such as a beginning of sequence) always stay, and a character that takes
    several tokens is kept or removed whole. With one token a word:

        template "classify : {text} answer :"       text "a b c d"
        max_prompt 8:    classify : a b c d answer :      (not cut)
        max_prompt 6:    classify : a b answer :          (cut)

    Args:
        text: what stands for "{text}".
        template: contains "{text}" exactly once.
        tokenizer: a fast tokenizer.
        max_prompt: the most tokens of the result.

    Returns:
        ids, int32 [P] with P <= max_prompt, and True when tokens were removed.

    Raises:
        UserError: the template alone is longer than max_prompt, or the tokenizer is slow.
    """
    return next(_tokenize_prompts([text], template, tokenizer, max_prompt))


def _tokenize_prompts(
    texts: Sequence[str], template: str, tokenizer: "PreTrainedTokenizerBase", max_prompt: int
) -> Iterator[tuple[np.ndarray, bool]]:
    """`tokenize_prompt` for many texts."""
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} does not tell which characters a token came from. Use a "
            "fast tokenizer: a folder with tokenizer.json."
        )
    before, after = template.split("{text}")
    for start in range(0, len(texts), TEXTS_A_CALL):
        chunk = texts[start : start + TEXTS_A_CALL]
        encoding: Any = tokenizer(
            [before + text + after for text in chunk],
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,  # prompts longer than the model's context are cut below
        )
        for text, ids, offsets in zip(
            chunk, encoding["input_ids"], encoding["offset_mapping"], strict=True
        ):
            if len(ids) > max_prompt:
                span = len(before), len(before) + len(text)
                yield np.array(_cut(ids, offsets, span, max_prompt), dtype=np.int32), True
            else:
                yield np.array(ids, dtype=np.int32), False


def _cut(
    ids: list[int], offsets: list[tuple[int, int]], span: tuple[int, int], max_prompt: int
) -> list[int]:
    """Removes tokens that lie within the characters span[0]:span[1], last first.

    Offsets of special tokens are (0, 0) and empty, so they are never within the text.
    """
    within = [
        index for index, (start, stop) in enumerate(offsets) if span[0] <= start < stop <= span[1]
    ]
    surplus = len(ids) - max_prompt
    if surplus > len(within):
        raise UserError(
            f"the template alone takes {len(ids) - len(within)} tokens and {max_prompt} are left "
            "for the prompt. Raise max_length or shorten the template."
        )
    kept = len(within) - surplus
    # The tokens of one character share its offsets: remove its first ones with its last.
    while kept and offsets[within[kept - 1]][1] > offsets[within[kept]][0]:
        kept -= 1
    removed = set(within[kept:])
    return [token for index, token in enumerate(ids) if index not in removed]
