"""Predictions of other systems beside those of trained runs, on the same texts."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moecl_jax.data.labels import label_key
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError, listed
from moecl_jax.outside import shortened
from moecl_jax.runs.classification import NO_LABEL
from moecl_jax.serving import rows
from moecl_jax.serving.files import FIELD
from moecl_jax.serving.gold import gold_label
from moecl_jax.serving.session import Session

ID = "id"
"""The field by which rows of two files are matched."""


@dataclasses.dataclass(frozen=True)
class GoldTexts:
    """Texts of a task with their labels; N of them.

    Attributes:
      task: the task.
      records: the N rows.
      classes: `[N]`, the class of each.
      ids: the `id` of each as text; empty where the rows have none.
    """

    task: Task
    records: Sequence[Mapping[str, Any]]
    classes: np.ndarray
    ids: Sequence[str]


def gold_texts(task: Task, file: Path | None) -> GoldTexts:
    """Reads texts with gold labels.

    Args:
      task: knows the fields and the labels.
      file: a file of `rows.FORMATS`; None for the task's own test data.

    Raises:
      UserError: a row has no label of the task, an id stands twice, or there are no rows.
    """
    if file is None:
        if not task.test:
            raise UserError(f"task '{task.name}' has no test data; name a file by --gold")
        records = [record.fields for record in task.records("test")]
    else:
        records = _read(file)
    place = f"task '{task.name}', test" if file is None else str(file)
    classes = []
    for number, record in enumerate(records, start=1):
        value = record.get(task.label_field)
        label = gold_label(value, [task])
        if label is None:
            raise UserError(
                f"{place}: row {number}: the gold label in {task.label_field!r} is "
                f"{shortened(value)}; expected one of {listed(task.classes())}"
            )
        classes.append(task.labels.index(label))
    if not records:
        raise UserError(f"{place}: no rows")
    return GoldTexts(task, records, np.array(classes), _ids(records, place))


def run_predictions(session: Session, gold: GoldTexts) -> np.ndarray:
    """The class that a run predicts for each gold text, `[N]`; `NO_LABEL` for a label of its own.

    Raises:
      UserError: the run has no such task, or cannot read a text.
    """
    found = session.predict(list(gold.records), gold.task.name)
    labels = gold.task.labels
    return np.array([labels.index(p.label) if p.label in labels else NO_LABEL for p in found])


def other_predictions(file: Path, gold: GoldTexts) -> np.ndarray:
    """The class that another system predicts for each gold text, `[N]`.

    A row holds the `id` of a gold text (where those have none, rows are matched by their order) and
    the first that there is of `prediction`, as `moecl predict` writes it; `label`, a label of the
    task or what stands for it in the data; and `score`, the probability of the second of a task's
    two labels, which is predicted from 0.5 on. A label that is none of the task's is `NO_LABEL`.

    Raises:
      UserError: a row has none of these, a text has no row, or an id stands twice.
    """
    records = _read(file)
    if gold.ids:
        ids = _ids(records, str(file))
        if not ids:
            raise UserError(f"{file}: no field {ID!r}, by which its rows would find their texts")
        by_id = dict(zip(ids, records, strict=True))
        absent = [one for one in gold.ids if one not in by_id]
        if absent:
            raise UserError(
                f"{file}: {len(absent)} of {len(gold.ids)} texts have no row: {listed(absent)}"
            )
        records = [by_id[one] for one in gold.ids]
    elif len(records) != len(gold.records):
        raise UserError(
            f"{file}: {len(records)} rows for {len(gold.records)} texts, which have no field "
            f"{ID!r} and so are matched by their order"
        )
    return np.array([_class_of(record, gold.task, file) for record in records])


def _class_of(record: Mapping[str, Any], task: Task, file: Path) -> int:
    """The class that a row predicts."""
    answer = record.get(FIELD)
    value = answer.get("label") if isinstance(answer, Mapping) else answer
    value = record.get("label") if value is None else value
    if value is not None:
        label = gold_label(value, [task])
        return NO_LABEL if label is None else task.labels.index(label)
    if "score" not in record:
        raise UserError(
            f"{file}: a row has none of 'label', 'score' and {FIELD!r}; its fields are "
            f"{listed(record)}"
        )
    if len(task.labels) != 2:
        raise UserError(
            f"{file}: a 'score' tells one of two labels, and task '{task.name}' has "
            f"{len(task.labels)}; give 'label'"
        )
    try:
        score = float(record["score"])
    except (TypeError, ValueError):
        score = -1.0
    if not 0 <= score <= 1:
        raise UserError(
            f"{file}: the score {shortened(record['score'])} is no probability; expected a number "
            f"from 0 to 1, the probability of {task.labels[1]!r}"
        )
    return int(score >= 0.5)


def _read(file: Path) -> list[Mapping[str, Any]]:
    """The rows of a file, all of which must be good."""
    if not file.is_file():
        raise UserError(f"{file} is no file")
    found: list[Mapping[str, Any]] = []
    with file.open("rb") as stream:
        reader = rows.open_reader(stream, file, rows.format_of_input(file, None))
        for number, (record, _) in enumerate(reader, start=1):
            if isinstance(record, Exception):
                raise UserError(f"{file}: row {number}: {record}")
            found.append(record)
    return found


def _ids(records: Sequence[Mapping[str, Any]], place: str) -> list[str]:
    """The id of each row as text; none where the first row has none."""
    if not records or ID not in records[0]:
        return []
    ids = [label_key(record[ID]) if ID in record else "" for record in records]
    seen: set[str] = set()
    for number, one in enumerate(ids, start=1):
        if not one or one in seen:
            problem = f"the id {shortened(one)} stands twice" if one else f"no field {ID!r}"
            raise UserError(f"{place}: row {number}: {problem}")
        seen.add(one)
    return ids
