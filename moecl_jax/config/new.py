"""Writes a config for files of examples: what was guessed, and settings that train as they are."""

import dataclasses
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moecl_jax import reporting
from moecl_jax.data.guess import Columns, Guess, find_files, guess_task
from moecl_jax.data.survey import Survey, lengths, survey
from moecl_jax.data.task import Task
from moecl_jax.data.tokenize import tokenize_answers
from moecl_jax.errors import UserError, listed, printable
from moecl_jax.models.model import Model
from moecl_jax.runs.settings import Settings
from moecl_jax.serving.session import model_of
from moecl_jax.writing import whole_file

TEST_FRACTION = 0.2
"""Part of a file that becomes test where a task has one file alone."""

_LENGTHS = (64, 512)  # least and most of data.max_length
_MEASURED = 1000  # examples of a split that are tokenised to choose it
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Task) if f.name not in ("name", "_")}


@dataclasses.dataclass(frozen=True)
class NewConfig:
    """A config that was written.

    Attributes:
      path: the file.
      notes: what was guessed, a line each.
    """

    path: Path
    notes: tuple[str, ...]


def write_config(
    path: Path,
    data: Sequence[str],
    *,
    columns: Columns,
    names: Sequence[str] = (),
    base: str = "smollm2-135m",
) -> NewConfig:
    """Guesses tasks from files, and writes a config that trains on them.

    Args:
      path: the config's file, which must not exist.
      data: files, and folders of files, of examples.
      columns: the columns that are known.
      names: names of the tasks in the order of the files; empty to take them from the files.
      base: the frozen LLM, as `load_model` takes it.

    Raises:
      UserError: the file exists, the data cannot be read, or what they are cannot be told.
    """
    if path.suffix != ".py":
        raise UserError(f"--config={path} must end in .py: a config is a Python file")
    if path.exists():
        raise UserError(f"{path} exists already; name another --config, or delete it")
    guesses = _guesses(data, columns, names)
    with reporting.use(reporting.SilentReporter()):
        values, remarks = _settings(guesses, base)
    notes = tuple(line for guess in guesses for line in _notes(guess)) + tuple(remarks)
    text = _text(path, guesses, values, notes, base)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as stream:
        stream.write(text.encode())
    return NewConfig(path, notes)


def _guesses(data: Sequence[str], columns: Columns, names: Sequence[str]) -> list[Guess]:
    files = find_files(data)
    if names and len(names) != len(files):
        raise UserError(
            f"--task names {len(names)} tasks, and the files are {len(files)}: "
            f"{listed(each.name for each in files)}. Name as many, in this order"
        )
    chosen = list(names) or [each.name for each in files]
    twice = next((name for name in chosen if chosen.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"two tasks would be called {twice!r}; name them with --task=NAME,NAME in the order "
            f"{listed(str(Path(f.folder) / f.splits['train']) for f in files)}"
        )
    return [guess_task(each, name, columns) for each, name in zip(files, chosen, strict=True)]


def _settings(guesses: Sequence[Guess], base: str) -> tuple[dict[str, Any], list[str]]:
    """The values of the section "data", and what is to be said of them.

    Raises:
      UserError: the base model cannot be read, or no examples can be used.
    """
    settings = Settings.from_mapping({"model": {"path": base}})
    model = model_of(settings, shapes_only=True)
    data = dataclasses.replace(settings.data, on_bad_example="error")
    if any(not guess.task.test for guess in guesses):
        data = dataclasses.replace(data, test_fraction=TEST_FRACTION)
    size = model.sizes.vocabulary_size
    strict = [survey(g.task, data, seed=settings.seed, vocabulary_size=size) for g in guesses]
    remarks = [f"left out: {line}" for found in strict for line in found.problems]
    if remarks:
        data = dataclasses.replace(data, on_bad_example="skip")
        for guess in guesses:
            found = survey(guess.task, data, seed=settings.seed, vocabulary_size=size)
            if found.problems:
                raise UserError(found.problems[0])
    longest = max(_suggested(found, model, data) for found in strict)
    least, most = _LENGTHS
    length = min(max(least, 16 * math.ceil(longest / 16)), most, model.sizes.context_length)
    values = {"max_length": length, "on_bad_example": data.on_bad_example}
    if data.test_fraction:
        values["test_fraction"] = data.test_fraction
    return values, remarks


def _suggested(found: Survey, model: Model, data: Any) -> int:
    """The length that cuts few of a task's examples, by the first of each split."""
    examples, task = found.examples, found.definition
    if examples is None or model.tokenizer is None:
        return _LENGTHS[1]
    some = dataclasses.replace(
        examples,
        train=examples.train[:_MEASURED],
        validation=examples.validation[:_MEASURED],
        test=examples.test[:_MEASURED],
    )
    answers = () if task.free_form else tokenize_answers(task, model.tokenizer)
    return lengths(some, answers, model.tokenizer, data).suggested


def _notes(guess: Guess) -> list[str]:
    """What was guessed of a task, a line each."""
    task = guess.task
    rows = ", ".join(
        f"{split} {count} rows of {getattr(task, split)}" for split, count in guess.rows.items()
    )
    text = " and ".join(task.text_fields)
    lines = [f"task {task.name}: {rows}", f"  text: {text} ({guess.language} template)"]
    kind = "free text to write" if task.free_form else "label"
    lines.append(f"  {kind}: {task.answer_field}")
    lines += [f"  {note}" for note in guess.notes]
    if not task.test:
        lines.append(
            f"  {TEST_FRACTION:.0%} of the texts become test; equal texts stay together, and the "
            "classes keep their shares"
        )
    return lines


_BODY = '''
from ml_collections import ConfigDict

from moecl_jax.config.default import get_config as default_config

TASKS = {tasks}


def get_config() -> ConfigDict:
    """The default config with these tasks; each value can be overridden by --config.KEY=VALUE."""
    config = default_config()
    # The frozen LLM: a name, a Hugging Face folder, or a .gguf file.
    config.model.path = {base}
    # The tasks in the order of training; new ones are added at the end.
    for name, fields in TASKS.items():
        config.definitions[name] = ConfigDict(fields)
    config.tasks = tuple(TASKS)
{data}
    # At most so many examples of each task; 0 means all.
    config.data.train_examples = 4000
    config.data.validation_examples = 500
    config.data.test_examples = 2000
    config.batch.row_length = {row_length}
    config.optimizer.learning_rate = 1e-3
    config.optimizer.clip_norm = 1.0
    # Passes over the training examples; the one that validates best is kept.
    config.epochs = 2
    return config
'''

_COMMENTS = {
    "max_length": "Tokens of a prompt with its answer; longer texts are cut.",
    "on_bad_example": "What happens to rows that cannot be used: error stops, skip goes on.",
    "test_fraction": "The part of the texts that becomes test, of a task without a test file.",
}


def _text(
    path: Path, guesses: Sequence[Guess], values: dict[str, Any], notes: Sequence[str], base: str
) -> str:
    """The config's text."""
    name = path.stem
    first = guesses[0].task
    command, lines = ("generate", "prompts") if first.free_form else ("predict", "texts")
    ending = first.source if first.source in ("csv", "tsv") else "jsonl"
    config, workdir = shlex.quote(f"--config={path}"), shlex.quote(f"--workdir=runs/{name}")
    commands = [
        f"moecl check   {config}",
        f"moecl train   {config} {workdir}",
        f"moecl {command} {workdir} --task={first.name} --input={lines}.{ending} "
        f"--output=answers.{ending}",
    ]
    title = f"{', '.join(guess.task.name for guess in guesses)}: written by 'moecl new'."
    chinese = any(guess.language == "Chinese" for guess in guesses)
    if chinese and base == "smollm2-135m":
        notes = [*notes, "smollm2-135m has seen little Chinese; --base=gemma3-270m has seen more"]
    listing = "\n".join(f"    {_in_docstring(line)}" for line in [*commands, "", *notes])
    listing = "\n".join(line.rstrip() for line in listing.split("\n"))
    data = "\n".join(
        f"    # {_COMMENTS[key]}\n    config.data.{key} = {_literal(value)}"
        for key, value in values.items()
    )
    tasks = "\n".join(
        [
            "{",
            *(line for guess in guesses for line in _definition(guess.task)),
            "}",
        ]
    )
    body = _BODY.format(
        tasks=tasks, base=_literal(base), data=data, row_length=min(values["max_length"], 128)
    )
    return f'"""{_in_docstring(title)}\n\n{listing}\n"""\n{body}'


def _definition(task: Task) -> list[str]:
    """The lines of a task's entry; fields that have their defaults are left out."""
    fields = {
        key: value
        for key, value in task.to_fields().items()
        if key != "name" and value != _DEFAULTS.get(key)
    }
    lines = [f"        {_literal(key)}: {_literal(value)}," for key, value in fields.items()]
    return [f"    {_literal(task.name)}: {{", *lines, "    },"]


def _in_docstring(text: str) -> str:
    """A text as it can stand in a docstring, on one line."""
    return printable(text).replace("\\", "\\\\").replace('"', "'")


def _literal(value: Any) -> str:
    """A value as Python writes it, with the quotes of this house."""
    if isinstance(value, str):
        quoted = repr(value)
        plain = quoted.startswith("'") and '"' not in quoted
        return f'"{quoted[1:-1]}"' if plain else quoted
    if isinstance(value, tuple):
        inner = ", ".join(map(_literal, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)
