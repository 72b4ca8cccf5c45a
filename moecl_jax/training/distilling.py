"""Distils all finished experts of a run into one plain LoRA, which is a run of its own.

    L = - sum over texts and labels k of  p_k log q(label k | text)

p are the teacher's probabilities of a task's labels, q those of the student, which is one LoRA for
all tasks, maybe in another LLM. L is their divergence KL(p || q) up to a constant (Hinton et al.
2015, arXiv 1503.02531). Only texts of the tasks are read, not their labels: the student is trained
as `joint` on what the teacher answers. Each text stands there with `answers` answers, allotted to
the labels in proportion to p. So one answer is the teacher's label, and more of them say how sure
it is. A free-form task's text has the answer that the teacher writes (Kim and Rush 2016, arXiv
1606.07947).
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moecl_jax import reporting, stopping
from moecl_jax.data.task import SPLITS, Task
from moecl_jax.data.tokenize import TokenizedExample, TokenizedTask
from moecl_jax.errors import UserError
from moecl_jax.runs.lock import claimed
from moecl_jax.runs.settings import Settings
from moecl_jax.runs.tables import align_columns
from moecl_jax.runs.workdir import check_workdir
from moecl_jax.serving.prompts import Prompt
from moecl_jax.serving.session import Session, open_run
from moecl_jax.training.trainer import train
from moecl_jax.writing import whole_file

TEACHER_FOLDER = "teacher"
"""The folder in the student's workdir with the texts and what the teacher answers."""


@dataclasses.dataclass(frozen=True)
class Distilled:
    """How good a student is beside its teacher.

    Attributes:
      tasks: names of the tasks.
      teacher: accuracy of the teacher's experts on each task's test texts, fractions; NaN where
        there are none.
      student: the same of the student.
    """

    tasks: Sequence[str]
    teacher: Sequence[float]
    student: Sequence[float]

    def __str__(self) -> str:
        rows = [["accuracy in %", "teacher", "student"]]
        for task, *values in zip(self.tasks, self.teacher, self.student, strict=True):
            rows.append([task, *("-" if np.isnan(v) else f"{100 * v:.1f}" for v in values)])
        return "\n".join(align_columns(rows))


def distil(
    teacher: Session | str | Path,
    into: str | Path,
    *,
    answers: int = 1,
    adjust: Callable[[Settings], Settings] = lambda settings: settings,
) -> Distilled:
    """Trains one LoRA to answer as all experts of a run do.

    The student's workdir is one as of `moecl train`: it can be evaluated, served and exported to
    PEFT. If it was interrupted, the same call goes on.

    Args:
      teacher: a run with finished tasks: its workdir, or a session.
      into: the student's workdir.
      answers: number of answers that each text stands with.
      adjust: changes the student's settings, such as its LLM (`model.path`), how that is quantised
        (`model.quantization`), the rank, or the epochs.

    Raises:
      UserError: nothing is finished, data cannot be read, or the student's settings do not fit.
    """
    into = Path(into)
    if answers < 1:
        raise UserError(f"answers = {answers} must be at least 1")
    if not isinstance(teacher, Session):
        if into.resolve() == Path(teacher).resolve():
            raise UserError(f"{into} is the teacher's workdir; name another folder for the student")
        teacher = open_run(teacher)
    return _distil(teacher, into, answers, adjust)


def _distil(
    session: Session, into: Path, answers: int, adjust: Callable[[Settings], Settings]
) -> Distilled:
    """`distil` of checked arguments."""
    evaluator = session.evaluator
    tasks = _finished(session)
    settings = adjust(student_settings(evaluator.settings, tasks, into))
    teacher = []
    with claimed(into):
        check_workdir(settings, into)  # before anything is written into another run's
        for task in tasks:
            accuracy, answered = _taught(session, task, answers)
            teacher.append(accuracy)
            _write(into / TEACHER_FOLDER, task, answered)
    results = train(settings, into)
    student = [np.nan if value is None else value for value in results["accuracy_matrix"][-1]]
    return Distilled([task.name for task in tasks], teacher, student)


def _finished(session: Session) -> list[TokenizedTask]:
    """The finished tasks, each with the examples of those that continue it.

    The test texts are the task's own.
    """
    evaluator = session.evaluator
    finished = evaluator.tasks[: len(session.state.finished)]
    loaded = {t.name: t for t in evaluator.load([t for t in finished if not t.removed])}
    tasks = []
    for name in session.tasks:
        parts = [evaluator.names[place] for place in evaluator.same(evaluator.index(name))]
        own = [loaded[part].splits for part in parts if part in loaded]
        more = {
            split: tuple(itertools.chain.from_iterable(each[split] for each in own))
            for split in ("train", "validation")
        }
        splits = {**loaded[name].splits, **more}
        tasks.append(dataclasses.replace(loaded[name], splits=splits))
    return tasks


def student_settings(settings: Settings, tasks: Sequence[TokenizedTask], into: Path) -> Settings:
    """Settings of a student: the teacher's, for one LoRA on all tasks at once.

    Args:
      settings: settings of the teacher's run.
      tasks: its finished tasks.
      into: the student's workdir, which holds the texts.
    """
    definitions = {task.name: _definition(task, into / TEACHER_FOLDER) for task in tasks}
    validated = any(task.splits["validation"] for task in tasks)
    every = {f"{split}_examples": 0 for split in SPLITS}  # the teacher's choice is in the files
    carved = {"validation_from": "train", "validation_fraction": 0.0, "test_fraction": 0.0}
    return settings.changed(
        {
            "method": "joint",
            "head": "lm",
            "shared_head": False,
            "tasks": tuple(definitions),
            "definitions": definitions,
            "task_settings": {},
            "selection": settings.selection if validated else "last",
            "data": {**every, **carved, "on_bad_example": "skip"},
            "self_supervised": {"texts": ""},  # no texts are read but those of the tasks
        }
    )


def allotted(probabilities: np.ndarray, answers: int) -> np.ndarray:
    """How many of a text's answers each label gets: the largest remainders round up.

    With probabilities 0.62, 0.3 and 0.08, ten answers are 6, 3 and 1; four are 3, 1 and 0 of 2.48,
    1.2 and 0.32; and one is 1, 0 and 0.

    Args:
      probabilities: `[n, K]`, rows that sum to 1.
      answers: number of answers of a text.

    Returns:
      `[n, K]` int, rows that sum to `answers`.
    """
    quotas = probabilities * answers
    counts = np.floor(quotas).astype(int)
    order = np.argsort(counts - quotas, axis=1, kind="stable")
    left = answers - counts.sum(axis=1)
    for rank in range(probabilities.shape[1]):
        np.add.at(counts, (np.arange(len(counts)), order[:, rank]), rank < left)
    return counts


def _taught(
    session: Session, task: TokenizedTask, answers: int
) -> tuple[float, list[tuple[TokenizedExample, str]]]:
    """The teacher's test accuracy, and the training texts with what it answers."""
    stopping.check()
    evaluator, texts = session.evaluator, task.splits["train"]
    index = evaluator.index(task.name)
    parameters = evaluator.starting.task(session.state, task.name, index)
    accuracy = evaluator.evaluate(parameters, index, task.splits["test"]).accuracy
    with reporting.stage(f"answers of the teacher for {task.name}"):
        if task.definition.free_form:
            prompts = [Prompt(example.prompt, index, example.text) for example in texts]
            written = session.write(prompts)
            return accuracy, [
                (example, fields["response"])
                for example, fields in zip(texts, written, strict=True)
                if fields.get("response")
            ]
        scores = evaluator.scores(parameters, index, texts).scores.astype(np.float64)
    if not np.isfinite(scores).all():
        raise UserError(
            f"the teacher's scores for task '{task.name}' are not finite, so that they choose no "
            "label: its weights or its training are broken"
        )
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    counts = allotted(shares / shares.sum(axis=1, keepdims=True), answers)
    return accuracy, [
        (example, label)
        for example, own in zip(texts, counts, strict=True)
        for label, count in zip(task.labels, own, strict=True)
        for _ in range(count)
    ]


def _definition(task: TokenizedTask, folder: Path) -> dict[str, Any]:
    """A task whose examples are in a student's workdir."""
    given = task.definition
    files: dict[str, Any] = {
        split: f"{task.name}.{split}.jsonl" for split in SPLITS if task.splits[split]
    }
    return Task(
        task.name,
        source="jsonl",
        path=str(folder.absolute()),
        template=given.template,
        chat=given.chat,
        metric=given.metric,
        labels=given.labels,
        label_field="" if given.free_form else "label",
        response_field="response" if given.free_form else "",
        **files,
    ).to_fields()


def _write(
    folder: Path, task: TokenizedTask, answered: Sequence[tuple[TokenizedExample, str]]
) -> None:
    """Writes a task's texts: those of training with the teacher's answers, the others with theirs.

    Raises:
      OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = {
        split: [(example, _answer_of(task, example)) for example in task.splits[split]]
        for split in SPLITS
    }
    field = "response" if task.definition.free_form else "label"
    for split, rows in {**own, "train": answered}.items():
        if not rows:
            continue
        with whole_file(folder / f"{task.name}.{split}.jsonl") as stream:
            for line in _lines(rows, field):
                stream.write(line)


def _answer_of(task: TokenizedTask, example: TokenizedExample) -> str:
    return example.response_text if task.definition.free_form else task.labels[example.label]


def _lines(rows: Sequence[tuple[TokenizedExample, str]], field: str) -> Iterator[bytes]:
    for example, answer in rows:
        prompt: Mapping[str, Any] = (
            {"text": example.text} if example.text else {"input_ids": example.prompt.tolist()}
        )
        yield (json.dumps({**prompt, field: answer}, ensure_ascii=False) + "\n").encode()
