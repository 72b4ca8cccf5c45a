"""Reads the lines of a JSON-lines file as prompts, and writes each back with its answer."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moecl_jax.data.tasks import LONE_SURROGATE, problem_with_ids
from moecl_jax.data.tokenize import prompt_format, prompt_limit, tokenize_prompt
from moecl_jax.experiment import Experiment

_LINES_A_CALL = 256  # enough to fill batches, few enough that output keeps coming


class PromptReader:
    """Reads lines as prompts of one task, cut as its training texts are."""

    def __init__(self, experiment: Experiment, index: int, config: ConfigDict):
        """Reads for the task of this index; `config` has the lengths."""
        definition = experiment.definitions[index]
        self.tokenizer = experiment.tokenizer
        self.vocabulary_size = experiment.learner.method.config.vocabulary_size
        self.prompt_format = prompt_format(definition, experiment.tokenizer)
        self.max_prompt = prompt_limit(
            definition, experiment.answers[index], config.data.max_length, config.data.max_response
        )

    def read(self, line: bytes) -> tuple[dict[str, Any], np.ndarray | None]:
        """A line's record and prompt, int32 `[P]`; or its record with `error`, and None.

        The record of a text that was cut to fit says so by `truncated`.
        """
        try:
            record = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
        except ValueError as error:
            return {"error": f"not a line of UTF-8 JSON: {error}"}, None
        if not isinstance(record, dict):
            return {"error": "not a JSON object"}, None
        if LONE_SURROGATE.search(json.dumps(record, ensure_ascii=False)):
            return {"error": "holds half of a surrogate pair (\\ud800...)"}, None
        text, ids = record.get("text"), record.get("input_ids")
        tokenizer, problem = self.tokenizer, None
        if isinstance(text, str) and text.strip() and ids is None:
            if tokenizer is not None:
                text = text.strip()
                prompt, cut = tokenize_prompt(text, self.prompt_format, tokenizer, self.max_prompt)
                return record | ({"truncated": True} if cut else {}), prompt
            problem = 'the model has no tokenizer for a text; give "input_ids"'
        elif text is None and ids is not None:
            problem = self._problem_with_ids(ids)
            if problem is None:
                return record, np.array(ids, np.int32)
        else:
            problem = 'expected either "text", a text that is not empty, or "input_ids"'
        return {**record, "error": problem}, None

    def _problem_with_ids(self, ids: Any) -> str | None:
        problem = problem_with_ids(ids, self.vocabulary_size)
        if problem is None and len(ids) > self.max_prompt:
            return f"input_ids has {len(ids)} tokens; at most {self.max_prompt} fit"
        return problem


def answer_lines(
    reader: PromptReader,
    answer: Callable[[list[np.ndarray]], list[dict[str, Any]]],
    source: Path,
    target: Path,
) -> int:
    """Copies a JSON-lines file, adding to each line what `answer` says of its prompt.

    A bad line stops nothing: its output line carries `error` instead.

    Args:
      reader: of the task.
      answer: what to add for each of some prompts.
      source: input file.
      target: output file.

    Returns:
      The number of bad lines.
    """
    bad = 0
    with source.open("rb") as lines, target.open("w", encoding="utf-8") as out:
        for group in _groups(lines, _LINES_A_CALL):
            records, prompts = zip(*map(reader.read, group), strict=True)
            answers = iter(answer([p for p in prompts if p is not None]))
            for record, prompt in zip(records, prompts, strict=True):
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
