"""Samples with their scores and gold labels, read from JSON lines or CSV."""

import csv
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moecl_jax.errors import UserError, listed, one_line
from moecl_jax.outside import parse_json, shortened
from moecl_jax.writing import named

# Where scores stand if no field is named, and then gold labels. `moecl predict` writes its own
# under `prediction`, in tables as `prediction_...`; version 0.1 wrote them beside the user's
# fields, with a prediction as `label`. Another system has a score.
_FIELDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("prediction.probabilities", ("gold", "label")),
    ("prediction_probabilities", ("gold", "label")),
    ("probabilities", ("gold",)),
    ("score", ("gold", "label")),
)
_ERRORS = ("error", "prediction.error", "prediction_error")
_LONGEST_CELL = 2**24


@dataclasses.dataclass(frozen=True)
class Samples:
    """Samples that a system has scored. N is their number, C the number of labels.

    Attributes:
      ids: name of each sample.
      labels: the labels; of two, the second is the positive one.
      scores: probability of each label, `[N, C]`; or plain scores `[N]`, which are no probabilities
        and are higher where the second of two labels is likelier.
      gold: index of each sample's true label, `[N]`; None if it is not known.
      left_out: number of lines that held an `error` in place of scores.
      positive: label that a number stood for, where a sample's scores were one number; None where
        they were by label.
    """

    ids: Sequence[str]
    labels: tuple[str, ...]
    scores: NDArray[np.float64]
    gold: NDArray[np.int64] | None
    left_out: int = 0
    positive: str | None = None

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise UserError(f"labels: expected two or more, got {listed(self.labels) or 'none'}")
        of_each = self.scores.shape == (len(self.ids), len(self.labels))
        plain = self.scores.shape == (len(self.ids),) and len(self.labels) == 2
        if not of_each and not plain:
            raise UserError(
                f"scores: expected the shape {(len(self.ids), len(self.labels))}, or a score for "
                f"each sample where there are two labels, got {self.scores.shape}"
            )
        if not np.isfinite(self.scores).all():
            raise UserError("scores: expected finite numbers, got NaN or infinity")
        if of_each and ((self.scores < 0.0) | (self.scores > 1.0)).any():
            raise UserError("scores: expected probabilities from 0 to 1")
        if self.gold is not None and self.gold.shape != (len(self.ids),):
            raise UserError(f"gold: expected {len(self.ids)} labels, got {self.gold.shape}")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, places: NDArray[np.int64]) -> "Samples":
        """The samples at some places, in their order."""
        gold = None if self.gold is None else self.gold[places]
        ids = [self.ids[place] for place in places]
        return dataclasses.replace(self, ids=ids, scores=self.scores[places], gold=gold)

    def halves(self, seed: int) -> tuple["Samples", "Samples"]:
        """Two random halves, the first to choose thresholds on, the second to test them on.

        Args:
          seed: chooses the halves.
        """
        first, second = halves(len(self), seed)
        return self.take(first), self.take(second)


def halves(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places of two random halves of some samples, each in ascending order.

    Args:
      count: number of samples; if it is odd, the second half has one more.
      seed: chooses the halves.
    """
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


def read_samples(
    path: str | Path,
    *,
    score: str | None = None,
    gold: str | None = None,
    id: str = "id",
    positive: str | None = None,
    labels: Sequence[str] | None = None,
    needs_ids: bool = False,
) -> Samples:
    """Reads what a system has written of some samples.

    A file whose name ends in `.csv` or `.tsv` has a header and a sample a row; any other has a JSON
    object a line. A field `a.b` is the field `b` of the object `a`. Lines with an error in place of
    an answer are left out.

    The scores of a sample are an object with the probability of each label (as JSON in a cell), or
    one number: the probability of the positive label if all numbers of the file are from 0 to 1, a
    plain score otherwise.

    Args:
      path: the file.
      score: field of the scores; by default what `moecl predict` writes, or `score`.
      gold: field of the gold label; by default `gold`, else `label` where that is no prediction.
        All samples have it, or none.
      id: field of the sample's name; by default its line's number, where it has none.
      positive: label that a number stands for; by default the last in the order of the alphabet,
        as in scikit-learn.
      labels: labels in the order that they shall have, if the file has the same; both of them for a
        file of numbers without gold labels.
      needs_ids: whether a sample without a name is an error.

    Raises:
      UserError: a line is broken, or lines do not fit together; says which.
    """
    path = Path(path)
    errors = _ERRORS if score is None else (*_ERRORS, score.replace("probabilities", "error"))
    records, left_out = [], 0
    with named(path):
        for number, record in _records(path):
            if any(name != score and _field(record, name) is not None for name in errors):
                left_out += 1
            else:
                records.append((number, record))
    if not records:
        raise UserError(f"{path}: holds no sample with scores")
    score, gold_fields = _fields(path, records[0][1], score, gold)
    given = (f for f in gold_fields if any(_field(record, f) is not None for _, record in records))
    gold = next(given, None)
    values, golds, ids = [], [], []
    for number, record in records:
        place = f"{path}, line {number}"
        values.append(_scores(_field(record, score), place, score))
        name = _field(record, id)
        if name is None and needs_ids:
            raise UserError(
                f"{place}: has no field {id!r}, by which the samples of two files are matched; "
                "name the field that tells them apart with --id"
            )
        ids.append(str(number if name is None else name))
        if gold is not None:
            label = _field(record, gold)
            if label is None:
                raise UserError(f"{place}: has no gold label in the field {gold!r}, as others have")
            golds.append(_name(label))
    lines = [number for number, _ in records]
    if isinstance(values[0], dict):
        known, scores = _by_label(path, lines, values, labels)
    else:
        known, scores = _of_one_label(path, lines, values, golds, positive, labels)
    if positive is not None and positive not in known:
        raise UserError(f"--positive={positive}: {path} has the labels {listed(known)}")
    return Samples(
        ids,
        known,
        scores,
        None if gold is None else _indices(path, lines, golds, known),
        left_out,
        None if isinstance(values[0], dict) else known[1],
    )


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The lines of a file that are not empty, with their numbers."""
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv"):
        yield from _rows(path, tabs=ending == ".tsv")
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = parse_json(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: no JSON: {one_line(error)}") from error
            if not isinstance(record, dict):
                raise UserError(f"{path}, line {number}: expected a JSON object")
            yield number, record


def _rows(path: Path, *, tabs: bool) -> list[tuple[int, Mapping[str, Any]]]:
    before = csv.field_size_limit(_LONGEST_CELL)  # it is the whole process's
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = (
                csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
                if tabs
                else csv.DictReader(stream)
            )
            found: list[tuple[int, Mapping[str, Any]]] = []
            try:
                for row in reader:
                    if None in row:  # what follows a comma too many is in another's column
                        raise UserError(
                            f"{path}, line {reader.line_num}: has more cells than the header; "
                            "quote cells with commas"
                        )
                    found.append((reader.line_num, {k: v for k, v in row.items() if v}))
                return found
            except (csv.Error, ValueError) as error:
                raise UserError(f"{path}, line {reader.line_num + 1}: {one_line(error)}") from error
    finally:
        csv.field_size_limit(before)


def _field(record: Mapping[str, Any], name: str) -> Any:
    """The value of a field, or of `b` in `a` for the name `a.b`; None if it is not there."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _fields(
    path: Path, record: Mapping[str, Any], score: str | None, gold: str | None
) -> tuple[str, Sequence[str]]:
    """The field of the scores, and the fields in which a gold label may stand."""
    if score is not None:
        if _field(record, score) is None:
            raise UserError(f"--score={score}: {path} has the fields {listed(record)}")
        return score, dict(_FIELDS).get(score, ("gold", "label")) if gold is None else (gold,)
    for name, golds in _FIELDS:
        if _field(record, name) is not None:
            return name, golds if gold is None else (gold,)
    raise UserError(
        f"{path}: expected one of the fields {listed(name for name, _ in _FIELDS)}, found "
        f"{listed(record)}; name the field of the scores with --score"
    )


def _indices(
    path: Path, lines: Sequence[int], golds: Sequence[str], labels: Sequence[str]
) -> NDArray[np.int64]:
    places = {label: index for index, label in enumerate(labels)}
    for number, label in zip(lines, golds, strict=True):
        if label not in places:
            raise UserError(
                f"{path}, line {number}: the gold label {shortened(label)} is none of "
                f"{listed(labels)}"
            )
    return np.array([places[label] for label in golds], np.int64)


def _name(label: Any) -> str:
    """A label's name; JSON's true and false have their own."""
    return str(label).lower() if isinstance(label, bool) else str(label)


def _scores(value: Any, place: str, field: str) -> dict[str, float] | float:
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise UserError(f"{place}: {field}: no JSON: {one_line(error)}") from error
    if isinstance(value, dict):
        return {str(label): _number(number, place, field) for label, number in value.items()}
    return _number(value, place, field)


def _number(value: Any, place: str, field: str) -> float:
    try:
        number = math.nan if isinstance(value, bool | None) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{place}: {field}: expected a finite number, got {shortened(value)}")
    return number


def _by_label(
    path: Path, lines: Sequence[int], values: Sequence[Any], wanted: Sequence[str] | None
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    labels = tuple(values[0])
    if wanted is not None and set(wanted) == set(labels):
        labels = tuple(wanted)
    for number, value in zip(lines, values, strict=True):
        if not isinstance(value, dict) or value.keys() != values[0].keys():
            found = listed(value) if isinstance(value, dict) else shortened(value)
            raise UserError(
                f"{path}, line {number}: expected the probabilities of {listed(labels)}, as in "
                f"the lines before, got {found}; give the samples of one task alone"
            )
    return labels, np.array([[value[label] for label in labels] for value in values])


def _of_one_label(
    path: Path,
    lines: Sequence[int],
    values: Sequence[Any],
    golds: Sequence[str],
    positive: str | None,
    labels: Sequence[str] | None,
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    for number, value in zip(lines, values, strict=True):
        if isinstance(value, dict):
            raise UserError(f"{path}, line {number}: expected a number, as in the lines before")
    names = sorted(set(golds)) if labels is None else sorted(labels)
    if len(names) != 2:
        raise UserError(
            f"{path}: one score a sample tells two labels apart, but the labels are "
            f"{listed(names) or 'not known, for it has no gold labels'}; give the probability of "
            "each label, or name the field of the gold labels with --gold"
        )
    second = names[1] if positive is None or positive not in names else positive
    known = tuple(sorted(names, key=lambda name: name == second))
    scores = np.array(values, np.float64)
    if ((scores >= 0.0) & (scores <= 1.0)).all():
        scores = np.stack([1.0 - scores, scores], axis=1)
    return known, scores
