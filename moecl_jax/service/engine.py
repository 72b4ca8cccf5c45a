"""The queue of a service, and the one thread that answers it.

Texts of all requests wait in one queue, in the order of their coming. The thread takes the texts
that fill a batch with the first one, whatever requests and tasks they belong to, and answers a
request when all its texts are done. While a batch is computed, the next ones gather.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from moecl_jax.decisions import Drift
from moecl_jax.outside import shortened
from moecl_jax.service.labelling import Read
from moecl_jax.service.limits import Limits, Refused
from moecl_jax.service.metrics import Metrics
from moecl_jax.service.policy import Policy
from moecl_jax.service.queue import Answer, Job, Pending, TextQueue
from moecl_jax.serving.prompts import Prompt

_log = logging.getLogger(__name__)


class Labelling(Protocol):
    """What an engine asks of a `Labeller`, which says what each of these means."""

    checkpoint: str
    most_texts: int

    @property
    def tasks(self) -> list[str]: ...  # noqa: D102
    @property
    def labels(self) -> Mapping[str, Sequence[str]]: ...  # noqa: D102
    @property
    def drifts(self) -> Mapping[str, Drift]: ...  # noqa: D102
    @property
    def choosing_problem(self) -> str | None: ...  # noqa: D102
    def read(self, texts: Sequence[tuple[str, str | None]]) -> list[Read]: ...  # noqa: D102
    def next_batch(self, prompts: Sequence[Prompt]) -> list[int]: ...  # noqa: D102
    def label(self, prompts: Sequence[Prompt]) -> list[Answer]: ...  # noqa: D102


class Engine:
    """Answers the texts of many requests at once.

    Attributes:
      policy: decides labelled texts.
      limits: what is accepted.
      metrics: what is counted.
      draining: whether new requests are refused, since the service stops.
      closing: is set when the engine is closed.
    """

    def __init__(
        self,
        labeller: Labelling,
        policy: Policy | None = None,
        limits: Limits | None = None,
        metrics: Metrics | None = None,
    ):
        """Answers with a labeller whose programs are compiled; `start` starts it."""
        self.policy, self.limits = policy or Policy(), limits or Limits()
        self.metrics = metrics or Metrics()
        self.draining = False
        self.closing = threading.Event()
        self._labeller = labeller
        self._queue = TextQueue(self.limits)
        self._rate = 0.0  # texts a second of late batches
        self._thread = threading.Thread(target=self._run, name="moecl-engine", daemon=True)
        self.metrics.watch_queue(lambda: len(self._queue))
        self.metrics.watch_drift(lambda: self._labeller.drifts)

    @property
    def labeller(self) -> Labelling:
        """What answers now."""
        return self._labeller

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Refuses new requests, answers all that were accepted, and ends the thread."""
        self.draining = True
        self.closing.set()
        self._queue.close()
        if self.alive:
            self._thread.join()

    def switch(self, labeller: Labelling) -> None:
        """Answers with another labeller, whose programs are compiled, from the next batch on."""
        self._labeller = labeller
        self.metrics.switches.inc()

    async def classify(
        self, texts: Sequence[str], task: str | None = None, *, caller: str = "local"
    ) -> list[Answer]:
        """Labels texts and decides them.

        Args:
          texts: texts with a visible character each.
          task: name of a task with labels; None to find each text's from the text.
          caller: name of whoever asks.

        Returns:
          For each text `task`, `label`, `probabilities` (by label), `decision` ("pass", "block" or
          "review"), `thresholds` and `checkpoint` (versions of what answered) and `truncated`.
          Where a text cannot be labelled, `error` says why, `label` is None, `probabilities` is
          empty, and a person has to review it.

        Raises:
          Refused: there is no such task, too much waits, the service stops, or time is over.
        """
        self._check_task(task)
        if not texts:
            return []
        if self.draining or not self.alive:
            raise Refused(503, "the service stops; try again", 5)
        request = Pending(len(texts), caller)
        jobs = [Job(request, place, text, task) for place, text in enumerate(texts)]
        self._queue.add(jobs, self._retry_after())
        try:
            return await asyncio.wait_for(request.future, self.limits.answer_seconds)
        except TimeoutError as error:
            raise Refused(
                503,
                f"not answered within {self.limits.answer_seconds:g} s; send fewer texts at a time",
                self._retry_after(),
            ) from error
        finally:
            if not request.future.done() or request.future.cancelled():
                request.abandoned = True

    def _check_task(self, task: str | None) -> None:
        labeller = self._labeller
        if task is not None and task not in labeller.tasks:
            known = ", ".join(labeller.tasks)
            raise Refused(422, f"there is no task {shortened(task)} with labels; tasks are {known}")
        if task is None and labeller.choosing_problem is not None:
            raise Refused(422, f"name a task of {', '.join(labeller.tasks)}")

    def _retry_after(self) -> int:
        """About when the texts that wait now are answered [s]; from 1 to 60."""
        seconds = len(self._queue) / self._rate if self._rate else 1.0
        return max(1, min(60, math.ceil(seconds)))

    def _run(self) -> None:
        while jobs := self._queue.oldest(self._labeller.most_texts):
            batch = jobs
            try:
                batch = self._answer(self._labeller, jobs)
            except Exception as error:  # whatever it is, whoever waits must hear of it
                _log.exception("a batch out of %d texts failed", len(jobs))
                for request in {job.request for job in jobs}:
                    request.abandoned = True
                    request.settle(error)
            self._queue.remove(batch)
            for job in batch:
                job.request.left -= 1
                if not job.request.left:
                    job.request.settle()

    def _answer(self, labeller: Labelling, jobs: Sequence[Job]) -> list[Job]:
        """Answers a batch out of the texts that wait longest; gives its texts."""
        started = time.monotonic()
        self._read(labeller, jobs)
        prompts = [None if job.read is None else job.read.prompt for job in jobs]
        able = [(job, prompt) for job, prompt in zip(jobs, prompts, strict=True) if prompt]
        unable = [job for job, prompt in zip(jobs, prompts, strict=True) if not prompt]
        for job in unable:
            self._put(labeller, job, {"error": job.read.problem if job.read else None})
        if not able:
            return unable
        places = labeller.next_batch([prompt for _, prompt in able])
        batch = [able[place][0] for place in places]
        answers = labeller.label([able[place][1] for place in places])
        for job, answer in zip(batch, answers, strict=True):
            self._put(labeller, job, answer)
        self._measure(len(batch), time.monotonic() - started)
        return unable + batch

    def _read(self, labeller: Labelling, jobs: Sequence[Job]) -> None:
        """Reads the texts that this labeller has not read."""
        new = [job for job in jobs if job.reader is not labeller]
        known = {*labeller.tasks, *([None] if labeller.choosing_problem is None else [])}
        able = [job for job in new if job.task in known]
        found = labeller.read([(job.text, job.task) for job in able]) if able else []
        for job in new:
            job.reader, job.read = labeller, Read(None, job.task, problem="the task is gone")
        for job, read in zip(able, found, strict=True):
            job.read = read

    def _put(self, labeller: Labelling, job: Job, labelled: Answer) -> None:
        """Decides a text that was labelled, or was not, and keeps the whole answer to it."""
        task = None if job.read is None else job.read.task
        decision = "review"
        if "error" not in labelled and task is not None:
            decision = self.policy.decide(task, labelled["probabilities"])
            self._watch(labeller, task, labelled["probabilities"])
        self.metrics.texts.labels(task or "none", decision).inc()
        job.request.answers[job.place] = {
            "task": task,
            "label": labelled.get("label"),
            "probabilities": labelled.get("probabilities", {}),
            "decision": decision,
            "thresholds": None if task is None else self.policy.version(task),
            "checkpoint": labeller.checkpoint,
            "truncated": job.read is not None and job.read.truncated,
            "error": labelled.get("error"),
        }

    def _watch(self, labeller: Labelling, task: str, probabilities: Mapping[str, float]) -> None:
        """Adds a text's scores to those that are compared with validation texts'."""
        drift = labeller.drifts.get(task)
        if drift is None:
            return
        before = drift.found.drifted
        drift.add(np.array([probabilities[label] for label in labeller.labels[task]]))
        if drift.found.drifted and not before:
            _log.warning(
                "the scores of task %s are no longer those of its validation texts (adjusted "
                "p = %.2g after %d texts): choose new thresholds, or train on",
                task,
                drift.found.p_value,
                drift.found.texts,
            )

    def _measure(self, texts: int, seconds: float) -> None:
        self.metrics.batch_texts.observe(texts)
        self.metrics.batch_seconds.observe(seconds)
        rate = texts / max(seconds, 1e-6)
        self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate
