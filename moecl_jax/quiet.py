"""Keeps off the screen what other packages say and a user can do nothing about.

Each function is a context manager around one call into such a package. Outside of it, and for what
a program does with the package itself, nothing changes. Errors come through.
"""

import contextlib
import logging
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import PurePath


@contextlib.contextmanager
def orbax() -> Iterator[None]:
    """Drops what Orbax logs through absl, and the traces of its threads and of its futures.

    Its warnings are notes on its inner workings, such as "Skipping merge of OCDBT checkpoints"
    where a tree has no arrays. What goes wrong is an exception of the call. Writes that it had
    begun end a little later, and then find no one to tell: after a failure their traces are dropped
    till the end of the process.
    """
    thread_hook, hook = threading.excepthook, sys.unraisablehook
    threading.excepthook = lambda args: None if _is_of_orbax(args) else thread_hook(args)
    sys.unraisablehook = lambda args: None if _is_of_a_closed_loop(args) else hook(args)
    with _without("absl", _is_logged_by_orbax):
        yield
    threading.excepthook, sys.unraisablehook = thread_hook, hook


@contextlib.contextmanager
def transformers() -> Iterator[None]:
    """Drops the advice of transformers to install PyTorch, which it logs when it is imported.

    Only its models need PyTorch; here its tokenizers are used.
    """
    with _without("transformers", lambda record: record.funcName == "warning_advice"):
        yield


@contextlib.contextmanager
def panics() -> Iterator[None]:
    """Drops what Rust writes to standard error of a panic: its exception says it.

    What is written meanwhile is held back, also by other threads, and written afterwards where
    there was no panic.
    """
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(tempfile.TemporaryFile())
            terminal = os.dup(2)
        except OSError:  # nowhere to hold it, or no standard error
            held = None
        if held is None:
            yield
            return
        stack.callback(os.close, terminal)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException as error:
            if type(error).__name__ == "PanicException":  # pyo3 has no name to import
                held.truncate(0)
            raise
        finally:
            os.dup2(terminal, 2)
            held.seek(0)
            with contextlib.suppress(OSError):
                os.write(2, held.read())


@contextlib.contextmanager
def datasets() -> Iterator[None]:
    """Hides the progress bars of `datasets`, unless its environment variable decides on them."""
    from datasets import (
        config,
        disable_progress_bars,
        enable_progress_bars,
        is_progress_bar_enabled,
    )

    if config.HF_DATASETS_DISABLE_PROGRESS_BARS is not None or not is_progress_bar_enabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _is_logged_by_orbax(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING and "orbax" in PurePath(record.pathname).parts


def _is_of_orbax(args: threading.ExceptHookArgs) -> bool:
    """Whether an exception that ended a thread went through code of Orbax."""
    frames = traceback.walk_tb(args.exc_traceback)
    return any("orbax" in PurePath(frame.f_code.co_filename).parts for frame, _ in frames)


def _is_of_a_closed_loop(args: "sys.UnraisableHookArgs") -> bool:
    """Whether a future of compiled code found the event loop closed that waited for it."""
    return isinstance(args.exc_value, RuntimeError) and "loop is closed" in str(args.exc_value)


@contextlib.contextmanager
def _without(logger: str, unwanted: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Drops the records of a logger for which `unwanted` is true."""

    def wanted(record: logging.LogRecord) -> bool:
        return not unwanted(record)

    logging.getLogger(logger).addFilter(wanted)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(wanted)
