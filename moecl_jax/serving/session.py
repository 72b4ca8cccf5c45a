"""Use of a trained workdir: score its tasks again, label new texts, or write answers to them."""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moecl_jax.config.experiment import Experiment, build, load_tasks
from moecl_jax.data.batching import chunks
from moecl_jax.data.tasks import SPLITS
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.errors import UserError
from moecl_jax.methods.mixed import MIXED_TASKS, can_mix
from moecl_jax.methods.state import Stream
from moecl_jax.runs import reporting
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.runs.log import plain
from moecl_jax.runs.resume import restore_features, restore_stream, task_trees
from moecl_jax.runs.workdir import load_config
from moecl_jax.serving.evaluate import score_mixed
from moecl_jax.serving.generation import GREEDY, Sampling, Writer
from moecl_jax.serving.prompts import ChoosingReader, Prompt, PromptReader, answer_lines
from moecl_jax.training.steps import Active, together
from moecl_jax.training.trainer import Run


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


def predict(workdir: Path, task: str | None, source: Path, target: Path) -> int:
    """Labels the lines of a JSON-lines file.

    A line is `{"text": ...}`, which is cut to fit (its output then says `"truncated": true`), or
    `{"input_ids": [...]}`, the whole prompt in token ids; and anything else, which is copied. Its
    output line adds `label`, the best of `probabilities` (by label), and `logits` (in label order;
    with the LM head the log-probability of each label's text). A bad line stops nothing: its
    output line carries `error` instead. Where no task is named, each line's is chosen by its text,
    and added as `task`.

    Args:
      workdir: of a training.
      task: a finished task of it; None to choose.
      source: input file.
      target: output file.

    Returns:
      The number of bad lines.

    Raises:
      UserError: the workdir or the files do not fit.
    """
    _check_files(source, target)
    trained = _Trained(workdir)
    if task is None:
        return answer_lines(trained.choosing_reader(), trained.label, source, target)
    index = trained.index(task)
    if trained.experiment.definitions[index].free_form:
        raise UserError(
            f"task '{task}' answers in free text and has no labels to predict; use 'moecl generate'"
        )
    return answer_lines(trained.reader(index), trained.label, source, target)


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
    trained = _Trained(workdir, base=base)
    index = trained.index(task)
    writer = trained.writer(index)

    def write(prompts: list[Prompt]) -> list[dict[str, Any]]:
        written = writer.write(
            trained.active((index,)),
            [prompt.ids for prompt in prompts],
            max_tokens=trained.max_response if max_tokens is None else max_tokens,
            sampling=sampling,
            seed=seed,
            batch_size=trained.experiment.evaluation_layout.batch_size,
        )
        return [{"response": trained.text(ids)} for ids in written]

    return answer_lines(trained.reader(index), write, source, target)


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
    trained = _Trained(workdir, base=base)
    index = trained.index(task)
    writer = trained.writer(index)
    [(record, prompt)] = trained.reader(index).read([json.dumps({"text": text}).encode()])
    if prompt is None:
        raise UserError(f"the prompt {text!r}: {record['error']}")
    if "truncated" in record:
        reporting.current().message(
            f"note: the prompt was cut to its first {len(prompt.ids)} tokens"
        )
    tokens = writer.stream(
        trained.active((index,)),
        prompt.ids,
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
    """The finished tasks of a workdir, ready to answer."""

    def __init__(self, workdir: Path, *, base: bool = False):
        config = load_config(workdir)
        self.workdir = workdir
        self.experiment = build(config)
        self.checkpoints = TaskCheckpoints(workdir)
        self.stream = _restore(self.experiment, workdir)
        answering = self.stream
        if base:
            answering = self.experiment.initializer.stream(len(self.experiment.names))
        trees = functools.partial(_trees, self.experiment, answering)
        self.active = functools.lru_cache(maxsize=1)(trees)  # few tasks' are on the device
        self.max_response: int = config.data.max_response

    def index(self, task: str) -> int:
        """Place of a finished task in the stream."""
        index = self.experiment.index(task)
        if task not in self.stream.finished:
            raise UserError(
                f"task '{task}' has not been trained to its end in {self.workdir}; finished are "
                f"{', '.join(self.stream.finished)}"
            )
        return index

    def reader(self, index: int) -> PromptReader:
        """Reads prompts of one task."""
        return PromptReader(self.experiment, index)

    def choosing_reader(self) -> ChoosingReader:
        """Reads prompts of the task that each text belongs to."""
        method = self.experiment.learner.method
        problem = f"it was trained with method = '{method.name}', which keeps no expert a task"
        if method.separate:
            features = restore_features(self.experiment, self.checkpoints, self.stream)
            if features is not None and features.names:
                return ChoosingReader(self.experiment, features)
            problem = "none of its tasks has labels"
            if features is None:
                problem = (
                    "its checkpoints hold no features of the tasks' texts (they were converted, or "
                    "written by an older version)"
                )
        raise UserError(
            f"{self.workdir} cannot tell a text's task: {problem}. Name one by --task: "
            f"{', '.join(self.stream.finished)}"
        )

    def label(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """What `predict` adds to the lines of these prompts."""
        experiment, added = self.experiment, [dict[str, Any]()] * len(prompts)
        tasks = sorted({prompt.task for prompt in prompts})
        together = MIXED_TASKS if can_mix(experiment.learner.method) else 1
        for group in chunks(tasks, together):
            places = [place for place, prompt in enumerate(prompts) if prompt.task in group]
            labels = [experiment.definitions[task].labels for task in group]
            own = [group.index(prompts[place].task) for place in places]
            scores = score_mixed(
                experiment.evaluation_step,
                self.active(tuple(group)),
                experiment.frozen,
                [TokenizedExample(prompts[place].ids, 0) for place in places],
                own,
                [experiment.answers[task] for task in group],
                experiment.evaluation_layout,
                class_counts=[len(names) for names in labels],
            )
            for place, task, row in zip(places, own, scores.scores.astype(np.float64), strict=True):
                added[place] = _labelled(labels[task], row[: len(labels[task])])
        return added

    def writer(self, index: int) -> Writer:
        """What writes text, where the head is the LLM's own."""
        if self.experiment.writer is None:
            raise UserError(
                f"task '{self.experiment.names[index]}' was trained with head = 'classification': "
                "it has labels and writes no text; use 'moecl predict'"
            )
        return self.experiment.writer

    def text(self, ids: np.ndarray) -> str:
        """The text of an answer's ids, without the space that parts it from its prompt."""
        tokenizer: Any = self.experiment.tokenizer
        return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _trees(experiment: Experiment, stream: Stream, tasks: tuple[int, ...]) -> Active:
    """What answers for one task, or for several in the same batch."""
    actives = [task_trees(experiment, stream, task) for task in tasks]
    return actives[0] if len(actives) == 1 else together(actives)


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
