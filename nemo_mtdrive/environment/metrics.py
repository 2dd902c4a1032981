"""What the server tells Prometheus, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the latency histogram [s]."""
PREFIX = "nemo_mtdrive_environment"


class _Totals(Collector):
    """Counters that live elsewhere and are read when they are asked for."""

    def __init__(self, totals: dict[str, tuple[str, Callable[[], float]]]) -> None:
        self._totals = totals

    def collect(self) -> list[Metric]:
        return [CounterMetricFamily(f"{PREFIX}_{name}", text, value=read())
                for name, (text, read) in self._totals.items()]


class ServerMetrics:
    """Requests by route and status, latency, queue, episodes, scored trajectories and workers."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(f"{PREFIX}_requests", "Requests answered", ("route", "status"), registry=self._registry)
        self._seconds = Histogram(f"{PREFIX}_request_seconds", "From a request's head to its reply", ("route",),
                                  buckets=SECONDS, registry=self._registry)
        ProcessCollector(registry=self._registry)

    def watch(self, gauges: dict[str, tuple[str, Callable[[], float]]],
              totals: dict[str, tuple[str, Callable[[], float]]]) -> None:
        """Values to read at each scrape: name -> (help, how to read it)."""
        for name, (text, read) in gauges.items():
            Gauge(f"{PREFIX}_{name}", text, registry=self._registry).set_function(read)
        self._registry.register(_Totals(totals))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
