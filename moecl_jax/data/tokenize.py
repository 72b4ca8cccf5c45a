"""Texts to token ids: prompts that fit, and the answers of a task."""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moecl_jax.data.encoding import encode_between, special_in_label
from moecl_jax.data.examples import Example, TaskExamples
from moecl_jax.data.task import SPLITS, Task
from moecl_jax.errors import UserError, one_line
from moecl_jax.models.light_tokenizer import AnyTokenizer
from moecl_jax.outside import shortened

TEMPLATE_DAY = datetime.datetime(2025, 1, 1)
"""What `strftime_now` in a chat template says."""

_DIRECTIVES = [*(f"%{letter}" for letter in "aAwdbBmyYHIpMSfjUWcxXGuVeFTDhR"), "%-d", "%-m", "%%"]


@dataclass(frozen=True)
class PromptFormat:
    """How a task's prompts and answers are written.

    Attributes:
        template: contains "{text}" exactly once.
        special_tokens: whether the tokenizer adds its own (such as a beginning of sequence); a
            chat template holds them already.
        answer_prefix: what stands between the prompt and an answer.
    """

    template: str
    special_tokens: bool = True
    answer_prefix: str = " "


BARE = PromptFormat("{text}")
"""A text alone, which does not tell the task."""


@dataclass(frozen=True)
class TokenizedExample:
    """A prompt and its answer.

    Attributes:
        prompt: token ids, int32 [P].
        label: class of the answer; 0 in a free-form task.
        response: ids of a free-form task's response with its end of sequence, int32 [A];
            a response that was cut has no end. None in a label task.
        response_text: whole response of a free-form task, else "".
        text: what stands in the template, whole; "" where the prompt was given as `input_ids`.
        where: place in its file, for messages.
    """

    prompt: np.ndarray
    label: int
    response: np.ndarray | None = None
    response_text: str = ""
    text: str = ""
    where: str = ""


@dataclass(frozen=True)
class TokenizedTask:
    """A task in token ids.

    Attributes:
        definition: what was tokenised.
        splits: examples by "train", "validation" and "test".
        truncated: number of prompts that were cut to fit, by split.
        truncated_responses: number of responses that were cut to fit, by split.
        dropped: number of examples that were left out because they did not fit, by split.
        unread: why the data could not be read, where the task may be without; "" where they were.
    """

    definition: Task
    splits: dict[str, tuple[TokenizedExample, ...]]
    truncated: dict[str, int]
    truncated_responses: dict[str, int]
    dropped: dict[str, int]
    unread: str = ""

    @classmethod
    def without_data(cls, definition: Task, reason: str) -> "TokenizedTask":
        """A task whose data cannot be read, for this reason; it has no examples."""
        none = dict.fromkeys(SPLITS, 0)
        return cls(definition, dict.fromkeys(SPLITS, ()), none, none, none, reason)

    @property
    def name(self) -> str:
        """The task's name."""
        return self.definition.name

    @property
    def labels(self) -> tuple[str, ...]:
        """The answers as text, in class order; none in a free-form task."""
        return self.definition.labels

    def require_training_examples(self) -> None:
        """Raises unless there is something to train on.

        Raises:
            UserError: the training split is empty.
        """
        if not self.splits["train"]:
            raise UserError(
                f"task '{self.name}' has no training examples: its definition names no `train` "
                "data. Set `train`, or take the task out of config.tasks."
            )


def prompt_format(definition: Task, tokenizer: AnyTokenizer | None) -> PromptFormat:
    """How a task's prompts and answers are written, in training and everywhere else.

    The clock of chat templates stands at `TEMPLATE_DAY`: one that prints the day would else write
    other prompts in training than in use.

    Raises:
        UserError: the task is a chat, and the tokenizer's chat template is missing or unfit.
    """
    if not definition.chat or tokenizer is None:
        return PromptFormat(definition.template)
    if not tokenizer.chat_template:
        raise UserError(
            f"task '{definition.name}' has chat = True, and the tokenizer has no chat template. "
            "Set chat_template in its tokenizer_config.json, or chat = False."
        )
    turns = [{"role": "user", "content": definition.template}]
    try:
        rendered, again = (
            tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=True,
                chat_template=_without_clock(tokenizer.get_chat_template()),
            )
            for _ in range(2)
        )
    except Exception as error:  # a template is a program, which may fail in any way
        raise UserError(
            f"task '{definition.name}': the tokenizer's chat template fails on one user turn "
            f"({type(error).__name__}: {one_line(error)[:200]}). Mend it, or set chat = False."
        ) from error
    if rendered != again:
        raise UserError(
            f"task '{definition.name}': the tokenizer's chat template writes another prompt each "
            f"time: {rendered!r}, then {again!r}. Mend it, or set chat = False."
        )
    if str(rendered).count("{text}") != 1:
        raise UserError(
            f"task '{definition.name}': the tokenizer's chat template must repeat once what the "
            f"user says; of {shortened(definition.template)} it makes {shortened(rendered, 200)}. "
            "Set chat = False."
        )
    return PromptFormat(str(rendered), special_tokens=False, answer_prefix="")


def _without_clock(template: str) -> str:
    """A chat template whose `strftime_now` says `TEMPLATE_DAY`, whatever the day is."""
    if "strftime_now" not in template:
        return template
    replaced = "".join(
        f" | replace({directive!r}, {TEMPLATE_DAY.strftime(directive)!r})"
        for directive in _DIRECTIVES
    )
    # The line end is the macro's: the environment trims it.
    macro = f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n"
    return macro + template


def prompt_limit(
    definition: Task, answers: Sequence[np.ndarray], max_length: int, max_response: int
) -> int:
    """The most tokens of a prompt, so that it fits in max_length with any answer of the task.

    Args:
        definition: what the task is.
        answers: ids of each label's text; empty with a classification head.
        max_length: tokens of a prompt and an answer together.
        max_response: tokens of a free-form task's response.
    """
    longest = max_response if definition.free_form else max(map(len, answers), default=0)
    return max_length - longest


def tokenize_task(
    task: TaskExamples,
    answers: Sequence[np.ndarray],
    tokenizer: AnyTokenizer | None,
    *,
    max_length: int,
    max_response: int,
    over_long: str,
) -> TokenizedTask:
    """Tokenises a task so that every prompt with the task's longest answer fits in max_length.

    Args:
        task: the task's examples.
        answers: ids of each label's text; empty with a classification head or free-form answers.
        tokenizer: a fast tokenizer (it must know which characters a token came from); None if the
            model has none: then every example must be `input_ids`.
        max_length: tokens of a prompt and an answer together, special tokens included.
        max_response: tokens of a free-form task's response, end of sequence included.
        over_long: "truncate" cuts the end of a text, of `input_ids` or of a response that does
            not fit; "drop" leaves the example out. A response that was cut does not end in end of
            sequence, so that no end is learnt where there is none.

    Raises:
        UserError: the template and an answer alone do not fit, an example split is dropped
            whole, a text has no tokenizer, or the tokenizer is slow or lacks end of sequence.
    """
    if over_long not in ("truncate", "drop"):
        raise UserError(f"over_long = {over_long!r} must be 'truncate' or 'drop'.")
    definition = task.definition
    prompt_form = prompt_format(definition, tokenizer)
    max_prompt = prompt_limit(definition, answers, max_length, max_response)
    splits: dict[str, tuple[TokenizedExample, ...]] = {}
    truncated, truncated_responses, dropped = {}, {}, {}
    for split in SPLITS:
        examples: Sequence[Example] = getattr(task, split)
        responses = _responses(task, examples, prompt_form, tokenizer, max_response)
        _refuse_texts_without_tokenizer(task, examples, tokenizer)
        try:
            prompts = _prompts(examples, prompt_form, tokenizer, max_prompt)
        except UserError as error:
            raise UserError(
                f"task '{definition.name}' with max_length = {max_length} (its longest answer "
                f"takes {max_length - max_prompt}): {error}"
            ) from error
        kept = [
            TokenizedExample(
                prompt, example.label, response, example.response, example.text, example.where
            )
            for example, (prompt, cut), (response, response_cut) in zip(
                examples, prompts, responses, strict=True
            )
            if over_long == "truncate" or not (cut or response_cut)
        ]
        if examples and not kept:
            raise UserError(
                f"task '{definition.name}': no {split} example fits in max_length = {max_length} "
                "tokens. Raise max_length, or set over_long='truncate'."
            )
        splits[split] = tuple(kept)
        dropped[split] = len(examples) - len(kept)
        truncate = over_long == "truncate"
        truncated[split] = sum(cut for _, cut in prompts) if truncate else 0
        truncated_responses[split] = sum(cut for _, cut in responses) if truncate else 0
    return TokenizedTask(definition, splits, truncated, truncated_responses, dropped)


def _refuse_texts_without_tokenizer(
    task: TaskExamples, examples: Sequence[Example], tokenizer: AnyTokenizer | None
) -> None:
    first = next((example for example in examples if not example.input_ids), None)
    if first is not None and tokenizer is None:
        raise UserError(
            f"{first.where}: this example of task '{task.definition.name}' is a text, and the "
            "model has no tokenizer. Put its tokenizer.json into its folder, or give examples as "
            "input_ids."
        )


def _prompts(
    examples: Sequence[Example],
    prompt_form: PromptFormat,
    tokenizer: AnyTokenizer | None,
    max_prompt: int,
) -> list[tuple[np.ndarray, bool]]:
    """Ids of each prompt and whether it was cut."""
    tokenized: Iterator[tuple[np.ndarray, bool]] = iter(())
    if tokenizer is not None:
        texts = [example.text for example in examples if not example.input_ids]
        tokenized = _tokenize_prompts(texts, prompt_form, tokenizer, max_prompt)
    return [
        (np.array(example.input_ids[:max_prompt], np.int32), len(example.input_ids) > max_prompt)
        if example.input_ids
        else next(tokenized)
        for example in examples
    ]


def _responses(
    task: TaskExamples,
    examples: Sequence[Example],
    prompt_form: PromptFormat,
    tokenizer: AnyTokenizer | None,
    max_response: int,
) -> list[tuple[np.ndarray | None, bool]]:
    """Ids of each response with its end and whether it was cut; (None, False) in a label task."""
    if not task.definition.free_form or tokenizer is None or not examples:
        return [(None, False)] * len(examples)
    end = end_of_sequence(tokenizer)
    texts = [example.response for example in examples]
    prefix = prompt_form.answer_prefix
    responses: list[tuple[np.ndarray | None, bool]] = []
    for ids, _ in encode_between(texts, prefix, "", tokenizer, special_tokens=False):
        whole = np.array([*ids, end], np.int32)
        responses.append((whole[:max_response], len(whole) > max_response))
    return responses


def end_of_sequence(tokenizer: AnyTokenizer) -> int:
    """The id that ends every answer.

    Raises:
        UserError: the tokenizer has none.
    """
    if not isinstance(tokenizer.eos_token_id, int):
        raise UserError(
            "the tokenizer has no end-of-sequence token, which ends every answer. Set eos_token "
            "in its tokenizer_config.json."
        )
    return tokenizer.eos_token_id


def tokenize_answers(definition: Task, tokenizer: AnyTokenizer) -> tuple[np.ndarray, ...]:
    """The ids of each label's text after a prompt, with end of sequence, int32 [A] each.

    Raises:
        UserError: the tokenizer has no end-of-sequence token, a label has no tokens or holds a
            special token, two labels have the same, or what `prompt_format` raises.
    """
    prefix = prompt_format(definition, tokenizer).answer_prefix
    end = end_of_sequence(tokenizer)
    label_of: dict[tuple[int, ...], str] = {}
    for label in definition.labels:
        ids = tuple(tokenizer.encode(prefix + label, add_special_tokens=False))
        if not ids:
            raise UserError(
                f"task '{definition.name}': the tokenizer gives no tokens for the label {label!r}; "
                "reword it."
            )
        special = special_in_label(ids, label, tokenizer)
        if special is not None:
            raise UserError(
                f"task '{definition.name}': the label {label!r} holds {special!r}, a special token "
                "of the tokenizer; reword it. Where the data hold such a text, name it in "
                "raw_labels."
            )
        if ids in label_of:
            raise UserError(
                f"task '{definition.name}': the tokenizer gives the labels {label_of[ids]!r} and "
                f"{label!r} the same tokens {list(ids)} (unknown words, or no capital letters?); "
                "reword one."
            )
        label_of[ids] = label
    return tuple(np.array([*ids, end], dtype=np.int32) for ids in label_of)


def tokenize_prompt(
    text: str, prompt_form: PromptFormat, tokenizer: AnyTokenizer, max_prompt: int
) -> tuple[np.ndarray, bool]:
    """The token ids of a template with its text, and whether the text was cut to fit.

    Tokens are removed from the end of the text only; the template and the tokenizer's own
    special tokens (such as a beginning of sequence) always stay, and a character that takes
    several tokens is kept or removed whole. A special token that is written in the text is plain
    characters there (see `encoding`). With one token a word:

        template "classify : {text} answer :"       text "a b c d"
        max_prompt 8:    classify : a b c d answer :      (not cut)
        max_prompt 6:    classify : a b answer :          (cut)

    Args:
        text: what stands for "{text}".
        prompt_form: how the task's prompts are written.
        tokenizer: a fast tokenizer.
        max_prompt: the most tokens of the result.

    Returns:
        ids, int32 [P] with P <= max_prompt, and True when tokens were removed.

    Raises:
        UserError: the template alone is longer than max_prompt, or what `encode_between` raises.
    """
    return next(_tokenize_prompts([text], prompt_form, tokenizer, max_prompt))


def bare_prompts(
    examples: Sequence[TokenizedExample],
    tokenizer: AnyTokenizer | None,
    max_prompt: int,
) -> list[np.ndarray]:
    """The ids of each example's text without a template, or its prompt if that was all.

    Args:
        examples: n of them.
        tokenizer: a fast tokenizer; None if the model has none, and no example has a text.
        max_prompt: the most tokens of a result; longer ones are cut at their end.

    Returns:
        n times int32 [P] with P <= max_prompt.
    """
    tokenized: Iterator[tuple[np.ndarray, bool]] = iter(())
    if tokenizer is not None:
        texts = [example.text for example in examples if example.text]
        tokenized = _tokenize_prompts(texts, BARE, tokenizer, max_prompt)
    return [
        next(tokenized)[0] if example.text else example.prompt[:max_prompt] for example in examples
    ]


def _tokenize_prompts(
    texts: Sequence[str],
    prompt_form: PromptFormat,
    tokenizer: AnyTokenizer,
    max_prompt: int,
) -> Iterator[tuple[np.ndarray, bool]]:
    """`tokenize_prompt` for many texts."""
    before, after = prompt_form.template.split("{text}")
    special = prompt_form.special_tokens
    encoded = encode_between(texts, before, after, tokenizer, special_tokens=special)
    for text, (ids, offsets) in zip(texts, encoded, strict=True):
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
