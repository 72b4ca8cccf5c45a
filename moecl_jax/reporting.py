"""How library code tells its caller what it does, without printing.

Library code calls `reporting.current()`. By default the answer is a `LoggingReporter`, which uses
Python's logging. A program that shows messages in another way puts its own reporter in place:

    with reporting.use(MyReporter()):
        train(config, workdir)

Work that takes a while is told in stages, one inside another (`stage`, `advance`); what is known of
it, such as the time that is left, is a `Progress` (in `moecl_jax.progress`).

The choice holds for the current context (see `contextvars`): a new thread starts with the default.
"""

import contextlib
import contextvars
import logging
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from moecl_jax.progress import Progress, Stage, duration

LOGGER_NAME = "moecl_jax"
_LINE_SECONDS = 15.0
_LINE_SHARE = 0.01  # of the time since the beginning, so that a run of weeks logs few lines


class Reporter(Protocol):
    """Where messages and progress go."""

    def message(self, text: str) -> None:
        """Tells the user one line.

        Args:
          text: the line, without a line end.
        """

    def show(self, progress: Progress, *, now: bool = False) -> None:
        """Shows how far work has come; called after each change, which may be often.

        Args:
          progress: the work.
          now: whether it should be shown although something was shown just before: much time may
            pass before the next call.
        """

    def ended(self) -> None:
        """Tells that the work that was shown is at its end."""


class LineReporter:
    """Writes messages and, every now and then, how far work has come, in lines.

    The first line of progress comes after 15 seconds; later ones are at least as far apart, and at
    least a hundredth of the time that the work has taken.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        """Writes nothing yet.

        Args:
          write: takes a line, without a line end.
        """
        self._write = write
        self._written_at: float | None = None

    def message(self, text: str) -> None:
        """Writes the line."""
        self._write(text)

    def show(self, progress: Progress, *, now: bool = False) -> None:
        """Writes a line if the last one is old enough: elapsed time, stage, losses, time left."""
        elapsed = progress.elapsed
        since = elapsed if self._written_at is None else time.monotonic() - self._written_at
        if not now and since < max(_LINE_SECONDS, _LINE_SHARE * elapsed):
            return
        self._written_at = time.monotonic()
        self._write(f"[{duration(elapsed)}] {progress.line()}")

    def ended(self) -> None:
        """The next work is timed anew."""
        self._written_at = None


class LoggingReporter(LineReporter):
    """Writes messages and progress to the logger `moecl_jax`, at level INFO."""

    def __init__(self) -> None:
        """Needs nothing."""
        super().__init__(lambda line: logging.getLogger(LOGGER_NAME).info("%s", line))


class SilentReporter:
    """Shows nothing, as in all processes of a run but the first."""

    def message(self, text: str) -> None:
        """Drops the line."""

    def show(self, progress: Progress, *, now: bool = False) -> None:
        """Drops the progress."""

    def ended(self) -> None:
        """Drops that too."""


def current() -> Reporter:
    """The reporter of the innermost `use`, or else one that logs."""
    return _CURRENT.get()


@contextlib.contextmanager
def use(reporter: Reporter) -> Iterator[None]:
    """Makes `reporter` the current one until the context is left."""
    token = _CURRENT.set(reporter)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextlib.contextmanager
def working() -> Iterator[Progress]:
    """The work that is under way; it begins here, and ends with the context, if there is none."""
    progress = _PROGRESS.get()
    if progress is not None:
        yield progress
        return
    token = _PROGRESS.set(progress := Progress())
    try:
        yield progress
    finally:
        _PROGRESS.reset(token)
        current().ended()


@contextlib.contextmanager
def stage(
    label: str, kind: str = "", total: int = 0, *, done: int = 0, size: float = 1.0
) -> Iterator[Stage]:
    """A stage of the work that is under way, or else of work that ends with it.

    Args:
      label: what is being done, such as "evaluating trec".
      kind: kind of its examples, by whose speed the time left is reckoned; see
        `moecl_jax.progress`. Empty for work that has no examples, such as compilation.
      total: examples in all.
      done: examples that were done before, such as those of an interrupted run.
      size: how much work an example is, such as its mean number of tokens.

    Yields:
      The stage, whose label and losses may be changed.
    """
    with working() as progress:
        entered = Stage(label, kind, total, done, size)
        progress.enter(entered)
        current().show(progress, now=not kind)
        try:
            yield entered
        finally:
            progress.leave()


def advance(count: int) -> None:
    """Tells that so many more examples of the innermost stage are done, if there is one."""
    progress = _PROGRESS.get()
    if progress is not None:
        progress.advance(count)
        current().show(progress)


def leave_out(seconds: float) -> None:
    """Tells that the last `seconds` went into what says nothing about speed, as compilation."""
    progress = _PROGRESS.get()
    if progress is not None:
        progress.leave_out(seconds)


_CURRENT: contextvars.ContextVar[Reporter] = contextvars.ContextVar(
    "reporter",
    default=LoggingReporter(),  # noqa: B039
)
_PROGRESS: contextvars.ContextVar[Progress | None] = contextvars.ContextVar(
    "progress", default=None
)
