"""The data plane's metrics, in a registry of their own.

* What every request touches is counted in plain numbers here and told when somebody scrapes: the client
  library's own histogram costs as much as parsing a small request.
* Every label child exists from the start, so that a rate over a quiet series is 0 and not absent.
* The newest swap's model stands in ``model_info``; times are seconds since the epoch.
* The histogram has a bucket at 25 ms, the latency ceiling that alerts burn against.

Written by ``engine.py``, the fronts, ``keeper.py`` and the spool; read by the metrics listener.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from policies.telemetry import OUTCOMES

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()

SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0)
SWAP_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
SWAP_OUTCOMES = ("ok", "refused")
EXITS = ("early", "last")


class Told(Protocol):
    """What is counted of a request that a run answered."""

    @property
    def outcome(self) -> str:
        """One of ``policies.telemetry.OUTCOMES``."""

    @property
    def latency_ms(self) -> float:
        """From the whole request to its answer."""


class Buckets:
    """A histogram in plain numbers; whoever writes holds the lock.

    >>> counted = Buckets((1.0, 2.0))
    >>> for value in (0.5, 2.0, 9.0): counted.add(value)
    >>> counted.told(), counted.sum
    ([('1.0', 1), ('2.0', 2), ('+Inf', 3)], 11.5)
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def told(self) -> list[tuple[str, int]]:
        """Return the counts up to every bound, as Prometheus has it."""
        total, told = 0, []
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for name, count in zip(names, self._counts, strict=True):
            total += count
            told.append((name, total))
        return told


class ServeMetrics:
    """All metrics of one model's data plane."""

    def __init__(self, model: str, version: str) -> None:
        # The ``_created`` series double every counter and fail promtool's lint.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._model = model
        self._lock = threading.Lock()
        self._requests = dict.fromkeys(OUTCOMES, 0)
        self._exits = dict.fromkeys(EXITS, 0)
        self._duration, self._rows = Buckets(SECONDS), Buckets(ROWS)
        self.in_flight: Callable[[], int] = int
        self.connections: Callable[[], int] = int
        self.registry.register(self)
        swaps = self._counter("swaps", "Deployments that were applied or refused.", "outcome")
        self._swaps = {outcome: swaps.labels(model, outcome) for outcome in SWAP_OUTCOMES}
        self._swap_seconds = Histogram(
            "instar_serve_swap_duration_seconds",
            "From a wanted deployment to its table.",
            ["model"],
            buckets=SWAP_SECONDS,
            registry=self.registry,
        ).labels(model)
        self._info = Info("instar_serve_model", "The stable model.", ["model"], registry=self.registry)
        self._info.labels(model).info({"version": "none", "digest": "none"})
        self._model_info = self._info.labels(model)
        self.loaded = self._gauge("model_loaded_timestamp_seconds", "When the stable model came.", model)
        self.canary = self._gauge("canary_traffic_ratio", "Share of requests to the newcomer.", model)
        dropped = self._counter("telemetry_dropped", "Rows that the spool lost.", "kind")
        self._dropped = {kind: dropped.labels(model, kind) for kind in ("telemetry", "samples")}
        build = Gauge("instar_build_info", "The version that runs.", ["version"], registry=self.registry)
        build.labels(version).set(1)

    def count(self, outcome: str) -> None:
        """Count one request that no run answered."""
        with self._lock:
            self._requests[outcome] += 1

    def ran(self, rows: int, told: Sequence[Told]) -> None:
        """Count one run of the model, and the requests that it answered."""
        with self._lock:
            self._rows.add(rows)
            for each in told:
                self._requests[each.outcome] += 1
                self._duration.add(each.latency_ms / 1e3)

    def left(self, early: int, last: int) -> None:
        """Count rows of a model with an early exit, by where they left it."""
        with self._lock:
            self._exits["early"] += early
            self._exits["last"] += last

    def drop(self, kind: str, rows: int) -> None:
        """Count rows that telemetry lost; called from the writer thread too."""
        self._dropped[kind].inc(rows)

    def swap(self, outcome: str, seconds: float) -> None:
        """Count one applied or refused deployment."""
        self._swaps[outcome].inc()
        self._swap_seconds.observe(seconds)

    def stable(self, generation: int | None, digest: str | None, at: float) -> None:
        """Tell which model is stable since ``at``."""
        self._model_info.info({"version": str(generation or "none"), "digest": digest or "none"})
        self.loaded.set(at if generation else 0.0)

    def text(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Tell the client library what was counted in plain numbers."""
        with self._lock:
            counters = [
                ("requests", "Requests answered or refused.", "outcome", dict(self._requests)),
                ("exits", "Rows by where they left a model with an early exit.", "exit", dict(self._exits)),
            ]
            histograms = [
                ("request_duration_seconds", "From the whole request to its answer.", self._duration),
                ("batch_size", "Rows of one run of the model.", self._rows),
            ]
            told = [(name, text, each.told(), each.sum) for name, text, each in histograms]
        gauges = [
            ("in_flight_requests", "Requests being worked on.", self.in_flight()),
            ("open_connections", "Connections of the inference port.", self.connections()),
        ]
        for name, text, label, counted in counters:
            counter = CounterMetricFamily(f"instar_serve_{name}", text, labels=["model", label])
            for value, count in counted.items():
                counter.add_metric([self._model, value], count)
            yield counter
        for name, text, number in gauges:
            gauge = GaugeMetricFamily(f"instar_serve_{name}", text, labels=["model"])
            gauge.add_metric([self._model], number)
            yield gauge
        for name, text, buckets, total in told:
            family = HistogramMetricFamily(f"instar_serve_{name}", text, labels=["model"])
            family.add_metric([self._model], buckets, total)
            yield family

    def _counter(self, name: str, text: str, label: str) -> Counter:
        return Counter(f"instar_serve_{name}", text, ["model", label], registry=self.registry)

    def _gauge(self, name: str, text: str, model: str) -> Gauge:
        return Gauge(f"instar_serve_{name}", text, ["model"], registry=self.registry).labels(model)
