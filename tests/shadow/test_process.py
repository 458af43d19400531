"""``python -m daemon.shadow`` over real bundles and a real spool."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from daemon.control import workers
from daemon.control.workers import Allowance
from daemon.shadow.__main__ import REFUSED, main, read_case, shadow
from policies.clock import SystemClock
from policies.errors import TamperError
from policies.shadow import ShadowResult, judge
from policies.terms import Finding
from policies.wire import canonical
from policies.world import JobState
from tests.shadow.conftest import CLAUSE, Hand, make_bundle

ALLOWANCE = Allowance(cpu_s=60.0, memory_bytes=1_500_000_000, wall_s=60.0, threads=1)


def run(case: Any, tmp_path: Path) -> tuple[int, Path]:
    path, out = tmp_path / "case.json", tmp_path / "out"
    path.write_bytes(canonical(case))
    return main([str(path), str(out)]), out


def result(out: Path) -> ShadowResult:
    return ShadowResult.model_validate_json((out / "shadow.json").read_bytes())


def test_the_same_network_passes_and_leaves_the_spool_as_it_was(
    hand: Hand, make_case: Any, tmp_path: Path
) -> None:
    hand.rows(60)
    before = {path: path.read_bytes() for path in hand.folder.iterdir()}
    code, out = run(make_case(), tmp_path)
    assert code == 0
    found = result(out)
    assert (found.rows, found.disagreed, found.not_finite, found.errors) == (CLAUSE.rows, 0, 0, 0)
    assert judge(found, CLAUSE).finding is Finding.PASS
    assert {path: path.read_bytes() for path in hand.folder.iterdir()} == before


def test_a_network_with_its_classes_turned_fails(hand: Hand, make_case: Any, tmp_path: Path) -> None:
    hand.rows(60)
    _, out = run(make_case(turned=1), tmp_path)
    assert judge(result(out), CLAUSE).finding is Finding.FAIL


def test_it_compares_with_what_the_client_was_told_and_not_with_the_incumbent_anew(
    hand: Hand, make_case: Any, tmp_path: Path
) -> None:
    hand.rows(60, turned=1)
    _, out = run(make_case(turned=1), tmp_path)
    assert result(out).disagreed == 0


def test_rows_that_come_while_it_waits_are_taken(hand: Hand, make_case: Any) -> None:
    hand.folder.mkdir()
    case, found = make_case(), []
    worker = threading.Thread(target=lambda: found.append(shadow(case, threading.Event())))
    worker.start()
    hand.rows(60)
    worker.join(timeout=60)
    assert [each.rows for each in found] == [CLAUSE.rows]


def test_without_traffic_it_ends_when_its_time_is_up_and_says_nothing(
    hand: Hand, make_case: Any, tmp_path: Path
) -> None:
    hand.rows(10)
    short = CLAUSE.model_copy(update={"max_s": 0.3})
    code, out = run(make_case(clause=short), tmp_path)
    assert code == 0
    assert result(out).rows == 10
    assert judge(result(out), short).finding is Finding.INCONCLUSIVE


@pytest.mark.parametrize("fault", ["gone", "altered", "of another model"])
def test_a_bundle_that_cannot_be_loaded_is_refused_with_its_reason(
    make_case: Any, tmp_path: Path, fault: str
) -> None:
    case = make_case(turned=2)
    digest = case.newcomer.bundle
    path = tmp_path / "blobs" / "sha256" / digest[7:9] / digest[9:]
    if fault == "gone":
        path.unlink()
    elif fault == "altered":
        path.write_bytes(path.read_bytes() + b" ")
    else:
        case = case.model_copy(update={"model": "others"})
    code, out = run(case, tmp_path)
    assert code == REFUSED
    assert "expected" in json.loads((out / "refusal.json").read_bytes())["reason"]
    assert not (out / "shadow.json").exists()


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"candidate": "c2"}', b"[1]"])
def test_a_case_that_is_none_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "case.json"
    path.write_bytes(raw)
    with pytest.raises(TamperError, match="expected"):
        read_case(path)
    with pytest.raises(TamperError, match="expected a shadow's case"):
        read_case(tmp_path / "none.json")


def test_as_a_process_it_is_idle_survives_who_began_it_and_is_found_again(
    hand: Hand, make_case: Any, tmp_path: Path
) -> None:
    hand.folder.mkdir()
    folder = tmp_path / "jobs" / "shadow-c2"
    folder.mkdir(parents=True)
    path = folder / "case.json"
    path.write_bytes(canonical(make_case()))
    begun = workers.start("daemon.shadow", path, folder, "shadow.json", ALLOWANCE, SystemClock())
    assert os.sched_getscheduler(begun.pid) == os.SCHED_IDLE
    # Its start is told before the kernel has laid out its words, by which it is found again.
    deadline = time.monotonic() + 30
    while not Path(f"/proc/{begun.pid}/cmdline").read_bytes() and time.monotonic() < deadline:
        os.sched_yield()
    found = workers.find(folder, "shadow.json", ALLOWANCE, time.monotonic())
    assert found is not None
    assert found.pid == begun.pid
    assert found.poll(time.monotonic()) is JobState.RUNNING
    hand.rows(60)
    assert begun.process is not None
    assert begun.process.wait(timeout=60) == 0
    assert found.poll(time.monotonic()) is JobState.DONE
    assert result(folder / "out").rows == CLAUSE.rows


def test_a_bundle_under_test_is_what_its_digest_says(tmp_path: Path) -> None:
    assert make_bundle(tmp_path) == make_bundle(tmp_path)
    assert make_bundle(tmp_path, 1) != make_bundle(tmp_path, 0)
