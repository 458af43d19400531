"""The data plane's metrics, in a registry of their own.

* Every label child exists from the start, so that a rate over a quiet series is 0 and not absent.
* The newest swap's model stands in ``model_info``; times are seconds since the epoch.
* The histogram has a bucket at 25 ms, the latency ceiling that alerts burn against.

Written by ``batcher.py``, ``front.py``, ``keeper.py`` and the spool; read by the metrics listener.
"""

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

from policies.telemetry import OUTCOMES

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()

SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0)
SWAP_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
SWAP_OUTCOMES = ("ok", "refused")


class ServeMetrics:
    """All metrics of one model's data plane."""

    def __init__(self, model: str, version: str) -> None:
        # The ``_created`` series double every counter and fail promtool's lint.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        requests = self._counter("requests", "Requests answered or refused.", "outcome")
        self._requests = {outcome: requests.labels(model, outcome) for outcome in OUTCOMES}
        self._duration = self._histogram(
            "request_duration_seconds", "From the whole request to its answer.", SECONDS, model
        )
        self.in_flight = self._gauge("in_flight_requests", "Requests being worked on.", model)
        self.batch_size = self._histogram("batch_size", "Rows of one run of the model.", ROWS, model)
        swaps = self._counter("swaps", "Deployments that were applied or refused.", "outcome")
        self._swaps = {outcome: swaps.labels(model, outcome) for outcome in SWAP_OUTCOMES}
        self._swap_seconds = self._histogram(
            "swap_duration_seconds", "From a wanted deployment to its table.", SWAP_SECONDS, model
        )
        self._info = Info("instar_serve_model", "The stable model.", ["model"], registry=self.registry)
        self._info.labels(model).info({"version": "none", "digest": "none"})
        self._model_info = self._info.labels(model)
        self.loaded = self._gauge("model_loaded_timestamp_seconds", "When the stable model came.", model)
        self.canary = self._gauge("canary_traffic_ratio", "Share of requests to the newcomer.", model)
        dropped = self._counter("telemetry_dropped", "Rows that the spool lost.", "kind")
        self._dropped = {kind: dropped.labels(model, kind) for kind in ("telemetry", "samples")}
        build = Gauge("instar_build_info", "The version that runs.", ["version"], registry=self.registry)
        build.labels(version).set(1)

    def count(self, outcome: str, seconds: float | None = None) -> None:
        """Count one request; ``seconds`` when it was worked on."""
        self._requests[outcome].inc()
        if seconds is not None:
            self._duration.observe(seconds)

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

    def _counter(self, name: str, text: str, label: str) -> Counter:
        return Counter(f"instar_serve_{name}", text, ["model", label], registry=self.registry)

    def _gauge(self, name: str, text: str, model: str) -> Gauge:
        return Gauge(f"instar_serve_{name}", text, ["model"], registry=self.registry).labels(model)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], model: str) -> Histogram:
        histogram = Histogram(
            f"instar_serve_{name}", text, ["model"], buckets=buckets, registry=self.registry
        )
        return histogram.labels(model)
