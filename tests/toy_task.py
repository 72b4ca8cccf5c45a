"""A task of two classes in JSON-lines files, written and read by tests."""

import json
from pathlib import Path
from typing import Any

from moecl_jax.data.examples import Example, TaskExamples, load_examples
from moecl_jax.data.task import Task

Rows = list[tuple[str, object]]
TRAIN: Rows = [("one", "a"), ("two", "b"), ("three", "a"), ("four", "b")]
TEST: Rows = [("five", "a"), ("six", "b")]


def define(folder: Path | str = "", **changes: Any) -> Task:
    values: dict[str, Any] = {
        "name": "toy",
        "source": "jsonl",
        "path": str(folder),
        "train": "train.jsonl",
        "test": "test.jsonl",
        "labels": ("a", "b"),
        "template": "{text} :",
    }
    return Task(**(values | changes))


def write(folder: Path, split: str, rows: Rows) -> None:
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def load(definition: Task, **changes: Any) -> TaskExamples:
    values: dict[str, Any] = {
        "seed": 0,
        "vocabulary_size": 100,
        "validation_from": "train",
        "validation_fraction": 0.0,
        "train_examples": 0,
        "validation_examples": 0,
        "test_examples": 0,
        "on_bad_example": "error",
    }
    return load_examples(definition, **(values | changes))


def texts(examples: tuple[Example, ...]) -> list[str]:
    return [example.text for example in examples]
