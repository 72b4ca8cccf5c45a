"""Reads records as prompts of a task that is given, or found by the text."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moecl_jax.data.characters import LONE_SURROGATE, is_blank
from moecl_jax.data.examples import problem_with_ids
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.errors import UserError
from moecl_jax.runs.features import TaskFeatures
from moecl_jax.serving.evaluator import Evaluator

Added = dict[str, Any]
Chooser = Callable[[Sequence[TokenizedExample]], list[int]]


@dataclass(frozen=True)
class Prompt:
    """What a task is asked.

    Attributes:
      ids: int32 `[P]`, the prompt's token ids.
      task: place of the task in the stream.
    """

    ids: np.ndarray
    task: int


class PromptReader:
    """Reads records as prompts, cut as the task's training texts are.

    A record is `{"text": ...}` or `{"input_ids": [...]}` (the whole prompt) with anything else
    beside it.
    """

    def __init__(self, evaluator: Evaluator, choose: Chooser, *, name_task: bool):
        """Reads for an evaluator's tasks.

        Args:
          evaluator: knows the tasks, their templates and the tokenizer.
          choose: gives the place of each example's task.
          name_task: whether a record gains the name of its task.
        """
        self.evaluator, self.choose, self.name_task = evaluator, choose, name_task
        self._prompt_of = functools.cache(evaluator.prompt_of)

    def read(
        self, records: Sequence[Mapping[str, Any] | Exception]
    ) -> list[tuple[Added, Prompt | None]]:
        """What each record gains, and its prompt; an `error` and None if it has none.

        A text that was cut to fit says so by `truncated`; `input_ids` that do not fit are an error.

        Args:
          records: each a record, or why there is none.
        """
        parsed = [self._example(record) for record in records]
        examples = [example for example in parsed if isinstance(example, TokenizedExample)]
        places = iter(self.choose(examples) if examples else [])
        read: list[tuple[Added, Prompt | None]] = []
        for example in parsed:
            if isinstance(example, str):
                read.append(({"error": example}, None))
            else:
                read.append(self._prompt(example, next(places)))
        return read

    def _prompt(self, example: TokenizedExample, task: int) -> tuple[Added, Prompt | None]:
        added: Added = {"task": self.evaluator.names[task]} if self.name_task else {}
        prompt_of = self._prompt_of(task)
        try:
            ids, cut = prompt_of(example)
        except UserError as error:
            return added | {"error": str(error)}, None
        if cut and not example.text:
            problem = f"input_ids has {len(example.prompt)} tokens; at most {len(ids)} fit"
            return added | {"error": problem}, None
        return added | ({"truncated": True} if cut else {}), Prompt(ids, task)

    def _example(self, record: Mapping[str, Any] | Exception) -> TokenizedExample | str:
        """A record's text or ids, or what is wrong with it."""
        if isinstance(record, Exception):
            return str(record)
        if not isinstance(record, Mapping):
            return f"expected a text or a record of one, not {type(record).__name__}"
        text, ids = record.get("text"), record.get("input_ids")
        if isinstance(text, str) and not is_blank(text) and ids is None:
            if LONE_SURROGATE.search(text):
                return "holds half of a surrogate pair (\\ud800...)"
            if self.evaluator.model.tokenizer is not None:
                return TokenizedExample(np.zeros(0, np.int32), 0, text=text.strip())
            return 'the model has no tokenizer for a text; give "input_ids"'
        if text is not None or ids is None:
            return 'expected either "text", a text that is not empty, or "input_ids"'
        problem = problem_with_ids(ids, self.evaluator.model.sizes.vocabulary_size)
        return problem or TokenizedExample(np.array(ids, np.int32), 0)


def reader_of_task(evaluator: Evaluator, index: int) -> PromptReader:
    """Reads prompts of one task."""
    return PromptReader(evaluator, lambda examples: [index] * len(examples), name_task=False)


def choosing_reader(evaluator: Evaluator, features: TaskFeatures) -> PromptReader:
    """Reads prompts of the task that each text belongs to, among those with features."""
    places = [evaluator.index(name) for name in features.names]

    def choose(examples: Sequence[TokenizedExample]) -> list[int]:
        return [places[choice] for choice in features.choose(evaluator.features(examples))]

    return PromptReader(evaluator, choose, name_task=True)
