"""Accuracy, precision, recall and F1 of predicted classes."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

NO_LABEL = -1
"""A prediction that is none of the labels, such as a generated text."""


@dataclasses.dataclass(frozen=True, eq=False)
class Classification:
    """How predicted classes agree with gold ones; C classes, N examples.

    With TP, FP and FN the true positives, false positives and false negatives of a class:

        precision = TP / (TP + FP),  recall = TP / (TP + FN),  F1 = 2 TP / (2 TP + FP + FN)

    A quotient 0/0 is undefined, and is NaN: the precision of a class that is never predicted, the
    recall of one without examples, the F1 of one of which both hold, and the accuracy of no
    examples. So F1 is 0, not NaN, for a class that has examples and is never predicted.

    Attributes:
      labels: the C classes.
      accuracy: fraction of the examples whose prediction is right.
      macro_f1: mean of the defined F1.
      precision: `[C]`.
      recall: `[C]`.
      f1: `[C]`.
      support: `[C]`, number of examples of each class.
      confusion: `[C, C]`, number of examples by gold class (row) and predicted class (column). A
        prediction that is no label is in no column, so a row may sum to less than the support.
    """

    labels: tuple[str, ...]
    accuracy: float
    macro_f1: float
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    confusion: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """What a JSON file holds of it: the attributes, None where a figure is undefined."""
        accuracy, macro_f1 = _known([self.accuracy, self.macro_f1])
        return {
            "labels": list(self.labels),
            "accuracy": accuracy,
            "macro_f1": macro_f1,
            "precision": _known(self.precision.tolist()),
            "recall": _known(self.recall.tolist()),
            "f1": _known(self.f1.tolist()),
            "support": self.support.tolist(),
            "confusion": self.confusion.tolist(),
        }


def classify(
    labels: Sequence[str], gold: Sequence[int] | np.ndarray, predicted: Sequence[int] | np.ndarray
) -> Classification:
    """Compares predicted classes with gold ones.

    Args:
      labels: the C classes.
      gold: `[N]`, index of each example's class.
      predicted: `[N]`, index of each example's predicted class, or `NO_LABEL`.

    Raises:
      ValueError: the two differ in length, or an index is no class.
    """
    count = len(labels)
    rows, columns = np.asarray(gold, np.int64), np.asarray(predicted, np.int64)
    if rows.ndim != 1 or rows.shape != columns.shape:
        raise ValueError(f"gold has the shape {rows.shape} and predicted {columns.shape}")
    if not np.isin(rows, np.arange(count)).all():
        raise ValueError(f"gold must be in 0 ... {count - 1}")
    if not np.isin(columns, np.arange(NO_LABEL, count)).all():
        raise ValueError(f"predicted must be in {NO_LABEL} ... {count - 1}")
    confusion = np.zeros((count, count), np.int64)
    labelled = columns != NO_LABEL
    np.add.at(confusion, (rows[labelled], columns[labelled]), 1)
    support = np.bincount(rows, minlength=count)
    right, assigned = np.diag(confusion), confusion.sum(axis=0)
    f1 = _quotient(2 * right, assigned + support)
    defined = f1[~np.isnan(f1)]
    return Classification(
        labels=tuple(labels),
        accuracy=float(right.sum()) / len(rows) if len(rows) else math.nan,
        macro_f1=float(defined.mean()) if len(defined) else math.nan,
        precision=_quotient(right, assigned),
        recall=_quotient(right, support),
        f1=f1,
        support=support,
        confusion=confusion,
    )


def _quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise quotient, NaN where it is 0/0."""
    undefined = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)


def _known(values: list[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]
