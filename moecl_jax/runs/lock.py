"""The lock of a workdir: one process at a time trains in it or changes it.

.lock    held by that process
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from moecl_jax.errors import UserError
from moecl_jax.runs.names import LOCK_NAME


class Busy(UserError):
    """Another process trains in a workdir."""


@contextlib.contextmanager
def claimed(workdir: Path) -> Iterator[None]:
    """Keeps other processes from training in a workdir; a process that dies lets go of it.

    A folder that is made here, and in which nothing was saved when it is let go, goes away again:
    a start that failed leaves no workdir behind.

    Raises:
      Busy: another one does so already.
    """
    import fcntl  # of POSIX

    from moecl_jax.models.sharding import first_process  # imports JAX

    if not first_process():  # it speaks for all that train together
        yield
        return
    refuse_file(workdir)
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / LOCK_NAME
    with path.open("a") as lock:
        busy = f"another process is training in {workdir}; wait for it, or use another --workdir"
        for last in (False, True):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if last:
                    raise Busy(busy) from error
                time.sleep(0.1)  # `moecl status` holds it for a moment, to see whether it is free
        try:
            # A start that failed in another process may have removed it between the two calls.
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                raise Busy(busy)
            yield
        finally:
            _remove_empty(made)


def _remove_empty(made: Sequence[Path]) -> None:
    """Removes a new workdir that holds a lock and empty folders alone, and new folders above it.

    Args:
      made: the folders that were made for it, from the workdir upwards; none if it was there.
    """
    if not made:
        return
    workdir = made[0]
    if any(path.is_file() and path.name != LOCK_NAME for path in workdir.rglob("*")):
        return
    with contextlib.suppress(OSError):  # such as a folder that is not empty any more
        for folder in sorted((p for p in workdir.rglob("*") if p.is_dir()), reverse=True):
            folder.rmdir()
        (workdir / LOCK_NAME).unlink()
        for folder in made:
            folder.rmdir()


def refuse_file(workdir: Path) -> None:
    """Refuses what cannot become a workdir.

    Raises:
      UserError: there is something else than a folder.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is there and is no folder; name another --workdir")
