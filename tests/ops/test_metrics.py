"""The control plane's metrics: what was fed is told, names are lawful, what is unknown is absent."""

import shutil
import subprocess

import pytest

from daemon.ops.metrics import JOBS, ControlMetrics
from policies.lifecycle import Stage
from policies.terms import Level, Signal

NAMES = """
instar_drift_score_ratio instar_drift_alarms_total instar_drift_window_samples
instar_monitor_last_run_timestamp_seconds instar_monitor_interval_seconds instar_quality_estimate_ratio
instar_quality_interval_lower_ratio instar_search_jobs_total instar_search_job_duration_seconds_bucket
instar_search_budget_used_ratio instar_search_trials_total instar_candidates instar_guard_checks_total
instar_guard_rollbacks_total instar_canary_traffic_ratio instar_approvals_total
instar_approval_oldest_pending_timestamp_seconds instar_policy_info instar_policy_reloads_total instar_frozen
instar_audit_entries_total instar_audit_chain_valid instar_audit_last_verified_timestamp_seconds
instar_store_bytes instar_store_free_bytes instar_scheduler_runs_total instar_scheduler_lag_seconds_bucket
instar_clock_jumps_total instar_labels_delay_seconds_bucket instar_build_info
"""


def signal(level: Level, **facts: float) -> Signal:
    return Signal(monitor="drift", level=level, score=1.5, at=5.0, n=10, reason="r", facts=facts)


def fed() -> ControlMetrics:
    metrics = ControlMetrics("meter-reader")
    for level in (Level.QUIET, Level.ALARM, Level.ALARM):
        metrics.monitor(signal(level, accuracy=0.9, accuracy_low=0.8))
    metrics.interval(1.0)
    metrics.entry("search.ended", {"kind": "data", "outcome": "done", "wall_s": 30.0, "architectures": 40})
    metrics.entry("dossier.sealed", {"findings": {"floor": "pass"}})
    metrics.entry("policy.loaded", {"digest": "sha256:0"})
    metrics.entry("policy.refused", {"reason": "r"})
    metrics.entry("approval.received", {"decision": "approve"})
    metrics.entry("approval.refused", {"reason": "r"})
    metrics.entry("candidate.moved", {"to": "LIVE"})
    metrics.entry("candidate.moved", {"to": "ROLLED_BACK"})
    metrics.fold(
        stages={"LIVE": 1},
        frozen=True,
        chain_valid=True,
        verified_at=9.0,
        newcomer_share=0.3,
        pending_since=None,
        budget_used=0.5,
        free_bytes=10,
    )
    metrics.label_delay(12.0)
    metrics.scheduler_run("turn", "ok")
    metrics.scheduler_lag("turn", 0.02)
    metrics.stored({"journal": 4096})
    metrics.clock_jump(-3600.0)
    return metrics


def lines(metrics: ControlMetrics) -> list[str]:
    return metrics.exposition()[0].decode().splitlines()


@pytest.mark.parametrize(
    "line",
    [
        'instar_drift_alarms_total{detector="drift",model="meter-reader"} 1.0',
        'instar_drift_score_ratio{detector="drift",model="meter-reader"} 1.5',
        'instar_quality_interval_lower_ratio{metric="accuracy",model="meter-reader"} 0.8',
        'instar_monitor_last_run_timestamp_seconds{monitor="drift"} 5.0',
        'instar_monitor_interval_seconds{monitor="errors"} 1.0',
        'instar_search_jobs_total{kind="data",outcome="done"} 1.0',
        'instar_search_jobs_total{kind="data",outcome="failed"} 0.0',
        'instar_search_job_duration_seconds_sum{kind="data",outcome="done"} 30.0',
        'instar_search_trials_total{outcome="done"} 40.0',
        'instar_guard_checks_total{guard="floor",outcome="pass"} 1.0',
        'instar_guard_rollbacks_total{reason="probation"} 1.0',
        'instar_candidates{model="meter-reader",stage="LIVE"} 1.0',
        'instar_approvals_total{decision="approve"} 1.0',
        'instar_approvals_total{decision="refused"} 1.0',
        'instar_policy_reloads_total{outcome="refused"} 1.0',
        'instar_policy_info{digest="sha256:0"} 1.0',
        'instar_frozen{scope="task"} 1.0',
        "instar_audit_entries_total 8.0",
        "instar_audit_chain_valid 1.0",
        "instar_audit_last_verified_timestamp_seconds 9.0",
        'instar_canary_traffic_ratio{model="meter-reader"} 0.3',
        'instar_store_bytes{kind="journal"} 4096.0',
        'instar_clock_jumps_total{direction="backward"} 1.0',
        'instar_labels_delay_seconds_sum{model="meter-reader"} 12.0',
        'instar_scheduler_lag_seconds_sum{job="turn"} 0.02',
    ],
)
def test_metrics_tell_what_was_fed(line: str) -> None:
    assert line in lines(fed())


def test_every_metric_of_the_control_plane_is_there() -> None:
    told = {line.split("{")[0].split(" ")[0] for line in lines(fed()) if not line.startswith("#")}
    assert set(NAMES.split()) <= told
    assert all(name.startswith("instar_") for name in told)


def test_rates_start_at_zero_and_what_nobody_measured_is_absent() -> None:
    fresh = lines(ControlMetrics("m"))
    for monitor in ("drift", "errors", "latency"):
        assert f'instar_drift_alarms_total{{detector="{monitor}",model="m"}} 0.0' in fresh
    for job in JOBS:
        assert f'instar_scheduler_runs_total{{job="{job}",outcome="error"}} 0.0' in fresh
    for stage in Stage:
        assert f'instar_candidates{{model="m",stage="{stage}"}} 0.0' in fresh
    for unknown in ("instar_drift_score_ratio", "instar_quality_estimate_ratio", "instar_store_bytes"):
        assert not [line for line in fresh if line.startswith(unknown + "{")]


def test_an_alarm_counts_each_time_it_begins() -> None:
    metrics = ControlMetrics("m")
    for level in (Level.ALARM, Level.ALARM, Level.QUIET, Level.ALARM, Level.WARNING):
        metrics.monitor(signal(level))
    assert 'instar_drift_alarms_total{detector="drift",model="m"} 2.0' in lines(metrics)


def test_a_chain_that_nobody_verified_does_not_count_as_valid() -> None:
    metrics = ControlMetrics("m")
    for known, expected in ((None, 0.0), (True, 1.0), (False, 0.0)):
        metrics.fold(
            stages={},
            frozen=False,
            chain_valid=known,
            verified_at=None,
            newcomer_share=0.0,
            pending_since=None,
            budget_used=0.0,
            free_bytes=1,
        )
        assert f"instar_audit_chain_valid {expected}" in lines(metrics)


def test_two_planes_in_one_process_do_not_share_a_registry() -> None:
    one, other = ControlMetrics("m"), ControlMetrics("m")
    one.clock_jump(5.0)
    assert 'instar_clock_jumps_total{direction="forward"} 0.0' in lines(other)


class TestPromtool:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        if shutil.which("promtool") is None:
            pytest.skip("promtool is not installed (Debian package prometheus)")

    @staticmethod
    def check(text: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)

    def test_it_accepts_the_exposition(self) -> None:
        answer = self.check(fed().exposition()[0])
        assert answer.returncode == 0, answer.stdout + answer.stderr

    def test_it_would_refuse_a_counter_of_another_name(self) -> None:
        text = fed().exposition()[0].replace(b"instar_approvals_total", b"instar_approvals")
        assert self.check(text).returncode != 0
