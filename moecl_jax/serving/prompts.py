"""Reads the lines of a JSON-lines file as prompts, and writes each back with its answer."""

import abc
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moecl_jax.config.experiment import Experiment
from moecl_jax.data.examples import LONE_SURROGATE, problem_with_ids
from moecl_jax.data.tokenize import TokenizedExample, prompt_format, prompt_limit, tokenize_prompt
from moecl_jax.serving.task_choice import TaskFeatures

_LINES_A_CALL = 256  # enough to fill batches, few enough that output keeps coming
Added = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """What a task is asked.

    Attributes:
      ids: int32 `[P]`.
      task: place of the task in the stream.
    """

    ids: np.ndarray
    task: int


class Reader(abc.ABC):
    """Reads lines as prompts."""

    def __init__(self, experiment: Experiment):
        """Reads what this experiment's model can."""
        self.experiment = experiment
        self.vocabulary_size = experiment.learner.method.config.vocabulary_size

    @abc.abstractmethod
    def prompts(self, examples: Sequence[TokenizedExample]) -> list[tuple[Added, Prompt | None]]:
        """Each example's prompt and what its record gains; an `error` and None if it has none."""

    def read(self, lines: Sequence[bytes]) -> list[tuple[dict[str, Any], Prompt | None]]:
        """Each line's record and prompt; or its record with `error`, and None.

        The record of a text that was cut to fit says so by `truncated`.
        """
        parsed = [self._parse(line) for line in lines]
        prompts = iter(self.prompts([example for _, example in parsed if example is not None]))
        read = []
        for record, example in parsed:
            added, prompt = ({}, None) if example is None else next(prompts)
            read.append((record | added, prompt))
        return read

    def _parse(self, line: bytes) -> tuple[dict[str, Any], TokenizedExample | None]:
        """A line's record and its text or ids; or its record with `error`, and None."""
        try:
            record = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
        except ValueError as error:
            return {"error": f"not a line of UTF-8 JSON: {error}"}, None
        if not isinstance(record, dict):
            return {"error": "not a JSON object"}, None
        if LONE_SURROGATE.search(json.dumps(record, ensure_ascii=False)):
            return {"error": "holds half of a surrogate pair (\\ud800...)"}, None
        text, ids = record.get("text"), record.get("input_ids")
        if isinstance(text, str) and text.strip() and ids is None:
            if self.experiment.tokenizer is not None:
                return record, TokenizedExample(np.zeros(0, np.int32), 0, text=text.strip())
            problem: str | None = 'the model has no tokenizer for a text; give "input_ids"'
        elif text is None and ids is not None:
            problem = problem_with_ids(ids, self.vocabulary_size)
            if problem is None:
                return record, TokenizedExample(np.array(ids, np.int32), 0)
        else:
            problem = 'expected either "text", a text that is not empty, or "input_ids"'
        return {**record, "error": problem}, None


class PromptReader(Reader):
    """Reads lines as prompts of one task, cut as its training texts are."""

    def __init__(self, experiment: Experiment, index: int):
        """Reads for the task of this index."""
        super().__init__(experiment)
        definition = experiment.definitions[index]
        self.index = index
        self.prompt_format = prompt_format(definition, experiment.tokenizer)
        self.max_prompt = prompt_limit(
            definition,
            experiment.answers[index],
            experiment.max_length,
            experiment.answering.max_response,
        )

    def prompts(self, examples: Sequence[TokenizedExample]) -> list[tuple[Added, Prompt | None]]:
        """As the task's; ids that do not fit are an error."""
        return [self._prompt(example) for example in examples]

    def fit(self, example: TokenizedExample) -> tuple[np.ndarray, bool]:
        """The task's prompt of an example's text, or its ids, and whether it was cut."""
        tokenizer = self.experiment.tokenizer
        if example.text and tokenizer is not None:
            return tokenize_prompt(example.text, self.prompt_format, tokenizer, self.max_prompt)
        return example.prompt[: self.max_prompt], len(example.prompt) > self.max_prompt

    def _prompt(self, example: TokenizedExample) -> tuple[Added, Prompt | None]:
        ids, cut = self.fit(example)
        if cut and not example.text:
            problem = f"input_ids has {len(example.prompt)} tokens; at most {len(ids)} fit"
            return {"error": problem}, None
        return {"truncated": True} if cut else {}, Prompt(ids, self.index)


class ChoosingReader(Reader):
    """Reads lines as prompts of the task that each text belongs to, which is added as `task`."""

    def __init__(self, experiment: Experiment, features: TaskFeatures):
        """Chooses among the tasks that have features."""
        super().__init__(experiment)
        self.features = features
        self.reader = functools.cache(functools.partial(PromptReader, experiment))

    def prompts(self, examples: Sequence[TokenizedExample]) -> list[tuple[Added, Prompt | None]]:
        """As the chosen tasks'."""
        if not examples:
            return []
        chosen = self.features.choose(self.experiment.features(examples))
        prompts = []
        for example, choice in zip(examples, chosen, strict=True):
            name = self.features.names[choice]
            [(added, prompt)] = self.reader(self.experiment.index(name)).prompts([example])
            prompts.append(({"task": name} | added, prompt))
        return prompts


def answer_lines(
    reader: Reader,
    answer: Callable[[list[Prompt]], list[dict[str, Any]]],
    source: Path,
    target: Path,
) -> int:
    """Copies a JSON-lines file, adding to each line what `answer` says of its prompt.

    A bad line stops nothing: its output line carries `error` instead.

    Args:
      reader: of one task, or of several.
      answer: what to add for each of some prompts.
      source: input file.
      target: output file.

    Returns:
      The number of bad lines.
    """
    bad = 0
    with source.open("rb") as lines, target.open("w", encoding="utf-8") as out:
        for group in _groups(lines, _LINES_A_CALL):
            read = reader.read(group)
            answers = iter(answer([prompt for _, prompt in read if prompt is not None]))
            for record, prompt in read:
                bad += prompt is None
                added = next(answers) if prompt is not None else {}
                out.write(json.dumps(record | added, ensure_ascii=False) + "\n")
    return bad


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _groups(lines: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Lines that are not blank, `size` at a time."""
    group: list[bytes] = []
    for line in lines:
        if line.strip():
            group.append(line)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
