"""Trains again and again, each time while some operations on files fail, and then once more.

    LD_PRELOAD=failing_io.so python failing.py CONFIG FOLDER NAME:FIRST:LAST ...

Each trial has a workdir of its own, FOLDER/0, FOLDER/1, ... Operations FIRST to LAST on files fail
whose paths in the workdir begin with NAME; see faults/failing_io.c. One line of JSON a trial says
how many operations there were, the exit status and what standard error got of both trainings.
"""

import contextlib
import ctypes
import faulthandler
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from moecl_jax.cli.main import main as command

SECONDS = 90
"""The longest that a trial may take; then all threads show where they are, and it ends."""


def train(config: str, workdir: Path, name: str, first: int, last: int) -> dict[str, Any]:
    """One training while operations fail."""
    shim, err = ctypes.CDLL(None), io.StringIO()
    shim.failing_io_begin(str(workdir / name).encode(), ctypes.c_long(first), ctypes.c_long(last))
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        status = command(["train", f"--config={config}", f"--workdir={workdir}"])
    count = shim.failing_io_count()
    shim.failing_io_begin(b"", ctypes.c_long(0), ctypes.c_long(0))
    return {"status": status, "err": err.getvalue(), "count": count}


def main() -> None:
    """Tries what the arguments say."""
    config, folder, *trials = sys.argv[1:]
    for number, trial in enumerate(trials):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        name, first, last = trial.split(":")
        workdir = Path(folder) / str(number)
        failed = train(config, workdir, name, int(first), int(last))
        print(json.dumps({**failed, "again": train(config, workdir, name, 0, 0)}), flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # Orbax's threads wait minutes for what failed; see moecl_jax.cli.main.program
