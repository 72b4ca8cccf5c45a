"""Use of a trained workdir: score its tasks again, label new texts, or write answers to them."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moecl_jax.checkpoint import TaskCheckpoints
from moecl_jax.data.tasks import SPLITS
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.errors import UserError
from moecl_jax.evaluate import score
from moecl_jax.experiment import Experiment, build, load_tasks
from moecl_jax.generation import GREEDY, Sampling, Writer
from moecl_jax.progress import plain
from moecl_jax.prompts import PromptReader, answer_lines
from moecl_jax.resume import restore_stream, task_trees
from moecl_jax.state import Stream
from moecl_jax.train import Run
from moecl_jax.workdir import load_config


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

    A line is `{"text": ...}`, which is cut to fit (its output then says `"truncated": true`), or
    `{"input_ids": [...]}`, the whole prompt in token ids; and anything else, which is copied. Its
    output line adds `label`, the best of `probabilities` (by label), and `logits` (in label order;
    with the LM head the log-probability of each label's text). A bad line stops nothing: its
    output line carries `error` instead.

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
    _check_files(source, target)
    trained = _Trained(workdir, task)
    experiment, definition = trained.experiment, trained.definition
    if definition.free_form:
        raise UserError(
            f"task '{task}' answers in free text and has no labels to predict; use 'moecl generate'"
        )

    def label(prompts: list[np.ndarray]) -> list[dict[str, Any]]:
        scores = score(
            experiment.evaluation_step,
            trained.active,
            experiment.frozen,
            [TokenizedExample(prompt, 0) for prompt in prompts],
            experiment.answers[trained.index],
            experiment.evaluation_layout,
            class_count=len(definition.labels),
        )
        return [_labelled(definition.labels, row) for row in scores.scores.astype(np.float64)]

    return answer_lines(trained.reader, label, source, target)


def generate(
    workdir: Path,
    task: str,
    source: Path,
    target: Path,
    *,
    max_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    base: bool = False,
) -> int:
    """Writes an answer to each line of a JSON-lines file.

    Lines are as for `predict`; an output line adds `response`.

    Args:
      workdir: of a training.
      task: a finished task of it.
      source: input file.
      target: output file.
      max_tokens: of an answer; by default the workdir's data.max_response.
      sampling: how tokens are chosen.
      seed: of sampling.
      base: whether the frozen model answers alone, as before any training.

    Returns:
      The number of bad lines.

    Raises:
      UserError: the workdir or the files do not fit, or the workdir has classification heads.
    """
    _check_files(source, target)
    trained = _Trained(workdir, task, base=base)
    writer = trained.writer

    def write(prompts: list[np.ndarray]) -> list[dict[str, Any]]:
        written = writer.write(
            trained.active,
            prompts,
            max_tokens=trained.max_response if max_tokens is None else max_tokens,
            sampling=sampling,
            seed=seed,
            batch_size=trained.experiment.evaluation_layout.batch_size,
        )
        return [{"response": trained.text(ids)} for ids in written]

    return answer_lines(trained.reader, write, source, target)


def stream(
    workdir: Path,
    task: str,
    text: str,
    *,
    max_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    base: bool = False,
) -> Iterator[str]:
    """The answer to one text, piece by piece as it is written; arguments as `generate`."""
    trained = _Trained(workdir, task, base=base)
    writer = trained.writer
    record, prompt = trained.reader.read(json.dumps({"text": text}).encode())
    if prompt is None:
        raise UserError(f"the prompt {text!r}: {record['error']}")
    if "truncated" in record:
        print(f"note: the prompt was cut to its first {len(prompt)} tokens", file=sys.stderr)
    tokens = writer.stream(
        trained.active,
        prompt,
        max_tokens=trained.max_response if max_tokens is None else max_tokens,
        sampling=sampling,
        seed=seed,
    )
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        written = trained.text(np.array(ids))
        # A character of several tokens is not shown before its last one.
        if not written.endswith("\N{REPLACEMENT CHARACTER}"):
            yield written[len(shown) :]
            shown = written
    yield trained.text(np.array(ids))[len(shown) :]


class _Trained:
    """A finished task of a workdir, ready to answer."""

    def __init__(self, workdir: Path, task: str, *, base: bool = False):
        config = load_config(workdir)
        self.experiment = build(config)
        self.index = self.experiment.index(task)
        self.definition = self.experiment.definitions[self.index]
        stream = _restore(self.experiment, workdir)
        if task not in stream.finished:
            raise UserError(
                f"task '{task}' has not been trained to its end in {workdir}; finished are "
                f"{', '.join(stream.finished)}"
            )
        if base:
            stream = self.experiment.initializer.stream(len(self.experiment.names))
        self.active = task_trees(self.experiment, stream, self.index)
        self.max_response: int = config.data.max_response
        self.reader = PromptReader(self.experiment, self.index, config)

    @property
    def writer(self) -> Writer:
        """What writes text, where the head is the LLM's own."""
        if self.experiment.writer is None:
            raise UserError(
                f"task '{self.definition.name}' was trained with head = 'classification': it has "
                "labels and writes no text; use 'moecl predict'"
            )
        return self.experiment.writer

    def text(self, ids: np.ndarray) -> str:
        """The text of an answer's ids, without the space that parts it from its prompt."""
        tokenizer: Any = self.experiment.tokenizer
        return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _labelled(labels: Sequence[str], row: np.ndarray) -> dict[str, Any]:
    """What `predict` adds to a line whose labels have these scores."""
    shares = np.exp(row - row.max())
    shares /= shares.sum()
    return {
        "label": labels[int(row.argmax())],
        "probabilities": dict(zip(labels, shares.tolist(), strict=True)),
        "logits": row.tolist(),
    }


def _check_files(source: Path, target: Path) -> None:
    if not source.is_file():
        raise UserError(f"--input={source} does not exist")
    if target.exists() and source.samefile(target):
        raise UserError("--input and --output are the same file; name another --output")


def _restore(experiment: Experiment, workdir: Path) -> Stream:
    stream, history = restore_stream(experiment, TaskCheckpoints(workdir))
    if history is None:
        raise UserError(f"{workdir} holds no finished task yet; train it with 'moecl train'")
    return stream
