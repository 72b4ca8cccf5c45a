"""What a service counts and measures, for Prometheus."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from moecl_jax.decisions import Drift

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The counters of one service.

    Attributes:
      requests: requests that were answered, by route and status.
      request_seconds: time from a request's head to its answer [s], by route.
      texts: texts that were answered, by task and decision.
      batch_texts: texts of a batch.
      batch_seconds: time that a batch took [s].
      switches: changes to another checkpoint.
    """

    def __init__(self) -> None:
        """Starts all of them at 0."""
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "moecl_requests", "requests answered", ["route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "moecl_request_seconds",
            "time from request to answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.texts = Counter(
            "moecl_texts", "texts answered", ["task", "decision"], registry=registry
        )
        self.batch_texts = Histogram(
            "moecl_batch_texts", "texts of a batch", buckets=_TEXTS, registry=registry
        )
        self.batch_seconds = Histogram(
            "moecl_batch_seconds", "time of a batch", buckets=_SECONDS, registry=registry
        )
        self.switches = Counter(
            "moecl_checkpoint_switches", "changes to another checkpoint", registry=registry
        )

    def watch_queue(self, waiting: Callable[[], float]) -> None:
        """Shows the number of texts that wait."""
        gauge = Gauge("moecl_queue_texts", "texts that wait for an answer", registry=self._registry)
        gauge.set_function(waiting)

    def watch_drift(self, drifts: Callable[[], Mapping[str, Drift]]) -> None:
        """Shows what was found of the tasks whose scores are watched, by task."""
        self._registry.register(_Drifts(drifts))

    def text(self) -> bytes:
        """All of them in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)


class _Drifts(Collector):
    """Reads what was found when it is asked for, as the tasks change with the checkpoint."""

    def __init__(self, drifts: Callable[[], Mapping[str, Drift]]):
        self._drifts = drifts

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """A gauge for each figure, with a value for each task."""
        drifted = GaugeMetricFamily(
            "moecl_score_drift", "1 where scores have drifted from validation's", labels=["task"]
        )
        p_value = GaugeMetricFamily(
            "moecl_score_drift_p_value", "least adjusted p-value so far", labels=["task"]
        )
        for task, drift in self._drifts().items():
            drifted.add_metric([task], float(drift.found.drifted))
            p_value.add_metric([task], drift.found.p_value)
        yield from (drifted, p_value)
