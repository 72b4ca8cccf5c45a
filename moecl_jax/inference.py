"""Use of a trained workdir: score its tasks again, or label new texts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moecl_jax.checkpoint import TaskCheckpoints
from moecl_jax.data.tasks import LONE_SURROGATE, SPLITS, problem_with_ids
from moecl_jax.data.tokenize import TokenizedExample, prompt_format, prompt_limit, tokenize_prompt
from moecl_jax.errors import UserError
from moecl_jax.evaluate import Scores, score
from moecl_jax.experiment import Experiment, build, load_config, load_tasks
from moecl_jax.progress import plain
from moecl_jax.state import Stream
from moecl_jax.train import Run, restore_stream, task_trees

_LINES_A_CALL = 256  # enough to fill batches, few enough that output keeps coming


def evaluate(workdir: Path, split: str) -> dict[str, Any]:
    """Scores a trained stream on one split of each finished task.

    Args:
      workdir: of a training.
      split: "train", "validation" or "test".

    Returns:
      `split`, `tasks` (finished ones), and by task `examples`, `accuracy`, `scored_accuracy` and
      `log_likelihood`, null where they are not defined.
    """
    if split not in SPLITS:
        raise UserError(f"--split={split} is not one of {', '.join(SPLITS)}")
    config = load_config(workdir)
    experiment = build(config)
    stream = _restore(experiment, workdir)
    run = Run(experiment, load_tasks(config, experiment), workdir)
    by_task = {}
    for index, name in enumerate(stream.finished):
        result = run.evaluate_task(stream, index, split)
        by_task[name] = {
            "examples": len(run.tasks[index].splits[split]),
            "accuracy": result.accuracy,
            "scored_accuracy": result.scored_accuracy,
            "log_likelihood": result.log_likelihood,
        }
    return {"split": split, "tasks": plain(by_task)}


def predict(workdir: Path, task: str, source: Path, target: Path) -> int:
    """Labels the lines of a JSON-lines file.

    A line is `{"text": ...}` or `{"input_ids": [...]}`, the whole prompt in token ids, plus
    anything else, which is copied. Its output line adds `label`, the best of `probabilities` (by
    label), and `logits` (in label order; with the LM head the log-probability of each label's
    text). A bad line stops nothing: its output line carries `error` instead.

    Args:
      workdir: of a training.
      task: a finished task of it.
      source: input file.
      target: output file.

    Returns:
      The number of bad lines.

    Raises:
      UserError: the workdir or the files do not fit.
    """
    if not source.is_file():
        raise UserError(f"--input={source} does not exist")
    if target.exists() and source.samefile(target):
        raise UserError("--input and --output are the same file; name another --output")
    config = load_config(workdir)
    experiment = build(config)
    index = experiment.index(task)
    stream = _restore(experiment, workdir)
    if task not in stream.finished:
        raise UserError(
            f"task '{task}' has not been trained to its end in {workdir}; finished are "
            f"{', '.join(stream.finished)}"
        )
    labeler = _Labeler(experiment, stream, index, config)
    bad = 0
    with source.open("rb") as lines, target.open("w", encoding="utf-8") as out:
        for chunk in _groups(lines, _LINES_A_CALL):
            for record in labeler.label(chunk):
                bad += "error" in record
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
    return bad


class _Labeler:
    """Labels lines with one task."""

    def __init__(self, experiment: Experiment, stream: Stream, index: int, config: ConfigDict):
        self.experiment, self.index = experiment, index
        self.definition = experiment.definitions[index]
        if self.definition.free_form:
            raise UserError(
                f"task '{self.definition.name}' answers in free text and has no labels to predict; "
                "use 'moecl generate'"
            )
        self.active = task_trees(experiment, stream, index)
        self.prompt_format = prompt_format(self.definition, experiment.tokenizer)
        # As in training, so that texts are cut alike.
        self.max_prompt = prompt_limit(
            self.definition,
            experiment.answers[index],
            config.data.max_length,
            config.data.max_response,
        )

    def label(self, lines: list[bytes]) -> list[dict[str, Any]]:
        """The output records of some input lines."""
        records: list[dict[str, Any]] = []
        examples: list[TokenizedExample] = []
        places: list[int] = []
        for line in lines:
            record, prompt = self._read(line)
            if prompt is not None:
                places.append(len(records))
                examples.append(TokenizedExample(prompt, 0))
            records.append(record)
        if examples:
            scores = self._score(examples)
            for place, row in zip(places, scores.scores.astype(np.float64), strict=True):
                records[place] |= self._answer(row)
        return records

    def _read(self, line: bytes) -> tuple[dict[str, Any], np.ndarray | None]:
        """A line's record and prompt, or its record with `error`."""
        try:
            record = json.loads(line.decode("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            return {"error": f"not a line of UTF-8 JSON: {error}"}, None
        if not isinstance(record, dict):
            return {"error": "not a JSON object"}, None
        if LONE_SURROGATE.search(json.dumps(record, ensure_ascii=False)):
            return {"error": "holds half of a surrogate pair (\\ud800...)"}, None
        text, ids = record.get("text"), record.get("input_ids")
        tokenizer, problem = self.experiment.tokenizer, None
        if isinstance(text, str) and text.strip() and ids is None:
            if tokenizer is not None:
                text = text.strip()
                prompt, _ = tokenize_prompt(text, self.prompt_format, tokenizer, self.max_prompt)
                return record, prompt
            problem = 'the model has no tokenizer for a text; give "input_ids"'
        elif text is None and ids is not None:
            problem = self._problem_with_ids(ids)
            if problem is None:
                return record, np.array(ids, np.int32)
        else:
            problem = 'expected either "text", a text that is not empty, or "input_ids"'
        return {**record, "error": problem}, None

    def _problem_with_ids(self, ids: Any) -> str | None:
        size = self.experiment.learner.method.config.vocabulary_size
        problem = problem_with_ids(ids, size)
        if problem is None and len(ids) > self.max_prompt:
            return f"input_ids has {len(ids)} tokens; at most {self.max_prompt} fit"
        return problem

    def _score(self, examples: list[TokenizedExample]) -> Scores:
        return score(
            self.experiment.evaluation_step,
            self.active,
            self.experiment.frozen,
            examples,
            self.experiment.answers[self.index],
            self.experiment.evaluation_layout,
            class_count=len(self.definition.labels),
        )

    def _answer(self, row: np.ndarray) -> dict[str, Any]:
        shares = np.exp(row - row.max())
        shares /= shares.sum()
        labels = self.definition.labels
        return {
            "label": labels[int(row.argmax())],
            "probabilities": dict(zip(labels, shares.tolist(), strict=True)),
            "logits": row.tolist(),
        }


def _restore(experiment: Experiment, workdir: Path) -> Stream:
    stream, history = restore_stream(experiment, TaskCheckpoints(workdir))
    if history is None:
        raise UserError(f"{workdir} holds no finished task yet; train it with 'moecl train'")
    return stream


def _groups(lines: Any, size: int) -> Iterator[list[bytes]]:
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
