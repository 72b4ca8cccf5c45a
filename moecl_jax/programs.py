"""Compiled programs that stay on disk, so that a program is compiled once and not once a run.

JAX knows what makes two programs the same, and asks a store for the compiled one. Its own store
keeps what a killed process has written in part, and no longer makes room after some kills. The
store here writes a file in one piece, checks each by a digest before it is used, deletes what is
damaged, and makes room without locks. Whatever the disk does, a program that cannot be kept is
compiled again.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import platformdirs

from moecl_jax import reporting

VARIABLE = "MOECL_CACHE"
MOST_BYTES = 2**30
_DIGEST_BYTES = hashlib.sha256().digest_size
_ENDING = ".program"
_OLDEST_UNFINISHED = 3600.0  # seconds; what is older was left by a process that was killed
_COMPILATION = "/jax/core/compile/"  # events of tracing, lowering and compiling
_OFF = ("off", "0", "")


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a folder of programs holds.

    Attributes:
      folder: the folder of all versions and machines; None where no programs are kept.
      programs: number of programs that this machine can use with these versions.
      bytes: their size.
      others: number of programs of other versions or machines.
      other_bytes: their size.
      problem: why programs are not kept; None if they are.
    """

    folder: Path | None
    programs: int = 0
    bytes: int = 0
    others: int = 0
    other_bytes: int = 0
    problem: str | None = None


class ProgramStore:
    """Compiled programs as files, as JAX's compilation cache reads and writes them.

    Several processes may use a folder at the same time.

    Attributes:
      folder: where the files are.
      most_bytes: the size that they may have together. Those not used for longest go first.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES):
        """Takes the folder, which need not exist."""
        self.folder, self.most_bytes = folder, most_bytes
        self._path = folder  # JAX names it in messages

    def get(self, key: str) -> bytes | None:
        """A program that was kept; None if there is none, or it is damaged or cannot be read."""
        path = self._file(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, value = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        with contextlib.suppress(OSError):
            if hashlib.sha256(value).digest() != digest:
                path.unlink()
                return None
            os.utime(path)
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program, if the disk allows."""
        if len(value) + _DIGEST_BYTES > self.most_bytes:
            return
        unfinished = ""
        try:
            self._make_room(len(value) + _DIGEST_BYTES)
            handle, unfinished = tempfile.mkstemp(dir=self.folder)
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(value).digest() + value)
            os.replace(unfinished, self._file(key))
        except OSError:
            if unfinished:
                with contextlib.suppress(OSError):
                    os.unlink(unfinished)

    def _file(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}{_ENDING}"

    def _make_room(self, needed: int) -> None:
        now, total = time.time(), needed
        for used, size, path in sorted(_files(self.folder), reverse=True):
            unfinished = path.suffix != _ENDING
            total += 0 if unfinished else size
            too_old = unfinished and now - used > _OLDEST_UNFINISHED
            if too_old or (total > self.most_bytes and not unfinished):
                path.unlink(missing_ok=True)


def keep() -> None:
    """Keeps what JAX compiles from now on, and uses what was kept.

    Nothing happens where a program has chosen a compilation cache of JAX itself, where
    `MOECL_CACHE` is "off", or where the folder cannot be written.
    """
    import jax
    from jax._src import compilation_cache

    if jax.config.values["jax_compilation_cache_dir"] or _store_of(compilation_cache) is not None:
        return
    folder = writable_folder()[0]
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))  # for XLA's own caches on a GPU
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    internals: Any = compilation_cache
    internals._cache, internals._cache_initialized = ProgramStore(folder), True


@functools.cache
def leave_compilation_out() -> None:
    """Leaves the time in which JAX compiles out of all speeds of `reporting`, from now on."""
    import jax

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith(_COMPILATION):
            reporting.leave_out(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)


def _store_of(compilation_cache: object) -> ProgramStore | None:
    store = getattr(compilation_cache, "_cache", None)
    return store if isinstance(store, ProgramStore) else None


def chosen() -> Path | None:
    """The folder that `MOECL_CACHE` names; None where it names none, or is "off"."""
    named = os.environ.get(VARIABLE, "").strip()
    return None if named.lower() in _OFF else Path(named).expanduser().absolute()


def root() -> Path | None:
    """The folder of all versions and machines; None where `MOECL_CACHE` is "off"."""
    if VARIABLE in os.environ:
        return chosen()
    return platformdirs.user_cache_path("moecl_jax") / "programs"


def writable_folder() -> tuple[Path | None, str | None]:
    """The folder for these versions and this machine, made if need be; or None, and the reason."""
    above = root()
    if above is None:
        return None, f"{VARIABLE} is {os.environ[VARIABLE]!r}"
    folder = above / _of_this_machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder, None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return None, f"{folder} cannot be written ({reason})"


def kept() -> Kept:
    """What is kept, as `moecl cache` shows it."""
    above = root()
    folder, problem = writable_folder()
    if above is None or not above.is_dir():
        return Kept(above, problem=problem)
    own = [size for _, size, _ in _files(folder)] if folder is not None else []
    every = [size for _, size, _ in _of_all_folders(above)]
    others = len(every) - len(own)
    return Kept(above, len(own), sum(own), others, sum(every) - sum(own), problem)


def empty() -> int:
    """Deletes all kept programs, of all versions and machines; gives how many there were.

    Raises:
      OSError: a file cannot be deleted.
    """
    above = root()
    if above is None or not above.is_dir():
        return 0
    found = list(_of_all_folders(above))
    for folder in {path.parent for _, _, path in found}:
        shutil.rmtree(folder)
    return len(found)


def _of_all_folders(above: Path) -> Iterator[tuple[float, int, Path]]:
    """The programs of all versions and machines; nothing else that lies in the folder."""
    for folder in sorted(above.iterdir()):
        yield from (each for each in _files(folder) if each[2].suffix == _ENDING)


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """When each file was used last [s], its size [bytes], and the file."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # another process deletes, too
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat()
                    found.append((status.st_mtime, status.st_size, Path(entry.path)))
    return found


def _of_this_machine() -> str:
    """A name for all that JAX's own keys leave out: versions, processor, number of cores.

    Programs for a CPU hold its machine code, which another processor may not understand.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [metadata.version("jax"), metadata.version("jaxlib"), platform.machine(), str(cores)]
    parts.append(_processor())
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return f"jax-{parts[0]}-{parts[2]}-{digest}"


def _processor() -> str:
    """The processor's model and abilities, as far as the system tells."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    return platform.processor()
