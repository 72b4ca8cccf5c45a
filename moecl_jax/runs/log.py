"""The metrics of a run as they are logged: `metrics.jsonl` and TensorBoard events."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from moecl_jax.errors import UserError
from moecl_jax.outside import parse_json
from moecl_jax.runs.events import EventsFile
from moecl_jax.runs.names import LOG_NAME, NOT_FINITE_NAME, TENSORBOARD_FOLDER
from moecl_jax.writing import RETRY, whole_file


class MetricsLog:
    """The metrics of a run as lines of `metrics.jsonl` and as TensorBoard events.

    A line is one JSON object with the keys that the caller gave. `write` hands it to the operating
    system before it returns, so that a process that is killed loses no line.

    Attributes:
      path: the file of lines, `metrics.jsonl` in the workdir.
    """

    def __init__(
        self, workdir: Path, *, resumed_step: int | None = None, tensorboard: bool = True
    ) -> None:
        """Opens the log for appending.

        Args:
          workdir: the run's folder, which is created if needed.
          resumed_step: the last global step that the run still has, where it is resumed; 0 to start
            anew. Lines of later steps are dropped, because the run is about to write them again,
            and TensorBoard is told to forget them. None keeps all lines. A half-written last line
            is dropped in any case.
          tensorboard: whether to write TensorBoard events.

        Raises:
          UserError: if an existing line is not a JSON object with an integer `step`.
        """
        workdir.mkdir(parents=True, exist_ok=True)
        self.path = workdir / LOG_NAME
        if self.path.exists():
            _drop_lines(self.path, resumed_step)
        self._file = self.path.open("ab", buffering=0)
        self._events: EventsFile | None = None
        if tensorboard:
            purge_step = None if resumed_step is None else resumed_step + 1
            self._events = EventsFile(workdir / TENSORBOARD_FOLDER, purge_step=purge_step)

    def write(self, values: Mapping[str, Any]) -> None:
        """Records one logged step.

        Args:
          values: the line's content, in this order. `step` is the global step. NumPy and JAX
            scalars become Python's, a float that is not finite becomes null. TensorBoard gets the
            finite numbers, under `train/`.

        Raises:
          KeyError: if there is no `step`.
        """
        step = int(values["step"])
        line = plain(values)
        self._append(json.dumps(line, allow_nan=False).encode() + b"\n")
        if self._events is not None:
            for key, value in line.items():
                if key != "step" and isinstance(value, int | float):
                    self._events.add(f"train/{key}", value, step)

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
        if self._events is not None:
            self._events.close()

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
