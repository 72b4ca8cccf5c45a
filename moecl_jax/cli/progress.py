"""Messages and progress on the terminal."""

import sys
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

_TERMINAL_SECONDS = 0.5
_LINE_SECONDS = 15.0


class TerminalReporter:
    """Prints messages and progress on standard error; see `moecl_jax.runs.reporting.Reporter`."""

    def message(self, text: str) -> None:
        """Prints the line at once."""
        print(text, file=sys.stderr, flush=True)

    def task(self, label: str, total: int, done: int = 0) -> "ProgressBar":
        """Shows a bar."""
        return ProgressBar(label, total, done=done)


class ProgressBar:
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
