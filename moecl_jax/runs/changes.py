"""Changes of a workdir that are made whole or not at all: what a rollback and a removal come to.

    change.json   what is left to do of a change; it is there only while one is made

What is new is first written beside the old. Then change.json is written, and from that moment on
the change is made. What follows are renames of folders and writes of whole files, each of which may
be repeated: if the process is killed, whoever opens the workdir next does the rest.
"""

import dataclasses
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moecl_jax.errors import UserError, one_line
from moecl_jax.outside import inside, parse_json
from moecl_jax.runs.lock import claimed
from moecl_jax.runs.names import CHANGE_NAME, CHECKPOINTS_FOLDER
from moecl_jax.writing import write_json

REMOVED = ".removed"
PREPARED = ".prepared"


@dataclasses.dataclass(frozen=True)
class Change:
    """What is done to a workdir; paths are relative to it.

    Attributes:
      removed: files and folders that go. They may be absent.
      placed: folders below `checkpoints/.prepared/`, by the folder below `checkpoints/` that they
        become or replace.
      files: content of JSON files by name.
    """

    removed: tuple[str, ...] = ()
    placed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def make(self, workdir: Path) -> None:
        """Changes a workdir that is claimed."""
        content = {**dataclasses.asdict(self), "number": time.time_ns()}
        write_json(workdir / CHANGE_NAME, content)
        finish(workdir)


def finish_interrupted(workdir: Path) -> None:
    """Does what is left of a change whose process was killed.

    Raises:
      UserError: another process is at work in the workdir, or `change.json` is broken.
    """
    if (workdir / CHANGE_NAME).exists():
        with claimed(workdir):
            finish(workdir)


def finish(workdir: Path) -> None:
    """Does what is left of a change, if anything is, in a workdir that is claimed.

    Raises:
      UserError: `change.json` is broken.
    """
    path = workdir / CHANGE_NAME
    try:
        content = parse_json(path.read_bytes())
        removed = [inside(workdir, name) for name in content["removed"]]
        placed = [(inside(workdir, a), inside(workdir, b)) for a, b in content["placed"].items()]
        files = {inside(workdir, name): whole for name, whole in content["files"].items()}
        number = int(content["number"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"{path} is broken: {one_line(error)}. It says what is left to do of a rollback or a "
            "removal; restore the workdir from a copy."
        ) from error
    away = workdir / CHECKPOINTS_FOLDER / REMOVED
    away.mkdir(parents=True, exist_ok=True)
    for place, gone in enumerate(removed):
        _move(gone, away / f"{number}_{place}")
    for old, new in placed:
        if new.exists():  # else it is in its place already
            _move(old, away / f"{number}_{old.name}")
            os.rename(new, old)
    for file, whole in files.items():
        write_json(file, whole)
    for folder in (away, workdir / CHECKPOINTS_FOLDER / PREPARED):
        shutil.rmtree(folder, ignore_errors=True)
    path.unlink()


def _move(source: Path, target: Path) -> None:
    if os.path.lexists(source):
        os.rename(source, target)
