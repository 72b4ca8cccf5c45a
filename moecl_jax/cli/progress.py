"""Messages and progress on the terminal."""

import os
import sys
import time

from moecl_jax.progress import Progress, cells
from moecl_jax.reporting import LineReporter, Reporter

_REDRAW_SECONDS = 0.2


def terminal_reporter() -> Reporter:
    """A reporter on standard error: one line that is redrawn on a terminal, else lines."""
    return TerminalReporter() if sys.stderr.isatty() else LineReporter(_print)


class TerminalReporter:
    """Prints messages above a line that says how far the work has come.

    The line is as wide as the terminal at most, and is gone when the work has ended.
    """

    def __init__(self) -> None:
        """Prints nothing yet."""
        self._line, self._drawn_at = "", -1.0

    def message(self, text: str) -> None:
        """Prints the line at once, and the progress below it."""
        line = self._line
        self._draw("")
        _print(text)
        self._draw(line)

    def show(self, progress: Progress, *, now: bool = False) -> None:
        """Draws the line anew, at most five times a second."""
        if now or time.monotonic() - self._drawn_at >= _REDRAW_SECONDS:
            self._draw(progress.line(_columns() - 1))  # in the last column the cursor may wrap
            self._drawn_at = time.monotonic()

    def ended(self) -> None:
        """Wipes the line away."""
        self._draw("")

    def _draw(self, line: str) -> None:
        """Draws over the line before; blanks, as not every terminal knows how to erase."""
        if line == self._line:
            return
        rest = " " * max(0, cells(self._line) - cells(line))
        ending = "" if line else "\r"
        sys.stderr.write(f"\r{line}{rest}{ending}")
        sys.stderr.flush()
        self._line = line


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _columns() -> int:
    """The terminal's width now; it may change."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):  # no terminal after all, as in a test
        return 80
