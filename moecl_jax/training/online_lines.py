"""Reads arriving lines as examples of tasks that are named, or found by the text."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.errors import UserError
from moecl_jax.outside import parse_json, shortened
from moecl_jax.runs.features import TaskFeatures
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.gold import gold_label
from moecl_jax.serving.prompts import Prompt, PromptReader, choosing_reader, reader_of_task

Line = bytes | ValueError | Mapping[str, Any]
"""A JSON line, a record, or why a line could not be read."""


@dataclasses.dataclass(frozen=True)
class Arrived:
    """An example that has arrived.

    Attributes:
      line: number of its line, from 1.
      place: place of its task in the stream.
      example: its prompt, and its label where it has one.
      gold: index of that label; None where it has none.
    """

    line: int
    place: int
    example: TokenizedExample
    gold: int | None


class LineReader:
    """Reads JSON lines as examples."""

    def __init__(self, evaluator: Evaluator, features: TaskFeatures | None, task: str):
        """Reads for an evaluator's tasks.

        Args:
          evaluator: knows the tasks, their templates and the tokenizer.
          features: features by which a text's task is found; None where there are none.
          task: name of the task of lines that name none; empty to find each text's.

        Raises:
          UserError: there is no such task, or it has no labels.
        """
        self.evaluator, self.features = evaluator, features
        self._readers: dict[str, PromptReader] = {}
        names = evaluator.names
        self.task = task or (names[0] if len(names) == 1 else "")
        if task:
            self._reader(task)

    def read(self, lines: Sequence[Line], first: int) -> list[Arrived | str]:
        """The example of each line, or what is wrong with it.

        Args:
          lines: the lines.
          first: number of the first one.
        """
        records = [_record(line) for line in lines]
        read: list[Arrived | str] = [each if isinstance(each, str) else "" for each in records]
        owners: dict[str, dict[int, Mapping[str, Any]]] = {}
        for place, record in enumerate(records):
            if isinstance(record, str):
                continue
            name = str(record.get("task") or self.task)
            try:
                self._reader(name)
                owners.setdefault(name, {})[place] = record
            except UserError as error:
                read[place] = str(error)
        for name, own in owners.items():
            given = self._reader(name).read(list(own.values()))
            for (place, record), (added, prompt) in zip(own.items(), given, strict=True):
                if prompt is None:
                    read[place] = str(added["error"])
                else:
                    read[place] = self._arrived(first + place, record, prompt)
        return read

    def _arrived(self, line: int, record: Any, prompt: Prompt) -> Arrived | str:
        task = self.evaluator.tasks[prompt.task]
        value = record.get(task.label_field)
        if value is None or value == "":
            return Arrived(line, prompt.task, TokenizedExample(prompt.ids, 0), None)
        label = gold_label(value, [task])
        if label is None:
            return f"{shortened(value)} is no label of task '{task.name}'"
        gold = task.labels.index(label)
        return Arrived(line, prompt.task, TokenizedExample(prompt.ids, gold), gold)

    def _reader(self, name: str) -> PromptReader:
        """Reads the texts of a task, or finds each text's where the name is empty."""
        if name not in self._readers:
            self._readers[name] = self._made(name)
        return self._readers[name]

    def _made(self, name: str) -> PromptReader:
        if name:
            place = self.evaluator.index(name)
            task = self.evaluator.tasks[place]
            if task.free_form or task.removed:
                what = "answers in free text" if task.free_form else "was removed"
                raise UserError(f"task '{name}' {what}; online learning scores labels")
            return reader_of_task(self.evaluator, place)
        if self.features is None or not self.features.names:
            names = ", ".join(self.evaluator.names)
            raise UserError(
                'the line has no "task", and none can be found by the text here: the method keeps '
                f"no expert a task, or no task is finished; name one by --task: {names}"
            )
        return choosing_reader(self.evaluator, self.features)


def _record(line: Line) -> Mapping[str, Any] | str:
    """The object of a line, or what is wrong with it."""
    if isinstance(line, ValueError):
        return str(line)
    try:
        record = parse_json(line) if isinstance(line, bytes) else line
    except ValueError as error:
        return f"no JSON: {error}"
    if not isinstance(record, Mapping) or not record:
        return f"expected an object with fields, not {shortened(record)}"
    return record
