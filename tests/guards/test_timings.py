"""The latency guard of a device class: it judges what devices timed, and never this machine's clock."""

from pathlib import Path

import pytest

from guards.latency import Latency
from guards.material import Material
from policies.case import Case, Timings
from policies.errors import TamperError
from policies.terms import Artefact, Finding
from policies.wire import canonical, digest_bytes
from tests.guards.conftest import Workshop


@pytest.fixture
def case(shop: Workshop) -> Case:
    return shop.case()


def timed(case: Case, folder: Path, name: str, ms: tuple[float, ...], **changes: object) -> Artefact:
    """Write a device's timings: every row of a bundle takes as long."""
    rows = case.policy.modification_protocol.evaluation.latency.rows
    bundles = tuple(one.digest for one in (case.bundle, case.incumbent) if one is not None)
    plain = {
        "job": "c1-alone",
        "device": name,
        "machine": "a board",
        "bundles": bundles,
        "rows": case.traffic.digest,
        "times_ms": tuple((one,) * rows for one in ms[: len(bundles)]),
    }
    raw = canonical(Timings.model_validate(plain | changes))
    (folder / f"{name}.json").write_bytes(raw)
    return Artefact(path=str(folder / f"{name}.json"), digest=digest_bytes(raw))


def never() -> float:
    raise AssertionError("this machine's clock was asked")


def judged(case: Case, *timings: Artefact) -> tuple[Finding, str]:
    there = case.model_copy(update={"device_class": "pi5", "timings": timings})
    verdict = Latency().judge(there, Material(there, never))
    return verdict.finding, verdict.reason


def limit_ms(case: Case) -> float:
    return case.policy.modification_protocol.evaluation.latency.max_p99_ms


def test_devices_timings_decide_and_are_named(case: Case, tmp_path: Path) -> None:
    fast, slow = limit_ms(case) / 2, limit_ms(case) * 1.01
    finding, reason = judged(case, timed(case, tmp_path, "pi5-1", (fast, fast)))
    assert (finding, "on pi5-1" in reason) == (Finding.PASS, True)
    finding, reason = judged(case, timed(case, tmp_path, "pi5-1", (slow, slow)))
    assert (finding, "on pi5-1" in reason) == (Finding.FAIL, True)


def test_one_device_that_is_too_slow_is_enough(case: Case, tmp_path: Path) -> None:
    fast, slow = limit_ms(case) / 2, limit_ms(case) * 1.01
    one, other = (timed(case, tmp_path, n, (ms, ms)) for n, ms in (("pi5-1", fast), ("pi5-2", slow)))
    for order in ((one, other), (other, one)):
        finding, reason = judged(case, *order)
        assert (finding, "on pi5-2" in reason) == (Finding.FAIL, True)


def test_without_a_devices_timings_it_says_nothing(case: Case) -> None:
    finding, reason = judged(case)
    assert finding is Finding.INCONCLUSIVE
    assert "expected timings by a device of pi5" in reason


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"bundles": ("sha256:" + "1" * 64, "sha256:" + "2" * 64)}, "expected timings of"),
        ({"rows": "sha256:" + "1" * 64}, "expected timings on"),
        ({"times_ms": ((1.0,), (1.0,))}, "timed rows"),
    ],
    ids=["other-bundles", "other-rows", "too-few-rows"],
)
def test_timings_of_something_else_are_no_evidence(
    case: Case, tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(TamperError, match=complaint):
        judged(case, timed(case, tmp_path, "pi5-1", (1.0, 1.0), **change))


def test_timings_whose_bytes_were_changed_are_no_evidence(case: Case, tmp_path: Path) -> None:
    artefact = timed(case, tmp_path, "pi5-1", (1.0, 1.0))
    Path(artefact.path).write_bytes(Path(artefact.path).read_bytes().replace(b"pi5-1", b"pi5-9"))
    with pytest.raises(TamperError, match="changed after it was named"):
        judged(case, artefact)


def test_a_case_of_this_host_asks_its_own_clock(case: Case) -> None:
    with pytest.raises(AssertionError, match="clock was asked"):
        Latency().judge(case, Material(case, never))
