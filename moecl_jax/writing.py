"""Writes files whole or not at all, and says which one could not be written."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

RETRY = (
    "What was saved before is as it was; make room or mend the disk, and run the same command "
    "again to go on."
)
"""What to do after a training could not write."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of the one at a path when all of it is on the disk.

    If anything fails meanwhile, the file that was there stays as it was.

    Raises:
      OSError: it cannot be written; names the path.
    """
    beside = path.with_name(path.name + ".part")
    try:
        with named(path), beside.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        with named(path):
            os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all.

    Raises:
      OSError: it cannot be written; names the path.
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    with whole_file(path) as stream:
        stream.write(f"{text}\n".encode())


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Gives errors of the operating system the name of a file; those of reads and writes have none.

    Raises:
      OSError: as it was raised, with a name.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
