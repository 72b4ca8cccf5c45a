"""What becomes of a labelled text: it passes, it is blocked, or a person reviews it."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from moecl_jax.decisions import Thresholds
from moecl_jax.errors import UserError, listed, suggestion
from moecl_jax.writing import named

Decision = Literal["pass", "block", "review"]


@dataclasses.dataclass(frozen=True)
class TaskPolicy:
    """How the texts of one task are decided.

    Attributes:
      thresholds: decide for a label, or for none.
      version: digest of the thresholds' file, 12 hexadecimal digits.
      block: labels whose texts are blocked; texts of other labels pass.
    """

    thresholds: Thresholds
    version: str
    block: frozenset[str]


class Policy:
    """Decides labelled texts. A person reviews those of tasks that have no thresholds."""

    def __init__(self, tasks: Mapping[str, TaskPolicy] | None = None):
        """Takes the policy of each task that has one, by name."""
        self._tasks = dict(tasks or {})

    def decide(self, task: str, probabilities: Mapping[str, float]) -> Decision:
        """The decision for a text with these probabilities by label."""
        policy = self._tasks.get(task)
        [label] = [None] if policy is None else policy.thresholds.decide([probabilities])
        if policy is None or label is None:
            return "review"
        return "block" if label in policy.block else "pass"

    def version(self, task: str) -> str | None:
        """Version of a task's thresholds; None if it has none."""
        return self._tasks[task].version if task in self._tasks else None


def read_policy(
    files: Sequence[str], block: Sequence[str], labels: Mapping[str, Sequence[str]]
) -> Policy:
    """Reads files of thresholds, as `moecl strip` writes them.

    Args:
      files: `TASK=FILE`, or `FILE` where a single task has the labels of the thresholds.
      block: labels whose texts are blocked.
      labels: labels of each task, by name.

    Raises:
      UserError: a file is no file of thresholds, its task is unclear or has other labels, or no
        label to block is named, or one that no task with thresholds has.
    """
    tasks: dict[str, TaskPolicy] = {}
    for given in files:
        task, path = _split(given, labels)
        thresholds = Thresholds.load(path)
        able = [name for name, of in labels.items() if set(of) == set(thresholds.labels)]
        if task is None and len(able) == 1:
            [task] = able
        if task is None or task not in able:
            found = f"tasks with these labels: {listed(able) or 'none'}"
            raise UserError(
                f"--thresholds={given}: they are for the labels {listed(thresholds.labels)}; "
                f"{found}. Name the task by --thresholds=TASK={path}"
            )
        thresholds.decide([{label: 1 / len(thresholds.labels) for label in labels[task]}])
        if task in tasks:
            raise UserError(f"--thresholds={given}: task '{task}' has thresholds already")
        with named(path):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        tasks[task] = TaskPolicy(thresholds, digest[:12], frozenset(block))
    known = {label for task in tasks for label in labels[task]}
    if tasks and not block:
        raise UserError(
            "--thresholds needs --block=LABEL, the label whose texts are blocked; labels are "
            f"{listed(sorted(known))}"
        )
    for label in block:
        if label not in known:
            raise UserError(
                f"--block={label}: no task with thresholds has this label{suggestion(label, known)}"
                f"; labels are {listed(sorted(known)) or 'none'}"
            )
    return Policy(tasks)


def _split(given: str, labels: Mapping[str, Sequence[str]]) -> tuple[str | None, Path]:
    """The task and the file of `TASK=FILE` or `FILE`."""
    task, equals, path = given.partition("=")
    return (task, Path(path)) if equals and task in labels else (None, Path(given))
