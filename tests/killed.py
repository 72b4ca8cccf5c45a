"""Runs the command and kills it at its N-th operation on files below a folder.

    python killed.py N FOLDER train --config=... --workdir=...

With N = 0 it runs to its end, and writes the number of operations to FOLDER.operations.
"""

import builtins
import io
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def count_operations(folder: str, kill_at: int) -> "itertools.count[int]":
    """Wraps what changes files; the process is killed before the operation with this number."""
    numbers = itertools.count(1)

    def below(argument: Any) -> bool:
        return isinstance(argument, str | os.PathLike) and os.fspath(argument).startswith(folder)

    def wrap(function: Callable[..., Any], changes: Callable[..., bool]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            inside = named.get("dir_fd") is not None or any(map(below, arguments))
            if inside and changes(*arguments, **named) and next(numbers) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return counted

    def writes(_file: Any, mode: str = "r", *_: Any, **named: Any) -> bool:
        return any(letter in named.get("mode", mode) for letter in "wax+")

    for name in ("rename", "replace", "mkdir", "rmdir", "unlink", "remove"):
        setattr(os, name, wrap(getattr(os, name), lambda *_, **__: True))
    builtins.open = io.open = wrap(builtins.open, writes)
    return numbers


def main() -> int:
    """Counts, and runs the command."""
    kill_at, folder, *arguments = sys.argv[1:]
    numbers = count_operations(folder, int(kill_at))
    from moecl_jax.cli.main import main as command

    status = command(arguments)
    Path(f"{folder}.operations").write_text(str(next(numbers) - 1), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
