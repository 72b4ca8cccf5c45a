"""Keeps off the screen what other packages say and a user can do nothing about.

Each function is a context manager around one call into such a package. Outside of it, and for what
a program does with the package itself, nothing changes. Errors come through.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import PurePath


@contextlib.contextmanager
def orbax() -> Iterator[None]:
    """Drops Orbax's warnings, which it logs through absl.

    They are notes on its inner workings, such as "Skipping merge of OCDBT checkpoints" where a tree
    has no arrays. What goes wrong is an exception.
    """
    with _without("absl", _is_warning_of_orbax):
        yield


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


def _is_warning_of_orbax(record: logging.LogRecord) -> bool:
    return record.levelno == logging.WARNING and "orbax" in PurePath(record.pathname).parts


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
