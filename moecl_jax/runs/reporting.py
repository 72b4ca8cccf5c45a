"""How library code tells its caller what it does, without printing.

Library code calls `reporting.current()`. By default the answer is a `LoggingReporter`, which uses
Python's logging. A program that shows messages in another way puts its own reporter in place:

    with reporting.use(MyReporter()):
        train(config, workdir)

The choice holds for the current context (see `contextvars`): a new thread starts with the default.
"""

import contextlib
import contextvars
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

LOGGER_NAME = "moecl_jax"
_LOG_SECONDS = 15.0


class Progress(Protocol):
    """How far a piece of work has come."""

    def update(self, examples: int, loss: float | None = None) -> None:
        """Tells that more is done.

        Args:
          examples: how many more examples are done.
          loss: the loss to show from now on. None keeps the last one, so that a caller need not
            wait for the device at each step.
        """


class Reporter(Protocol):
    """Where messages and progress go."""

    def message(self, text: str) -> None:
        """Tells the user one line.

        Args:
          text: the line, without a line end.
        """

    def task(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Progress]:
        """Begins to show the progress of a longer piece of work, until the context is left.

        Args:
          label: what is being done, such as the task's name.
          total: examples in all.
          done: examples that were done before, such as those of an interrupted run. They do not
            count in the speed.
        """


class LoggingReporter:
    """Writes messages and progress to the logger `moecl_jax`, at level INFO.

    Progress is a line about every 15 seconds and one at the end.
    """

    def message(self, text: str) -> None:
        """Logs the line."""
        _logger().info("%s", text)

    @contextlib.contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Progress]:
        """Logs how far the work has come."""
        progress = _LoggedProgress(label, total, done)
        try:
            yield progress
        finally:
            progress.log()


class SilentReporter:
    """Shows nothing, as in all processes of a run but the first."""

    def message(self, text: str) -> None:
        """Drops the line."""

    @contextlib.contextmanager
    def task(
        self,
        label: str,  # noqa: ARG002
        total: int,  # noqa: ARG002
        done: int = 0,  # noqa: ARG002
    ) -> Iterator[Progress]:
        """Drops the progress."""
        yield _NoProgress()


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


class _LoggedProgress:
    def __init__(self, label: str, total: int, done: int) -> None:
        self.label, self.total, self.done = label, total, done
        self.loss: float | None = None
        self.logged_at = time.monotonic()

    def update(self, examples: int, loss: float | None = None) -> None:
        self.done += examples
        self.loss = self.loss if loss is None else loss
        if time.monotonic() - self.logged_at >= _LOG_SECONDS:
            self.log()

    def log(self) -> None:
        self.logged_at = time.monotonic()
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        _logger().info("%s: %d of %d examples%s", self.label, self.done, self.total, loss)


class _NoProgress:
    def update(self, examples: int, loss: float | None = None) -> None:
        """Drops what it is told."""


def _logger() -> logging.Logger:
    return logging.getLogger(LOGGER_NAME)


_CURRENT: contextvars.ContextVar[Reporter] = contextvars.ContextVar(
    "reporter",
    default=LoggingReporter(),  # noqa: B039 (it has no state)
)
