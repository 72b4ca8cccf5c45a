"""Examples that were given in Python.

The examples are kept with the task, and are no part of its configuration. There each split is a
text such as "memory:240:9f86d081884c7d65": the number of its examples and the start of a SHA-256
of what they hold. So a run that goes on can tell whether it was given the same examples again.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from moecl_jax.data.sources.base import INPUT_IDS, Definition, Held, Record, Source
from moecl_jax.errors import UserError
from moecl_jax.outside import shortened

DIGITS = 16
"""Of the SHA-256 in hexadecimal: two different data sets in 10^19 have the same."""


class Memory(Source):
    """The source of a task whose splits are sequences of mappings."""

    name: ClassVar[str] = "memory"

    def check(self, task: Definition) -> None:
        """There is no path, and each split holds examples or says which it held."""
        super().check(task)
        if task.path:
            raise task.error("path", "must be empty: source 'memory' has no files")
        for split in ("train", "validation", "test"):
            text = str(getattr(task, split))
            if text and not re.fullmatch(rf"memory:\d+:[0-9a-f]{{{DIGITS}}}", text):
                raise task.error(
                    split, "must be a sequence of examples, such as [{'text': ..., 'label': ...}]"
                )

    def location(self, task: Definition, split: str) -> str:
        """The split's name: the examples lie nowhere else."""
        return f"{split} of task '{task.name}', in memory"

    def read(self, task: Definition, split: str) -> Iterator[Record]:
        """The examples that the task holds.

        Raises:
            UserError: the task was made from a saved configuration, without its examples.
        """
        value = getattr(task, split)
        if not isinstance(value, Held):
            raise UserError(
                f"task '{task.name}': its {split} examples were given in Python ({value}) and are "
                "not part of a saved configuration. Pass a task with the same examples again: "
                f"Task({task.name!r}, {split}=[{{{task.text_fields[0]!r}: ..., "
                f"{task.answer_field!r}: ...}}, ...], ...), with the fields it had."
            )
        for index, fields in enumerate(value.held):
            yield Record(fields, f"{split}[{index}] of task '{task.name}'")


def held_examples(
    task: Definition, split: str, examples: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Copies of the examples, with arrays and NumPy's numbers as plain lists and numbers.

    Args:
        task: whose examples they are.
        split: "train", "validation" or "test".
        examples: mappings from the names of fields to values.

    Raises:
        UserError: one of them is no mapping.
    """
    held: list[Mapping[str, Any]] = []
    for index, fields in enumerate(examples):
        if not isinstance(fields, Mapping):
            raise UserError(
                f"{split}[{index}] of task '{task.name}' is {shortened(fields)}. Expected a "
                "mapping, such as {'text': ..., 'label': ...}; of a pandas data frame pass "
                "frame.to_dict('records')."
            )
        held.append({name: _plain(value) for name, value in fields.items()})
    return held


def fingerprint(task: Definition, examples: Iterable[Mapping[str, Any]]) -> str:
    """The text that stands for examples in a configuration; it depends on what the task reads."""
    names = dict.fromkeys((*task.text_fields, task.answer_field, INPUT_IDS))
    content, count = hashlib.sha256(), 0
    for fields in examples:
        values = [fields.get(name) for name in names]
        content.update(json.dumps(values, default=repr).encode() + b"\n")
        count += 1
    return f"memory:{count}:{content.hexdigest()[:DIGITS]}"


def _plain(value: Any) -> Any:
    """A value as JSON would hold it, if it is a tuple or what NumPy or JAX made."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
