"""The metrics of a run as they are logged: `metrics.jsonl`, and what trackers get."""

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from moecl_jax.errors import UserError
from moecl_jax.outside import parse_json
from moecl_jax.runs.names import LOG_NAME, NOT_FINITE_NAME
from moecl_jax.runs.trackers import Trackers
from moecl_jax.writing import RETRY, whole_file

_PLACES = ("step", "task_step", "task_steps")  # say where a line belongs, and are no figures


class MetricsLog:
    """The metrics of a run as lines of `metrics.jsonl`, and what its trackers get.

    A line is one JSON object with the keys that the caller gave. `write` hands it to the operating
    system before it returns, so that a process that is killed loses no line.

    Attributes:
      path: the file of lines, `metrics.jsonl` in the workdir.
      trackers: the trackers, which get figures that are no metrics of a step, too.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        resumed_step: int | None = None,
        trackers: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens the log for appending.

        Args:
          workdir: the run's folder, which is created if needed.
          resumed_step: the last global step that the run still has, where it is resumed; 0 to start
            anew. Lines of later steps are dropped, because the run is about to write them again,
            and trackers are told. None keeps all lines. A half-written last line is dropped in any
            case.
          trackers: names of the trackers, as `config.trackers` has them.
          settings: settings of the run, for trackers that show them.

        Raises:
          UserError: if an existing line is not a JSON object with an integer `step`, or a tracker
            cannot be found.
        """
        workdir.mkdir(parents=True, exist_ok=True)
        self.path = workdir / LOG_NAME
        if self.path.exists():
            _drop_lines(self.path, resumed_step)
        self._file = self.path.open("ab", buffering=0)
        self.trackers = Trackers(trackers, workdir, settings or {}, resumed_step)

    def write(self, values: Mapping[str, Any]) -> None:
        """Records one logged step.

        Args:
          values: the line's content, in this order. `step` is the global step. NumPy and JAX
            scalars become Python's, a float that is not finite becomes null. Trackers get the
            finite numbers, under `train/`.

        Raises:
          KeyError: if there is no `step`.
        """
        step = int(values["step"])
        line = plain(values)
        self._append(json.dumps(line, allow_nan=False).encode() + b"\n")
        shown = {key: value for key, value in line.items() if key not in _PLACES}
        figures = {f"train/{k}": v for k, v in shown.items() if isinstance(v, int | float)}
        self.trackers.log(figures, step)

    def _append(self, line: bytes) -> None:
        """Writes a line whole or not at all."""
        size, written = self._file.seek(0, os.SEEK_END), 0
        try:
            while written < len(line):
                written += self._file.write(line[written:]) or 0
        except OSError as error:
            with contextlib.suppress(OSError):  # else it is dropped when the run goes on
                self._file.truncate(size)
            raise UserError(f"cannot write {self.path}: {error.strerror}. {RETRY}") from error

    def note_not_finite(self, content: Mapping[str, Any]) -> Path:
        """Writes beside the log which steps were not finite, and returns the file's path."""
        path = self.path.with_name(NOT_FINITE_NAME)
        with whole_file(path) as stream:
            stream.write((json.dumps(plain(content), indent=2) + "\n").encode())
        return path

    def close(self) -> None:
        """Writes out what is buffered and closes the files."""
        self._file.close()
        self.trackers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def plain(content: Any) -> Any:
    """Content as JSON has it: scalars as Python's, None for what is not finite."""
    if isinstance(content, Mapping):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    return _plain_scalar(content)


def _drop_lines(path: Path, last_step: int | None) -> None:
    """Drops a half-written last line, and the lines of steps after `last_step` if that is given."""
    with path.open("rb") as source, whole_file(path) as target:
        for number, line in enumerate(source, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                step = int(parse_json(line)["step"])
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path}, line {number}: expected a JSON object with an integer 'step', as a "
                    "run writes them; delete that line, or move the file away"
                ) from error
            if last_step is None or step <= last_step:
                target.write(line)


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, np.generic) or hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
