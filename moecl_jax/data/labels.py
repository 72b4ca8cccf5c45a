"""Labels as they stand in data: compared, and found where a task does not list them."""

import re
from collections.abc import Iterable, Mapping, Sequence

from moecl_jax.data.characters import CONTROL, LONE_SURROGATE, appearance, is_blank
from moecl_jax.errors import UserError
from moecl_jax.outside import shortened

_POINT_ZERO = re.compile(r"(-?\d+)\.0+")


def label_key(value: object) -> str:
    """Makes a label from a typed source (0) and from a text file ("0") the same."""
    return str(value).strip()


def without_point_zero(key: str) -> str:
    """A whole number that is written with a decimal point (1.0) without it; others as they are."""
    match = _POINT_ZERO.fullmatch(key)
    return match[1] if match else key


def number_as_text(label: object) -> object:
    """A label that is a whole number as its digits, which a model can write; others as they are."""
    return str(label) if type(label) is int else label


def class_of(value: object, classes: Mapping[str, int]) -> int | None:
    """The class of a label as it stands in data, or None.

    JSON's booleans are the labels "True" and "False" or, where a task has no such labels, "true"
    and "false". A whole number with a decimal point, as tables write a column of numbers in which
    one is missing (1.0), is also the label without it. A label that is missing (None) has no class.

    Args:
        value: the label.
        classes: class of each label, by what `label_key` makes of it.
    """
    key = label_key(value)
    if key not in classes:
        key = key.lower() if isinstance(value, bool) else without_point_zero(key)
    return None if value is None else classes.get(key)


def look_alike(value: object, labels: Iterable[str]) -> str | None:
    """The label that looks like a wrong one: other characters, the same sight; or None."""
    seen = appearance(label_key(value))
    return next((label for label in labels if appearance(label) == seen), None)


def problem_with_labels(labels: Sequence[str]) -> str | None:
    """Why labels cannot be the answers of a model, or None.

    Args:
        labels: the answers in class order; each must be a text on one line that is seen, and
            look other than the others.
    """
    for label in labels:
        if not isinstance(label, str) or is_blank(label) or label != label.strip():
            return (
                "must be texts or whole numbers, without white space around them, and "
                f"{shortened(label)} is not; name in raw_labels what stands in the data for each"
            )
        if CONTROL.search(label) or LONE_SURROGATE.search(label):
            return (
                f"must each be one line of text, and {shortened(label)} holds a line feed or "
                "another control character; give one-line labels, and name in raw_labels what "
                "stands in the data"
            )
    return problem_with_repeats(labels)


def problem_with_repeats(labels: Sequence[object]) -> str | None:
    """Which labels are the same, or look the same, if some are."""
    first: dict[str, str] = {}
    for label in labels:
        key, seen = label_key(label), appearance(label_key(label))
        other = first.get(seen)
        if other == key:
            return f"holds {shortened(key)} twice; name each class once"
        if other is not None:
            return (
                f"holds {other!a:.60} and {key!a:.60}, which look the same: they differ "
                "in Unicode composition or in invisible characters alone; keep one"
            )
        first[seen] = key
    return None


def distinct_labels(
    values: Iterable[tuple[object, str]],
) -> tuple[tuple[str, ...], tuple[str | int, ...]]:
    """The labels that stand in data, each once: numbers in their order, else texts in theirs.

    A label that is missing (None) is none; its example is refused when it is read.

    Args:
        values: labels as they are written in the data, each with its place for messages.

    Returns:
        The labels as text, and as they are written, which is () where that is the same.

    Raises:
        UserError: a label is neither text nor whole number nor boolean.
    """
    found: dict[str, str | int] = {}
    for value, where in values:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str | int):
            found.setdefault(label_key(value), value)
        elif value is not None:
            raise UserError(
                f"{where}: the label {shortened(value)} is neither a text nor a whole number nor a "
                "boolean, so the labels cannot be told from the data. Pass labels, and in "
                "raw_labels what stands in the data for each."
            )
    whole = all(re.fullmatch(r"-?\d{1,100}", key) for key in found)
    labels = tuple(sorted(found, key=int) if whole else sorted(found))
    raw_labels = tuple(found[label] for label in labels)
    return labels, () if all(isinstance(label, str) for label in raw_labels) else raw_labels
