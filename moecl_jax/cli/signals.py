"""SIGINT and SIGTERM: at most one line, a state to go on from, and exit status 130 or 143.

Work that looks for requests (see `moecl_jax.stopping`) is asked to stop: it saves what it has
reached. Anything else ends at once, and so does everything at a second signal: what is on disk is
whole at every moment.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from moecl_jax import stopping

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = "interrupted; run the same command again to resume"


class Signals:
    """The signals of a command that runs.

    Attributes:
      first: number of the first signal that came, or 0.
    """

    def __init__(self) -> None:
        """Listens to none yet."""
        self.first = 0

    @property
    def status(self) -> int:
        """The exit status after the first signal."""
        return 128 + self.first

    def _listen(self, reader: int) -> None:
        """Acts on each byte of a pipe: the number of a signal.

        Python's own handlers wait until the main thread is back from compiled code, such as a
        compilation of minutes; a thread of its own does not.
        """
        while number := os.read(reader, 1):
            if number[0] not in SIGNALS:
                continue
            if self.first or not stopping.heeded():
                self.first = self.first or number[0]
                os.write(2, f"{INTERRUPTED}\n".encode())
                os._exit(self.status)
            self.first = number[0]
            stopping.request()
        os.close(reader)


def cause_of(error: KeyboardInterrupt) -> int:
    """The signal behind an exception: several processes are stopped by SIGTERM, which JAX gets."""
    return signal.SIGTERM if isinstance(error, stopping.Stopped) else signal.SIGINT


@contextlib.contextmanager
def handled() -> Iterator[Signals]:
    """Handles signals until the context is left.

    In a thread that is not the main one, as in a program that calls the command, nothing changes.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    threading.Thread(target=signals._listen, args=(reader,), daemon=True).start()
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(descriptor)
        os.close(writer)  # ends the thread
