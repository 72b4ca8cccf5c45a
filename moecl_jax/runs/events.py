"""TensorBoard's event files, written where the training is and not in a thread behind it.

The writer of tensorboardX has a thread of its own. If the disk fails in it, the thread ends, and
the training waits for ever for a place in its queue.
"""

import socket
import time
from pathlib import Path

import numpy as np

from moecl_jax.writing import named

_FLUSH_SECONDS = 30.0
_BUCKETS = 30  # of a histogram, which is what TensorBoard draws


class EventsFile:
    """A new event file of a run: numbers by name and step."""

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        """Creates the file.

        Args:
          folder: gets the file, and is created if needed.
          purge_step: TensorBoard forgets what earlier files of the folder say of this step and
            later ones; None: it forgets nothing.

        Raises:
          OSError: it cannot be written; names the file.
        """
        # Here, because the import takes a while and is not always wanted.
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._histogram = summary_pb2.HistogramProto
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._flushed = time.monotonic()
        with named(self.path):
            self._records = RecordWriter(str(self.path))
        self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(self._event(wall_time=time.time(), step=purge_step, session_log=start))

    def add(self, name: str, value: float, step: int) -> None:
        """Adds a number.

        Args:
          name: name of the curve.
          value: any number that float32 can hold.
          step: the global step.

        Raises:
          OSError: it cannot be written; names the file.
        """
        summary = self._summary(value=[self._summary.Value(tag=name, simple_value=value)])
        self._write(self._event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush()
            self._flushed = time.monotonic()

    def add_histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """Adds a histogram.

        Args:
          name: its name.
          values: numbers that float32 can hold, in any shape; at least one.
          step: the global step.

        Raises:
          OSError: it cannot be written; names the file.
        """
        wide = np.asarray(values, np.float64).ravel()
        counts, edges = np.histogram(wide, bins=_BUCKETS)
        histogram = self._histogram(
            min=wide.min(),
            max=wide.max(),
            num=wide.size,
            sum=wide.sum(),
            sum_squares=np.square(wide).sum(),
            bucket_limit=edges[1:].tolist(),
            bucket=counts.tolist(),
        )
        summary = self._summary(value=[self._summary.Value(tag=name, histo=histogram)])
        self._write(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Writes out what is buffered and closes the file.

        Raises:
          OSError: it cannot be written; names the file.
        """
        try:
            self._flush()
        finally:
            with named(self.path):
                self._records.close()

    def _flush(self) -> None:
        with named(self.path):
            self._records.flush()

    def _write(self, event: object) -> None:
        with named(self.path):
            self._records.write(event.SerializeToString())  # type: ignore[attr-defined]
