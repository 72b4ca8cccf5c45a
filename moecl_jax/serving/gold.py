"""Gold labels that rows bring along, beside the labels that were predicted."""

from collections.abc import Mapping, Sequence
from typing import Any

from moecl_jax.data.labels import class_of, label_key
from moecl_jax.data.task import Task
from moecl_jax.outside import shortened
from moecl_jax.runs.classification import Classification, classify


class GoldLabels:
    """Compares predicted labels with gold ones.

    Attributes:
      labels: the labels of the tasks, each once.
      unknown: gold labels that are none of them, as they stand in the rows, with how many rows.
    """

    def __init__(self, tasks: Sequence[Task]):
        """Compares answers of these tasks."""
        self._tasks = tasks
        self.labels = list(dict.fromkeys(label for task in tasks for label in task.labels))
        self.unknown: dict[str, int] = {}
        self._gold: list[int] = []
        self._predicted: list[int] = []

    def add(self, record: Mapping[str, Any], task: Task, label: str) -> None:
        """Takes the gold label of a row, if it has one.

        It is in the field that holds the labels of the task's data, as it stands there or as the
        label itself.

        Args:
          record: the row.
          task: the task that answered.
          label: what it predicted.
        """
        value = record.get(task.label_field)
        if value is None or value == "":
            return
        gold = gold_label(value, [task, *self._tasks])
        if gold is None:
            seen = shortened(label_key(value))
            self.unknown[seen] = self.unknown.get(seen, 0) + 1
            return
        self._gold.append(self.labels.index(gold))
        self._predicted.append(self.labels.index(label))

    def classification(self) -> Classification | None:
        """The figures; None if no row had a gold label."""
        return classify(self.labels, self._gold, self._predicted) if self._gold else None


def gold_label(value: Any, tasks: Sequence[Task]) -> str | None:
    """The label that a value stands for in the first task that knows it, or None."""
    for task in tasks:
        place = class_of(value, task.classes())
        if place is None:
            place = class_of(value, {label: index for index, label in enumerate(task.labels)})
        if place is not None:
            return task.labels[place]
    return None
