"""The panel over guards that misbehave, and the worker's command over real ones."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from guards import panel
from guards.material import Material
from policies.case import Case, PanelResult
from policies.clearance import clear
from policies.errors import PermanentError
from policies.terms import Finding, Verdict
from policies.wire import canonical, digest_bytes

Judging = Callable[[Case, Material], Any]

# The worker forks while it has one thread; this process has those of its numerics, and Python 3.12 says so.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Scripted:
    """A guard that does what the test says."""

    def __init__(self, name: str, judging: Judging) -> None:
        self.name = name
        self._judging = judging

    def clause(self, case: Case) -> str:
        return "MP-5"

    def judge(self, case: Case, material: Material) -> Any:
        return self._judging(case, material)


def says(name: str, finding: Finding, reason: str = "as told") -> Verdict:
    return Verdict(guard=name, clause="MP-5", finding=finding, reason=reason)


def roster(**judgings: Judging) -> Callable[[], Mapping[str, Any]]:
    return lambda: {name: (lambda n=name, j=judging: Scripted(n, j)) for name, judging in judgings.items()}


def case_of(shop: Any, *names: str, timeout_s: float = 20.0) -> Case:
    listed = ", ".join(f'"{name}"' for name in names)
    shop.rule(
        'required_founding = ["integrity", "parity", "constraints", "latency", "floor"]',
        f"required_founding = [{listed}]",
    )
    shop.rule("timeout_s = 60.0", f"timeout_s = {timeout_s}")
    return shop.case(founding=True)


def passes(name: str) -> Judging:
    return lambda _case, _material: says(name, Finding.PASS)


def raises(error: Exception) -> Judging:
    def judging(_case: Case, _material: Material) -> Verdict:
        raise error

    return judging


def dies(_case: Case, _material: Material) -> Verdict:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("dead")


def hangs(_case: Case, _material: Material) -> Verdict:
    threading.Event().wait()
    raise AssertionError("never set")


def eats(_case: Case, _material: Material) -> Verdict:
    return says("eats", Finding.PASS, f"{len(bytearray(8_000_000_000))} bytes")


MISBEHAVING: dict[str, tuple[Judging, str]] = {
    "crashes": (raises(ZeroDivisionError("by zero")), "crashed: ZeroDivisionError: by zero"),
    "refuses": (raises(PermanentError("expected a gate, got none")), "expected a gate, got none"),
    "dies": (dies, "exit code -9"),
    "eats": (eats, "crashed: MemoryError"),
    "says nothing": (lambda _case, _material: None, "crashed: ValidationError"),
    "speaks for another": (passes("other"), "in the name of other"),
}


@pytest.mark.parametrize("fault", sorted(MISBEHAVING))
def test_a_guard_that_misbehaves_is_inconclusive_and_alone(
    fault: str, shop: Any, ticks: Callable[[], float]
) -> None:
    judging, reason = MISBEHAVING[fault]
    case = case_of(shop, "bad", "good")
    bad, good = panel.sit(case, roster(bad=judging, good=passes("good")), ticks)
    assert bad.finding is Finding.INCONCLUSIVE
    assert reason in bad.reason
    assert bad.attempts == 2
    assert good.finding is Finding.PASS


def test_a_guard_that_hangs_is_ended(shop: Any, ticks: Callable[[], float]) -> None:
    case = case_of(shop, "bad", timeout_s=0.3)
    (bad,) = panel.sit(case, roster(bad=hangs), ticks)
    assert bad.finding is Finding.INCONCLUSIVE
    assert "took longer than 0.3 s" in bad.reason
    assert not [child for child in panel.multiprocessing.active_children() if child.name == "guards"]


def test_a_guard_that_nobody_has_is_inconclusive(shop: Any, ticks: Callable[[], float]) -> None:
    (said,) = panel.sit(case_of(shop, "unheard-of"), roster(good=passes("good")), ticks)
    assert said.finding is Finding.INCONCLUSIVE
    assert said.guard == "unheard-of"
    assert said.clause == "MP-5"


def test_a_second_attempt_may_pass(shop: Any, ticks: Callable[[], float], tmp_path: Path) -> None:
    def second_time(_case: Case, _material: Material) -> Verdict:
        mark = tmp_path / "asked"
        if mark.exists():
            return says("late", Finding.PASS)
        mark.touch()
        return says("late", Finding.INCONCLUSIVE)

    (said,) = panel.sit(case_of(shop, "late"), roster(late=second_time), ticks)
    assert (said.finding, said.attempts) == (Finding.PASS, 2)


def test_a_no_is_not_asked_again(shop: Any, ticks: Callable[[], float]) -> None:
    fails = roster(no=lambda _case, _material: says("no", Finding.FAIL))
    (said,) = panel.sit(case_of(shop, "no"), fails, ticks)
    assert (said.finding, said.attempts) == (Finding.FAIL, 1)


@pytest.mark.parametrize("finding", [Finding.FAIL, Finding.INCONCLUSIVE])
def test_a_file_that_integrity_does_not_pass_is_not_run(
    finding: Finding, shop: Any, ticks: Callable[[], float], tmp_path: Path
) -> None:
    def ran(_case: Case, _material: Material) -> Verdict:
        (tmp_path / "ran").touch()
        return says("latency", Finding.PASS)

    guards = roster(latency=ran, integrity=lambda _case, _material: says("integrity", finding))
    latency, integrity = panel.sit(case_of(shop, "latency", "integrity"), guards, ticks)
    assert integrity.finding is finding
    assert latency.finding is Finding.INCONCLUSIVE
    assert "not run" in latency.reason
    assert not (tmp_path / "ran").exists()


def test_a_file_that_integrity_passes_is_run(shop: Any, ticks: Callable[[], float]) -> None:
    guards = roster(latency=passes("latency"), integrity=passes("integrity"))
    said = panel.sit(case_of(shop, "latency", "integrity"), guards, ticks)
    assert [v.finding for v in said] == [Finding.PASS, Finding.PASS]


def test_what_a_misbehaving_guard_leaves_is_rejected(shop: Any, ticks: Callable[[], float]) -> None:
    case = case_of(shop, "bad", "good")
    verdicts = panel.sit(case, roster(bad=dies, good=passes("good")), ticks)
    policy = case.policy.modification_protocol.evaluation.panel
    assert clear(verdicts, policy, founding=True).outcome == "rejected"
    mended = panel.sit(case, roster(bad=passes("bad"), good=passes("good")), ticks)
    assert clear(mended, policy, founding=True).outcome == "cleared"


# -- the command --------------------------------------------------------------------------------------------


def run(case: bytes, folder: Path) -> tuple[int, Path, str]:
    path, out = folder / "case.json", folder / "out"
    path.write_bytes(case)
    ended = subprocess.run(
        [sys.executable, "-m", "guards", str(path), str(out)], capture_output=True, text=True, timeout=120
    )
    return ended.returncode, out, ended.stderr


@pytest.mark.parametrize("founding", [False, True])
def test_the_command_writes_verdicts_and_a_report(founding: bool, shop: Any, tmp_path: Path) -> None:
    case = shop.case(founding=founding)
    code, out, told = run(canonical(case), tmp_path)
    assert code == 0, told
    result = PanelResult.model_validate_json((out / "panel.json").read_bytes())
    panel_clause = case.policy.modification_protocol.evaluation.panel
    assert clear(result.verdicts, panel_clause, founding=founding).outcome == "cleared"
    assert result.report == digest_bytes((out / "report.html").read_bytes())
    assert result.report_json == digest_bytes((out / "report.json").read_bytes())
    assert result.runners_up[0].accuracy == pytest.approx(0.91)
    assert canonical(result) == (out / "panel.json").read_bytes()


def test_the_command_judges_a_file_that_was_changed(shop: Any, tmp_path: Path) -> None:
    case = shop.case()
    Path(case.bundle.path).write_bytes(b"something else")
    code, out, _told = run(canonical(case), tmp_path)
    assert code == 0
    result = PanelResult.model_validate_json((out / "panel.json").read_bytes())
    findings = {v.guard: v.finding for v in result.verdicts}
    assert findings.pop("integrity") is Finding.FAIL
    assert set(findings.values()) == {Finding.INCONCLUSIVE}
    assert "Reject" in (out / "report.html").read_text()


def test_the_command_judges_without_a_gate(shop: Any, tmp_path: Path) -> None:
    case = shop.case()
    Path(case.gate.path).unlink()
    code, out, _told = run(canonical(case), tmp_path)
    assert code == 0
    findings = {
        v.guard: v.finding
        for v in PanelResult.model_validate_json((out / "panel.json").read_bytes()).verdicts
    }
    assert findings["integrity"] is Finding.PASS
    assert findings["floor"] is Finding.INCONCLUSIVE


def test_the_command_refuses_a_case_that_is_not_one(shop: Any, tmp_path: Path) -> None:
    for raw in (b"{}", b'{"a": 1}', canonical(shop.case()) + b" "):
        code, out, _told = run(raw, tmp_path)
        assert code == 3
        assert b"expected" in (out / "refusal.json").read_bytes()
        assert not (out / "panel.json").exists()


def test_the_worker_loads_no_torch_and_no_runtime_before_the_fork() -> None:
    text = (
        "import sys, guards.__main__, guards.panel\n"
        "print(sorted({'torch', 'onnxruntime', 'numpy', 'onnx'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == "[]", ended.stderr


def test_a_guard_that_hangs_ends_with_the_panel(shop: Any, tmp_path: Path) -> None:
    # The guard holds the pipe open: reading to its end returns only when the orphan is gone too.
    case = tmp_path / "case.json"
    case.write_bytes(canonical(case_of(shop, "hangs", timeout_s=3600.0)))
    text = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from guards import panel\n"
        "from guards.__main__ import read_case\n"
        "class Hangs:\n"
        "    def judge(self, case, material):\n"
        "        print('hanging', flush=True)\n"
        "        threading.Event().wait()\n"
        "panel.sit(read_case(Path(sys.argv[1])), lambda: {'hangs': Hangs}, lambda: 0.0)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", text, str(case)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        process.kill()
        assert process.stdout.read() == ""
