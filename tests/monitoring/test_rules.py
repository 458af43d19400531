"""The alert rules: each fires when it should, stays silent when it should, and leads to a runbook."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.serving.metrics import SECONDS

ROOT = Path(__file__).parents[2]
RULES = ROOT / "monitoring/rules/instar.rules.yml"
TESTS = sorted((ROOT / "monitoring/rules/tests").glob("*.test.yml"))
TEXT = RULES.read_text()
ALERTS = sorted(set(re.findall(r"- alert: (\w+)", TEXT)))

Promtool = Callable[..., subprocess.CompletedProcess[str]]
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not on this machine"
)

MUTANTS = {
    "approval_waiting": ("> 600", "> 6000"),
    "audit_chain_invalid": ("chain_valid == 0", "chain_valid == 2"),
    "audit_unverified": ("> 300", "> 3000"),
    "frozen": ("for: 30m", "for: 5m"),
    "latency_budget_burn": ("> 14.4 * 0.01", "> 0.5 * 0.01"),
    "monitors_blind": ("or absent(instar_monitor_interval_seconds)", ""),
    "rolled_back": ("increase(instar_guard_rollbacks_total[30m])", "instar_guard_rollbacks_total"),
    "serve_errors": ('outcome=~"error|timeout|shed|not_finite"', 'outcome!="ok"'),
    "serve_missing": ("absent(instar_serve_requests_total)", "instar_serve_requests_total == 0"),
    "store_filling": ("< 1073741824", "< 107374182"),
    "telemetry_dropped": ('{kind="telemetry"}', ""),
}


@needs_promtool
def test_prometheus_accepts_rules_and_scrape_configuration(promtool: Promtool) -> None:
    found = promtool("check", "config", "prometheus.yml")
    assert found.returncode == 0, found.stdout + found.stderr


@needs_promtool
def test_every_rule_does_what_its_tests_say(promtool: Promtool) -> None:
    found = promtool("test", "rules", *map(str, TESTS))
    assert found.returncode == 0, found.stdout + found.stderr


@needs_promtool
@pytest.mark.parametrize("name", [path.name.removesuffix(".test.yml") for path in TESTS])
def test_a_slip_in_a_rule_fails_its_tests(name: str, promtool: Promtool, tmp_path: Path) -> None:
    old, new = MUTANTS[name]
    assert old in TEXT
    (tmp_path / "tests").mkdir()
    (tmp_path / "instar.rules.yml").write_text(TEXT.replace(old, new))
    shutil.copy(ROOT / f"monitoring/rules/tests/{name}.test.yml", tmp_path / "tests")
    found = promtool("test", "rules", f"tests/{name}.test.yml", folder=tmp_path)
    assert found.returncode == 1, found.stdout


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    fires: set[str] = set()
    silent: set[str] = set()
    for path in TESTS:
        for case in path.read_text().split("  - name: ")[1:]:
            alert = re.search(r"alertname: (\w+)", case)
            assert alert is not None
            (silent if "exp_alerts: []" in case else fires).add(alert[1])
    assert (sorted(fires), sorted(silent)) == (ALERTS, ALERTS)


def test_every_alert_has_a_runbook_under_its_name() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    headings = {heading.lower() for heading in re.findall(r"^#+ (\w+)$", page, re.MULTILINE)}
    runbooks = re.findall(r"runbook: docs/operations\.md#(\S+)", TEXT)
    assert len(runbooks) == len(re.findall(r"- alert: ", TEXT))
    assert set(runbooks) == {alert.lower() for alert in ALERTS}
    assert set(runbooks) <= headings


def test_the_rules_name_only_metrics_that_exist(exported: frozenset[str]) -> None:
    named = set(re.findall(r"(?<![:\w])instar_\w+", TEXT))
    assert named - exported == set()
    assert "instar_frozen" in named


def test_the_objective_is_a_bucket_of_the_histogram() -> None:
    buckets = {f"{bound:g}" for bound in SECONDS}
    assert set(re.findall(r'le="([^"]+)"', TEXT)) == {"0.025"} <= buckets
