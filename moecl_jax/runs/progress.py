"""What a run shows and records while it trains: its logged metrics and its progress bar."""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
from tqdm import tqdm

from moecl_jax.errors import UserError
from moecl_jax.runs.names import LOG_NAME, TENSORBOARD_FOLDER

_TERMINAL_SECONDS = 0.5
_LINE_SECONDS = 15.0


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
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        self._events: Any = None
        if tensorboard:
            import tensorboardX  # here, because it takes a while and is not always wanted

            purge_step = None if resumed_step is None else resumed_step + 1
            self._events = tensorboardX.SummaryWriter(
                str(workdir / TENSORBOARD_FOLDER), purge_step=purge_step
            )

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
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._events is not None:
            for key, value in line.items():
                if key != "step" and isinstance(value, int | float):
                    self._events.add_scalar(f"train/{key}", value, step)

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


class Progress:
    """A bar on the terminal: examples done, examples per second, time left, loss.

    Where the output is not a terminal it prints a line about every 15 seconds instead, and none for
    a task that is done sooner.
    """

    def __init__(
        self, description: str, total: int, *, done: int = 0, stream: TextIO | None = None
    ) -> None:
        """Shows the bar.

        Args:
          description: what is being done, such as the task's name.
          total: examples in all.
          done: examples that a resumed run has already seen; they do not count in the speed.
          stream: where to print; standard error by default.
        """
        stream = sys.stderr if stream is None else stream
        terminal = stream.isatty()
        seconds = _TERMINAL_SECONDS if terminal else _LINE_SECONDS
        bar = "{bar}| " if terminal else ""
        self._bar = tqdm(
            desc=description,
            total=total,
            initial=done,
            file=stream if terminal else _Lines(stream),
            unit=" examples",
            bar_format="{desc}: {percentage:3.0f}%|" + bar + "{n_fmt}/{total_fmt} "
            "[{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]",
            dynamic_ncols=terminal,
            mininterval=seconds,
            maxinterval=2 * seconds,
            delay=0 if terminal else seconds,
            smoothing=0.1,
        )

    def update(self, examples: int, loss: float | None = None) -> None:
        """Advances the bar.

        Args:
          examples: how many more are done.
          loss: the loss to show from now on; None leaves the last one, so that a caller need not
            wait for the device at each step.
        """
        if loss is not None:
            self._bar.set_postfix({"loss": f"{loss:.4f}"}, refresh=False)
        self._bar.update(examples)

    def close(self) -> None:
        """Shows the bar a last time and ends its line."""
        self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Lines:
    """Turns tqdm's redrawing of one line into lines of their own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        text = text.strip()
        if text:
            self._stream.write(text + "\n")

    def flush(self) -> None:
        self._stream.flush()


def _drop_lines(path: Path, last_step: int | None) -> None:
    """Drops a half-written last line, and the lines of steps after `last_step` if that is given."""
    shortened = path.with_name(path.name + ".tmp")
    with path.open("rb") as source, shortened.open("wb") as target:
        for number, line in enumerate(source, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                step = int(json.loads(line)["step"])
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path}, line {number}: expected a JSON object with an integer 'step', as a "
                    "run writes them; delete that line, or move the file away"
                ) from error
            if last_step is None or step <= last_step:
                target.write(line)
    os.replace(shortened, path)


def plain(content: Any) -> Any:
    """Content as JSON has it: scalars as Python's, None for what is not finite."""
    if isinstance(content, Mapping):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    return _plain_scalar(content)


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, np.generic) or hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
