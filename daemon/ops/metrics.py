"""The control plane's metrics, in a registry of their own.

* Names and units follow Prometheus' conventions; moments are exported, not ages.
* Label sets are closed and made at start, so that a rate starts at zero; ids never become labels.
* A number that nobody has measured yet is absent, not zero.
* Counters of events count journal entries, so that metrics and record tell the same story.

The data plane exports its own.
"""

from collections.abc import Mapping
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from policies.lifecycle import Stage
from policies.terms import Finding, Level, Signal

MONITORS = ("drift", "errors", "latency")
JOBS = ("turn", "verify", "snapshot", "housekeeping", "clock")
STORES = ("journal", "blobs", "samples", "spool")
_DELAYS = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 900, 3600, 86400)
_LAGS = (0.001, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 300)
_JOB_SECONDS = (5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 14400)


class ControlMetrics:
    """Everything that ``instard`` exports."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._levels: dict[str, Level] = {}
        self.registry = CollectorRegistry()
        r = self.registry
        per_monitor = ["model", "detector"]
        self._score = Gauge(
            "instar_drift_score_ratio", "Monitor's score; 1 is its threshold.", per_monitor, registry=r
        )
        self._alarms = Counter("instar_drift_alarms", "Alarms raised.", per_monitor, registry=r)
        self._window = Gauge(
            "instar_drift_window_samples", "Rows a signal rests on.", per_monitor, registry=r
        )
        self._last = Gauge(
            "instar_monitor_last_run_timestamp_seconds", "When it last spoke.", ["monitor"], registry=r
        )
        self._interval = Gauge(
            "instar_monitor_interval_seconds", "How often it speaks.", ["monitor"], registry=r
        )
        self._quality = Gauge(
            "instar_quality_estimate_ratio", "Measured quality.", ["model", "metric"], registry=r
        )
        self._quality_low = Gauge(
            "instar_quality_interval_lower_ratio", "Its lower bound.", ["model", "metric"], registry=r
        )
        self._delay = Histogram(
            "instar_labels_delay_seconds", "From request to label.", ["model"], buckets=_DELAYS, registry=r
        )
        self._searches = Counter(
            "instar_search_jobs", "Searches that ended.", ["kind", "outcome"], registry=r
        )
        self._search_seconds = Histogram(
            "instar_search_job_duration_seconds",
            "Wall time of searches.",
            ["kind", "outcome"],
            buckets=_JOB_SECONDS,
            registry=r,
        )
        self._trials = Counter(
            "instar_search_trials", "Architectures that searches looked at.", ["outcome"], registry=r
        )
        self._budget = Gauge("instar_search_budget_used_ratio", "Of the day's CPU-seconds.", registry=r)
        self._candidates = Gauge("instar_candidates", "Candidates.", ["model", "stage"], registry=r)
        self._checks = Counter("instar_guard_checks", "Verdicts.", ["guard", "outcome"], registry=r)
        self._rollbacks = Counter("instar_guard_rollbacks", "Newcomers reverted.", ["reason"], registry=r)
        self._canary = Gauge("instar_canary_traffic_ratio", "Newcomer's share.", ["model"], registry=r)
        self._approvals = Counter("instar_approvals", "Signed decisions.", ["decision"], registry=r)
        self._pending = Gauge(
            "instar_approval_oldest_pending_timestamp_seconds", "Since when one waits; 0: none.", registry=r
        )
        self._policy = Info("instar_policy", "The policy in force.", registry=r)
        self._reloads = Counter("instar_policy_reloads", "Policies read.", ["outcome"], registry=r)
        self._frozen = Gauge("instar_frozen", "1 while adaptation is frozen.", ["scope"], registry=r)
        self._entries = Counter("instar_audit_entries", "Entries written since the start.", registry=r)
        self._valid = Gauge("instar_audit_chain_valid", "1 when the chain verified.", registry=r)
        self._verified = Gauge(
            "instar_audit_last_verified_timestamp_seconds", "When it was last verified.", registry=r
        )
        self._free = Gauge("instar_store_free_bytes", "Free bytes under the state folder.", registry=r)
        self._stored = Gauge("instar_store_bytes", "Bytes under the state folder.", ["kind"], registry=r)
        self._lag = Histogram(
            "instar_scheduler_lag_seconds", "From due to run.", ["job"], buckets=_LAGS, registry=r
        )
        self._runs = Counter("instar_scheduler_runs", "Runs of jobs.", ["job", "outcome"], registry=r)
        self._jumps = Counter("instar_clock_jumps", "Wall clock jumps.", ["direction"], registry=r)
        Info("instar_build", "What runs.", registry=r).info({"version": version("instar")})
        self._prepare()

    def _prepare(self) -> None:
        """Make every child of a closed label set."""
        for monitor in MONITORS:
            self._alarms.labels(self._model, monitor)
            self._interval.labels(monitor).set(0)
        for kind in ("founding", "data", "latency"):
            for outcome in ("done", "failed"):
                self._searches.labels(kind, outcome)
                self._trials.labels(outcome)
                self._search_seconds.labels(kind, outcome)
        for decision in ("approve", "decline", "refused"):
            self._approvals.labels(decision)
        for outcome in ("accepted", "refused"):
            self._reloads.labels(outcome)
        for job in JOBS:
            self._lag.labels(job)
            for outcome in ("ok", "error"):
                self._runs.labels(job, outcome)
        for direction in ("forward", "backward"):
            self._jumps.labels(direction)
        for reason in ("probation", "operator", "data_plane"):
            self._rollbacks.labels(reason)
        for stage in Stage:
            self._candidates.labels(self._model, stage.value)
        self._frozen.labels("task").set(0)
        self._delay.labels(self._model)

    def interval(self, seconds: float) -> None:
        """Say how often the monitors speak."""
        for monitor in MONITORS:
            self._interval.labels(monitor).set(seconds)

    def monitor(self, signal: Signal) -> None:
        """Take one monitor's statement in."""
        name = signal.monitor
        self._last.labels(name).set(signal.at)
        self._window.labels(self._model, name).set(signal.n)
        if signal.score is not None:
            self._score.labels(self._model, name).set(signal.score)
        if signal.level is Level.ALARM and self._levels.get(name) is not Level.ALARM:
            self._alarms.labels(self._model, name).inc()
        self._levels[name] = signal.level
        if "accuracy" in signal.facts:
            self._quality.labels(self._model, "accuracy").set(signal.facts["accuracy"])
        if "accuracy_low" in signal.facts:
            self._quality_low.labels(self._model, "accuracy").set(signal.facts["accuracy_low"])

    def entry(self, kind: str, body: Mapping[str, object]) -> None:
        """Count a journal entry: metrics tell the same events as the record."""
        self._entries.inc()
        match kind:
            case "search.ended":
                labels = (str(body["kind"]), str(body["outcome"]))
                self._searches.labels(*labels).inc()
                wall = body["wall_s"]
                self._search_seconds.labels(*labels).observe(wall if isinstance(wall, int | float) else 0)
                looked_at = body.get("architectures", 0)
                self._trials.labels(labels[1]).inc(looked_at if isinstance(looked_at, int) else 0)
            case "dossier.sealed":
                findings = body["findings"]
                for guard, finding in findings.items() if isinstance(findings, Mapping) else ():
                    self._checks.labels(guard, Finding(finding).value).inc()
            case "approval.received":
                self._approvals.labels(str(body["decision"])).inc()
            case "approval.refused":
                self._approvals.labels("refused").inc()
            case "policy.loaded":
                self._reloads.labels("accepted").inc()
                self._policy.info({"digest": str(body["digest"])})
            case "policy.refused":
                self._reloads.labels("refused").inc()
            case "candidate.moved" if body["to"] == "ROLLED_BACK":
                self._rollbacks.labels(str(body.get("cause", "probation"))).inc()

    def fold(
        self,
        *,
        stages: Mapping[str, int],
        frozen: bool,
        chain_valid: bool | None,
        verified_at: float | None,
        newcomer_share: float,
        pending_since: float | None,
        budget_used: float,
        free_bytes: int,
    ) -> None:
        """Take the state after a turn in."""
        for stage, count in stages.items():
            self._candidates.labels(self._model, stage).set(count)
        self._frozen.labels("task").set(frozen)
        self._valid.set(chain_valid is True)
        if verified_at is not None:
            self._verified.set(verified_at)
        self._canary.labels(self._model).set(newcomer_share)
        self._pending.set(0 if pending_since is None else pending_since)
        self._budget.set(budget_used)
        self._free.set(free_bytes)

    def label_delay(self, seconds: float) -> None:
        """Take one label's delay in; seconds >= 0."""
        self._delay.labels(self._model).observe(seconds)

    def scheduler_run(self, job: str, outcome: str) -> None:
        """Count a run of a scheduled job."""
        self._runs.labels(job, outcome).inc()

    def scheduler_lag(self, job: str, seconds: float) -> None:
        """Take in how late a scheduled job ran; seconds >= 0."""
        self._lag.labels(job).observe(seconds)

    def stored(self, sizes: Mapping[str, int]) -> None:
        """Take in how many bytes each of ``STORES`` takes."""
        for kind, size_bytes in sizes.items():
            self._stored.labels(kind).set(size_bytes)

    def clock_jump(self, seconds: float) -> None:
        """Count a jump of the wall clock."""
        self._jumps.labels("forward" if seconds > 0 else "backward").inc()

    def exposition(self) -> tuple[bytes, str]:
        """Return the text format and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
