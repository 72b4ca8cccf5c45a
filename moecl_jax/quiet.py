"""Keeps off the screen what other packages say and a user can do nothing about.

Each function is a context manager around one call into such a package. Outside of it, and for what
a program does with the package itself, nothing changes. Errors come through.
"""

import contextlib
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import PurePath


@contextlib.contextmanager
def orbax() -> Iterator[None]:
    """Drops what Orbax logs through absl, and the traces of its threads.

    Its warnings are notes on its inner workings, such as "Skipping merge of OCDBT checkpoints" where
    a tree has no arrays. What goes wrong is an exception of the call.
    """
    hook = threading.excepthook
    threading.excepthook = lambda args: None if _is_of_orbax(args) else hook(args)
    try:
        with _without("absl", _is_logged_by_orbax):
            yield
    finally:
        threading.excepthook = hook


@contextlib.contextmanager
def transformers() -> Iterator[None]:
    """Drops the advice of transformers to install PyTorch, which it logs when it is imported.

    Only its models need PyTorch; here its tokenizers are used.
    """
    with _without("transformers", lambda record: record.funcName == "warning_advice"):
        yield


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
