"""The queue of a service: texts of all requests, in the order of their coming."""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Sequence
from typing import Any

from moecl_jax.service.labelling import Read
from moecl_jax.service.limits import Limits, Refused

Answer = dict[str, Any]


class Pending:
    """A request that waits for the answers to its texts.

    Attributes:
      caller: name of whoever asks.
      left: number of texts without an answer.
      answers: answers to its texts.
      future: gets the answers.
      abandoned: whether nobody waits for it any more.
    """

    def __init__(self, texts: int, caller: str):
        """Waits for so many answers, in the event loop that runs."""
        self.caller, self.left = caller, texts
        self.answers: list[Answer] = [{}] * texts
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[Answer]] = self._loop.create_future()
        self.abandoned = False

    def settle(self, error: Exception | None = None) -> None:
        """Wakes whoever waits, with the answers or an error; any thread may call it."""

        def settle() -> None:
            if self.future.done():
                return
            if error is None:
                self.future.set_result(self.answers)
            else:
                self.future.set_exception(error)

        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
            self._loop.call_soon_threadsafe(settle)


@dataclasses.dataclass(eq=False)
class Job:
    """One text of a request.

    Attributes:
      request: the request.
      place: place of the text in it.
      text: the text.
      task: name of its task; None to find it from the text.
      read: its prompt, once it is read.
      reader: the labeller that has read it.
    """

    request: Pending
    place: int
    text: str
    task: str | None
    read: Read | None = None
    reader: object = None


class TextQueue:
    """Texts that wait. Many may add to it, and one thread takes from it."""

    def __init__(self, limits: Limits):
        """Takes as many texts as the limits allow."""
        self._limits = limits
        self._jobs: collections.deque[Job] = collections.deque()
        self._of_caller: collections.Counter[str] = collections.Counter()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        """The number of texts that wait, those of the batch in work included."""
        return len(self._jobs)

    def add(self, jobs: Sequence[Job], retry_after: int) -> None:
        """Adds all texts of a request, or none.

        Args:
          jobs: at least one.
          retry_after: seconds that a refusal names.

        Raises:
          Refused: too many texts wait, or the queue is closed.
        """
        limits, caller, count = self._limits, jobs[0].request.caller, len(jobs)
        with self._changed:
            if self._closed:
                raise Refused(503, "the service stops; try again", retry_after)
            if len(self) + count > limits.queue_texts:
                waiting = f"{len(self)} texts wait, of at most {limits.queue_texts}"
                raise Refused(503, f"{waiting}; try again later", retry_after)
            own = self._of_caller[caller]
            if own + count > limits.caller_texts:
                waiting = f"{own} texts of this caller wait, of at most {limits.caller_texts}"
                raise Refused(429, f"{waiting}; try again later", retry_after)
            self._of_caller[caller] += count
            self._jobs.extend(jobs)
            self._changed.notify()

    def oldest(self, enough: int) -> list[Job]:
        """The texts that wait longest, up to twice as many as fill a batch; they stay in the queue.

        Waits for a text, and then a moment for a batch to be filled, since callers that were just
        answered often ask again at once. Gives none when the queue is closed and empty.
        """
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._closed or self._jobs)
                self._changed.wait_for(
                    lambda: self._closed or len(self) >= enough, self._limits.linger_seconds
                )
                self._remove([job for job in self._jobs if job.request.abandoned])
                if self._jobs or self._closed:
                    return list(itertools.islice(self._jobs, 2 * enough))

    def remove(self, jobs: Sequence[Job]) -> None:
        """Takes texts out."""
        with self._changed:
            self._remove(jobs)

    def close(self) -> None:
        """Takes no more texts."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _remove(self, jobs: Sequence[Job]) -> None:
        gone = set(jobs)
        if gone:
            self._jobs = collections.deque(job for job in self._jobs if job not in gone)
            self._of_caller -= collections.Counter(job.request.caller for job in gone)
