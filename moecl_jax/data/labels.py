"""Labels as they stand in data: compared, and found where a task does not list them."""

import re
from collections.abc import Iterable

from moecl_jax.errors import UserError


def label_key(value: object) -> str:
    """Makes a label from a typed source (0) and from a text file ("0") the same."""
    return str(value).strip()


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
        if isinstance(value, str | int):
            found.setdefault(label_key(value), value)
        elif value is not None:
            raise UserError(
                f"{where}: the label {value!r:.60} is neither a text nor a whole number nor a "
                "boolean, so the labels cannot be told from the data. Pass labels, and in "
                "raw_labels what stands in the data for each."
            )
    whole = all(re.fullmatch(r"-?\d+", key) for key in found)
    labels = tuple(sorted(found, key=int) if whole else sorted(found))
    raw_labels = tuple(found[label] for label in labels)
    return labels, () if all(isinstance(label, str) for label in raw_labels) else raw_labels
