"""What an online pass writes and counts: a line an example, accuracies, drifts."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moecl_jax.errors import UserError
from moecl_jax.outside import parse_json, shortened
from moecl_jax.runs.log import plain

LOG_NAME = "online.jsonl"
RECENT = 200
"""Number of the newest labelled examples of which the accuracy is told beside that of all."""


@dataclasses.dataclass
class Tally:
    """What was counted since a pass began.

    Attributes:
      right: whether each of a task's newest labelled examples was answered rightly before it was
        learned, at most `RECENT` of them, by the task's name.
      counts: number of a task's labelled examples and of those answered rightly, by its name.
      drifts: `line` and `task` of each rise of the loss that was found.
      bad: number of lines that could not be used.
      bare: number of lines without a label, which were answered alone.
      steps: number of steps.
      skipped: number of those that changed nothing, as something was not finite.
      seconds: seconds of work, those of waiting included.
    """

    right: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    counts: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    drifts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    bad: int = 0
    bare: int = 0
    steps: int = 0
    skipped: int = 0
    seconds: float = 0.0

    def add(self, task: str, *, right: bool) -> None:
        """Counts a labelled example."""
        of_task = self.right.setdefault(task, [])
        of_task.append(int(right))
        del of_task[:-RECENT]
        count = self.counts.setdefault(task, [0, 0])
        count[0] += 1
        count[1] += right

    @property
    def accuracy(self) -> float | None:
        """The prequential accuracy over all tasks; None without a labelled example."""
        total = sum(count for count, _ in self.counts.values())
        return sum(right for _, right in self.counts.values()) / total if total else None

    def __str__(self) -> str:
        """The figures as lines."""
        lines = []
        for task, (count, right) in self.counts.items():
            recent = self.right[task]
            lines.append(
                f"{task}: {count} learned, accuracy before learning {100 * right / count:.1f}, "
                f"of the newest {len(recent)} {100 * sum(recent) / len(recent):.1f}"
            )
        for drift in self.drifts:
            lines.append(f"the loss of {drift['task']} has risen: line {drift['line']}")
        if self.bare:
            lines.append(f"lines without a label, which were answered alone: {self.bare}")
        if self.skipped:
            lines.append(f"steps that were not finite and changed nothing: {self.skipped}")
        lines.append(f"steps: {self.steps}; lines that could not be used: {self.bad}")
        return "\n".join(lines)


class OnlineLog:
    """The file with a line for each example."""

    def __init__(self, folder: Path, lines: int):
        """Names the file; nothing is created or changed before the first lines are written.

        Args:
          folder: gets the file.
          lines: number of input lines that a pass goes on after.
        """
        self.path = folder / LOG_NAME
        self._lines, self._opened = lines, False
        self._waiting: list[dict[str, Any]] = []

    def _open(self) -> None:
        """Takes out of the file what is about to be written again."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = 0
        if self.path.exists():
            with self.path.open("rb") as stream:
                for line in stream:
                    if not line.endswith(b"\n") or self._number(line) > self._lines:
                        break
                    kept += len(line)
            with self.path.open("r+b") as stream:
                stream.truncate(kept)
        self._opened = True

    def _number(self, line: bytes) -> int:
        """The number of the input line that a line is of."""
        try:
            return int(parse_json(line)["line"])
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{self.path} is broken: {shortened(line)} is no line of it; move the file away"
            ) from error

    def add(self, line: Mapping[str, Any]) -> None:
        """Takes the line of an example."""
        self._waiting.append(plain(line))

    def flush(self) -> list[dict[str, Any]]:
        """Writes the lines that were taken since the last call, and gives them."""
        written, self._waiting = self._waiting, []
        if not written:
            return written
        if not self._opened:
            self._open()
        with self.path.open("ab") as stream:
            for line in written:
                stream.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        return written
