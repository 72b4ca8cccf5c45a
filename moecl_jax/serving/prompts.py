"""Reads records as prompts of a task that is given, or found by the text."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moecl_jax.data.characters import LONE_SURROGATE, is_blank
from moecl_jax.data.examples import problem_with_ids, text_of
from moecl_jax.data.sources import INPUT_IDS, BadExample, Record
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.errors import UserError, listed
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
      text: what stands in the template; "" where the prompt was given as `input_ids`.
    """

    ids: np.ndarray
    task: int
    text: str = ""

    @property
    def example(self) -> TokenizedExample:
        """The prompt as an example whose answer is not known."""
        return TokenizedExample(self.ids, 0, text=self.text)


class PromptReader:
    """Reads records as prompts, cut as the task's training texts are.

    A record holds the text fields of a task, or the joined text as `text`, or the whole prompt as
    `input_ids`, with anything else beside it.
    """

    def __init__(self, evaluator: Evaluator, places: Sequence[int], choose: Chooser):
        """Reads for an evaluator's tasks.

        Args:
          evaluator: knows the tasks, their templates and the tokenizer.
          places: the tasks that may be chosen, by their places in the stream. A record's text is
            made of the fields of the first of them that finds all of its fields.
          choose: gives the place of each example's task.
        """
        self.evaluator, self.choose = evaluator, choose
        self.tasks = [evaluator.tasks[place] for place in places]
        self._prompt_of = functools.cache(evaluator.prompt_of)

    def check_columns(self, columns: Sequence[str], where: str) -> None:
        """Checks that rows of a table can have a text.

        Raises:
          UserError: no task finds its columns.
        """
        if not any(set(fields) <= set(columns) for fields in (*self._text_fields(), ("text",))):
            needed = dict.fromkeys([*map(listed, self._text_fields()), "text"])
            raise UserError(
                f"{where}: no columns for the text: there are {listed(columns)}; expected "
                f"{' or '.join(needed)}"
            )

    def read(
        self, records: Sequence[Mapping[str, Any] | Exception]
    ) -> list[tuple[Added, Prompt | None]]:
        """The name of each record's `task`, and its prompt; an `error` and None if it has none.

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
        added: Added = {"task": self.evaluator.names[task]}
        prompt_of = self._prompt_of(task)
        try:
            ids, cut = prompt_of(example)
        except UserError as error:
            return added | {"error": str(error)}, None
        if cut and not example.text:
            problem = f"input_ids has {len(example.prompt)} tokens; at most {len(ids)} fit"
            return added | {"error": problem}, None
        return added | ({"truncated": True} if cut else {}), Prompt(ids, task, example.text)

    def _example(self, record: Mapping[str, Any] | Exception) -> TokenizedExample | str:
        """A record's text or ids, or what is wrong with it."""
        if isinstance(record, Exception):
            return str(record)
        if not isinstance(record, Mapping):
            return f"expected a text or a record of one, not {type(record).__name__}"
        text, ids = self._text(record), record.get(INPUT_IDS)
        if isinstance(text, BadExample):
            return text.message
        if text is not None and ids is None:
            if LONE_SURROGATE.search(text):
                return "holds half of a surrogate pair (\\ud800...)"
            if self.evaluator.model.tokenizer is not None:
                return TokenizedExample(np.zeros(0, np.int32), 0, text=text)
            return 'the model has no tokenizer for a text; give "input_ids"'
        if text is not None or ids is None:
            return self._expected(record)
        problem = problem_with_ids(ids, self.evaluator.model.sizes.vocabulary_size)
        return problem or TokenizedExample(np.array(ids, np.int32), 0)

    def _text(self, record: Mapping[str, Any]) -> str | BadExample | None:
        """A record's text, what is wrong with it, or None if it has none."""
        for task in self.tasks:
            joined = task.text_fields != ("text",) or task.text_format
            if joined and set(task.text_fields) <= record.keys():
                return text_of(Record(record, ""), task.text_fields, task.join_texts)
        text = record.get("text")
        if any("text" in fields and len(fields) > 1 for fields in self._text_fields()):
            return None  # it is a part of the text
        if text is None or (isinstance(text, str) and not is_blank(text)):
            return text if text is None else text.strip()
        return BadExample("no text", self._expected(record))

    def _text_fields(self) -> list[tuple[str, ...]]:
        return list(dict.fromkeys(task.text_fields for task in self.tasks))

    def _expected(self, record: Mapping[str, Any]) -> str:
        own = [fields for fields in self._text_fields() if fields != ("text",)]
        if own:
            names = " or ".join(listed(fields) for fields in own)
            return (
                f'expected the fields {names}, or either the whole text as "text" or '
                f'"input_ids"; the fields are {listed(record)}'
            )
        return 'expected either "text", a text that is not empty, or "input_ids"'


def reader_of_task(evaluator: Evaluator, index: int) -> PromptReader:
    """Reads prompts of one task."""
    return PromptReader(evaluator, [index], lambda examples: [index] * len(examples))


def choosing_reader(evaluator: Evaluator, features: TaskFeatures) -> PromptReader:
    """Reads prompts of the task that each text belongs to, among those with features."""
    places = [evaluator.same(evaluator.index(name))[0] for name in features.names]

    def choose(examples: Sequence[TokenizedExample]) -> list[int]:
        return [places[choice] for choice in features.choose(evaluator.features(examples))]

    return PromptReader(evaluator, list(dict.fromkeys(places)), choose)
