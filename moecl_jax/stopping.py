"""A wish to stop, which long work looks for where it can stop without a loss.

Library code calls `stopping.check()` between batches, and `stopping.requested()` where it has
something to save first. Nobody asks unless a program does, as the command does when it gets a
signal; in a notebook an interrupt is Python's own `KeyboardInterrupt`, as anywhere.
"""

import contextlib
import threading
from collections.abc import Iterator

_requested = threading.Event()
_heeding = threading.Event()
_deferring = threading.Event()


class Stopped(KeyboardInterrupt):
    """Long work was stopped because that was requested; what it had reached is saved."""


def request() -> None:
    """Asks long work to stop."""
    _requested.set()


def requested() -> bool:
    """Whether long work is to stop."""
    return _requested.is_set()


def check() -> None:
    """Stops here if that was requested.

    Raises:
      Stopped: it was.
    """
    if _requested.is_set() and not _deferring.is_set():
        raise Stopped


@contextlib.contextmanager
def deferring() -> Iterator[None]:
    """Lets `check` pass until the context is left, for short work that must not end halfway."""
    _deferring.set()
    try:
        yield
    finally:
        _deferring.clear()


def heeded() -> bool:
    """Whether work is under way that looks for requests."""
    return _heeding.is_set()


@contextlib.contextmanager
def heeding() -> Iterator[None]:
    """Marks work that looks for requests until the context is left, and then forgets them."""
    _heeding.set()
    try:
        yield
    finally:
        _heeding.clear()
        _requested.clear()
