"""Changes to a newer checkpoint by itself, when a training has finished another task."""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from moecl_jax.runs.names import CHANGE_NAME, FINISHED_NAME
from moecl_jax.service.engine import Engine
from moecl_jax.service.limits import Refused
from moecl_jax.service.reload import Reloader

_log = logging.getLogger(__name__)


class Watcher:
    """Looks at a workdir again and again, and reloads when what is finished in it has changed.

    A change that is refused is logged, and not tried again before the next one.
    """

    def __init__(
        self, engine: Engine, reloader: Reloader, mark: Callable[[], object], known: object
    ):
        """Takes what is reloaded, and how a change is told.

        Args:
          engine: the engine; the watch ends when it is closed.
          reloader: changes the engine's checkpoint.
          mark: gives something that is another when another task is finished.
          known: what it gave before the checkpoint that answers was opened.
        """
        self._engine, self._reloader, self._mark = engine, reloader, mark
        self._known = known

    def start(self, seconds: float) -> None:
        """Starts a thread that looks every so many seconds."""
        threading.Thread(target=self._run, args=(seconds,), name="moecl-watch").start()

    def look(self) -> None:
        """Looks once."""
        try:
            now = self._mark()
            if now == self._known:
                return
            self._known = now
            switched = self._reloader.reload_now(wait=True)
        except Refused as error:
            _log.warning("the newest checkpoint is not answered with: %s", error.detail)
        except Exception:  # a broken workdir must not end the watch
            _log.exception("the newest checkpoint could not be opened")
        else:
            _log.info("answering with checkpoint %s now", switched.checkpoint)

    def _run(self, seconds: float) -> None:
        while not self._engine.closing.wait(seconds):
            self.look()


def finished_mark(workdir: Path) -> object:
    """Something that changes when another task is finished in a workdir, or one is undone."""
    try:
        found = os.stat(workdir / FINISHED_NAME)
    except FileNotFoundError:
        return None
    changing = (workdir / CHANGE_NAME).exists()  # nothing can be opened before its end
    return found.st_ino, found.st_mtime_ns, found.st_size, changing
