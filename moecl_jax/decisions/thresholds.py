"""Thresholds above which a label is decided by the model alone, and the file that keeps them."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moecl_jax.decisions.calibration import Calibration
from moecl_jax.errors import UserError, listed, one_line
from moecl_jax.outside import parse_json
from moecl_jax.writing import named, whole_file

GUARANTEED = "guaranteed"
PLAIN = "plain"
VERSION = 1
"""Version of the file's format; files of other versions are refused."""

_KIND = "moecl_jax decision thresholds"
UNDECIDED = -1
"""Stands in the place of a label's index where a person has to decide."""


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Decides a sample by its best label, if the probability of that reaches the label's threshold.

    A sample is decided for one label at most: where two labels are equally likely, for none. All
    samples with the same probabilities are decided alike.

    Attributes:
      labels: labels of the task, in the order of the columns of probabilities.
      values: lowest probability at which each label is decided; None if it never is. 0 decides
        whatever the label is the best of.
      reasons: why a label is never decided, by label.
      target: the precision that was asked for, from 0 to 1.
      confidence: how sure the rule `guaranteed` is that all labels reach the target at once; None
        for the rule `plain`, which promises nothing.
      rule: `guaranteed` or `plain`; see `moecl_jax.decisions.choosing`.
      calibration: makes probabilities of scores.
      samples: number of validation samples that the thresholds were chosen on.
    """

    labels: tuple[str, ...]
    values: tuple[float | None, ...]
    reasons: Mapping[str, str]
    target: float
    confidence: float | None
    rule: str
    calibration: Calibration
    samples: int

    def decide(self, scores: Sequence[Mapping[str, float]] | ArrayLike) -> list[str | None]:
        """The decision for each sample: its label, or None if a person has to decide.

        Args:
          scores: probabilities by label of each sample, or as an array `[N, C]` in the order of
            `labels`; or plain scores `[N]` where the thresholds are of such.

        Raises:
          UserError: the labels or the shape are others, or a score is not finite.
        """
        found = self.indices(self._as_array(scores))
        return [None if index == UNDECIDED else self.labels[index] for index in found]

    def indices(self, scores: NDArray[np.float64]) -> NDArray[np.int64]:
        """The index of the label that each sample is decided for; `UNDECIDED` for none.

        Args:
          scores: probabilities `[N, C]`, or plain scores `[N]`.
        """
        best, probability = best_labels(self.calibration.probabilities(scores))
        limits = np.array([np.inf if value is None else value for value in self.values])
        return np.where(probability >= limits[best], best, UNDECIDED)

    def save(self, path: str | Path) -> None:
        """Writes the thresholds as JSON, whole or not at all. The same ones give the same bytes."""
        content = {
            "kind": _KIND,
            "version": VERSION,
            "rule": self.rule,
            "target_precision": self.target,
            "confidence": self.confidence,
            "temperature": self.calibration.temperature,
            "shift": self.calibration.shift,
            "validation_samples": self.samples,
            "labels": list(self.labels),
            "thresholds": dict(zip(self.labels, self.values, strict=True)),
            "reasons": dict(self.reasons),
        }
        content["digest"] = _digest(content)
        text = json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False)
        with whole_file(Path(path)) as stream:
            stream.write(f"{text}\n".encode())

    @classmethod
    def load(cls, path: str | Path) -> "Thresholds":
        """Reads what `save` has written.

        Raises:
          UserError: the file is no file of thresholds, is of another version, or was changed.
        """
        path = Path(path)
        with named(path):
            data = path.read_bytes()
        try:
            content = parse_json(data)
        except ValueError as error:
            raise UserError(f"{path}: no JSON: {one_line(error)}") from error
        if not isinstance(content, dict) or content.get("kind") != _KIND:
            raise UserError(f"{path}: no file of thresholds; write one with moecl strip")
        if content.get("version") != VERSION:
            raise UserError(
                f"{path}: has the version {content.get('version')!r}, and version {VERSION} is "
                "read; write it again with moecl strip"
            )
        if content.pop("digest", None) != _digest(content):
            raise UserError(
                f"{path}: was changed or damaged since it was written (its digest differs); "
                "write it again with moecl strip"
            )
        try:
            values = [content["thresholds"][label] for label in content["labels"]]
            return cls(
                labels=tuple(content["labels"]),
                values=tuple(None if value is None else float(value) for value in values),
                reasons=content["reasons"],
                target=content["target_precision"],
                confidence=content["confidence"],
                rule=content["rule"],
                calibration=Calibration(float(content["temperature"]), content["shift"]),
                samples=content["validation_samples"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: a part is missing or wrong: {one_line(error)}") from error

    def _as_array(self, scores: Sequence[Mapping[str, float]] | ArrayLike) -> NDArray[np.float64]:
        if isinstance(scores, Sequence) and any(isinstance(row, Mapping) for row in scores):
            rows = []
            for number, row in enumerate(scores):
                if not isinstance(row, Mapping) or row.keys() != set(self.labels):
                    raise UserError(
                        f"sample {number}: expected the probabilities of {listed(self.labels)}"
                    )
                rows.append([row[label] for label in self.labels])
            scores = rows
        try:
            array = np.asarray(scores, np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"scores: expected numbers: {one_line(error)}") from error
        shape = () if self.calibration.shift is not None else (len(self.labels),)
        if array.ndim != 1 + len(shape) or array.shape[1:] != shape:
            if array.size == 0:
                return np.zeros((0, *shape))
            raise UserError(f"scores: expected the shape {('N', *shape)}, got {array.shape}")
        if not np.isfinite(array).all():
            raise UserError("scores: expected finite numbers, got NaN or infinity")
        return array


def best_labels(
    probabilities: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The best label of each sample and its probability, which is -1 where several are best.

    Args:
      probabilities: probability of each label, `[N, C]`.

    Returns:
      Indices `[N]` and probabilities `[N]`.
    """
    best = np.argmax(probabilities, axis=1)
    highest = np.take_along_axis(probabilities, best[:, None], axis=1)[:, 0]
    tied = np.sum(probabilities == highest[:, None], axis=1) > 1
    return best, np.where(tied, -1.0, highest)


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of everything in the file but itself."""
    text = json.dumps(content, ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
