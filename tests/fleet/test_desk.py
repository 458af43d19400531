"""Timings: who is asked, whose answer counts, and what a restart remembers; and the timing itself."""

import json
from pathlib import Path

import numpy as np
import pytest

from daemon.fleet.desk import LEASE_S, TimingDesk
from daemon.fleet.heritage import scaled_profile
from daemon.fleet.terms import Piece, TimingJob
from daemon.fleet.timing import measure
from daemon.store.blobs import Blobs
from policies.case import Timings
from policies.clock import StandingClock
from policies.errors import PermanentError, TamperError
from policies.terms import Genome
from policies.wire import canonical
from tests.serving.conftest import Forge


def job(name: str = "c1-aaaaaa-alone", bundles: int = 1, count: int = 3) -> TimingJob:
    pieces = tuple(Piece(digest=f"sha256:{place:064x}", size_bytes=9) for place in range(bundles))
    rows = Piece(digest="sha256:" + "f" * 64, size_bytes=9)
    return TimingJob(id=name, bundles=pieces, rows=rows, count=count)


def timings(of: TimingJob, device: str, ms: float = 1.0) -> Timings:
    return Timings(
        job=of.id,
        device=device,
        machine="a board",
        bundles=tuple(piece.digest for piece in of.bundles),
        rows=of.rows.digest,
        times_ms=tuple((ms,) * of.count for _ in of.bundles),
    )


@pytest.fixture
def desk(tmp_path: Path, clock: StandingClock) -> TimingDesk:
    return TimingDesk(tmp_path / "timings", Blobs(tmp_path / "blobs"), clock, wanted=1)


def test_one_device_is_asked_at_a_time_and_its_answer_is_kept(desk: TimingDesk, tmp_path: Path) -> None:
    assert desk.ask(job()) is None
    assert desk.take("pi5-1") == job()
    assert desk.take("pi5-2") is None
    desk.accept("pi5-1", timings(job(), "pi5-1"))
    found = desk.ask(job())
    assert found is not None
    assert list(found) == ["pi5-1"]
    assert not desk.waits("pi5-2")
    assert desk.digests == frozenset()
    kept = Blobs(tmp_path / "blobs").read(found["pi5-1"])
    assert Timings.model_validate_json(kept) == timings(job(), "pi5-1")


def test_a_device_that_does_not_answer_loses_the_job_to_another(
    desk: TimingDesk, clock: StandingClock
) -> None:
    desk.ask(job())
    assert desk.take("pi5-1") is not None
    clock.advance(LEASE_S + 1)
    assert desk.take("pi5-2") is not None
    desk.accept("pi5-1", timings(job(), "pi5-1"))
    with pytest.raises(PermanentError, match="open job"):
        desk.accept("pi5-2", timings(job(), "pi5-2"))


def test_a_restart_asks_for_nothing_again(desk: TimingDesk, tmp_path: Path, clock: StandingClock) -> None:
    desk.ask(job())
    desk.accept("pi5-1", timings(job(), "pi5-1"))
    again = TimingDesk(tmp_path / "timings", Blobs(tmp_path / "blobs"), clock, wanted=1)
    assert again.ask(job()) == desk.answers(job().id)


def test_several_devices_may_have_to_answer(tmp_path: Path, clock: StandingClock) -> None:
    desk = TimingDesk(tmp_path / "timings", Blobs(tmp_path / "blobs"), clock, wanted=2)
    desk.ask(job())
    assert desk.take("pi5-1") is not None
    desk.accept("pi5-1", timings(job(), "pi5-1"))
    assert desk.ask(job()) is None
    assert desk.take("pi5-1") is None
    assert desk.take("pi5-2") is not None


@pytest.mark.parametrize(
    "change",
    [
        {"device": "pi5-2"},
        {"job": "c9-bbbbbb-alone"},
        {"bundles": ("sha256:" + "1" * 64,)},
        {"rows": "sha256:" + "1" * 64},
        {"times_ms": ((1.0, 1.0),)},
    ],
    ids=["another-device", "another-job", "other-bundles", "other-rows", "too-few"],
)
def test_timings_of_something_else_are_refused(desk: TimingDesk, change: dict[str, object]) -> None:
    desk.ask(job())
    with pytest.raises(PermanentError, match="expected"):
        desk.accept("pi5-1", timings(job(), "pi5-1").model_copy(update=change))
    assert desk.ask(job()) is None
    desk.accept("pi5-1", timings(job(), "pi5-1"))
    assert desk.ask(job()) is not None


def test_a_timing_times_the_bundles_that_it_was_given(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    bundles = [forge.tiny(seed=seed) for seed in (1, 2)]
    with (tmp_path / "rows.npz").open("wb") as file:
        np.savez(file, x=np.zeros((6, 28, 28), np.uint8))
    pieces = []
    for raw in (*(tiny.raw for tiny in bundles), (tmp_path / "rows.npz").read_bytes()):
        digest = Blobs(tmp_path / "blobs").put(raw)
        (tmp_path / digest[7:]).write_bytes(raw)
        pieces.append(Piece(digest=digest, size_bytes=len(raw)))
    wanted = TimingJob(id="j", bundles=tuple(pieces[:2]), rows=pieces[2], count=4)
    (tmp_path / "job.json").write_bytes(canonical(wanted))
    found = measure(tmp_path, "pi5-1")
    assert [len(times) for times in found.times_ms] == [4, 4]
    assert found.bundles == tuple(tiny.digest for tiny in bundles)
    (tmp_path / pieces[0].digest[7:]).write_bytes(b"other bytes")
    with pytest.raises(TamperError, match="expected sha256"):
        measure(tmp_path, "pi5-1")


ARCHIVE = {
    "format": 2,
    "space": "image",
    "points": [
        {
            "genome": {"space": "image", "genes": [1, 2]},
            "accuracy": 0.9,
            "latency_ms": 0.2,
            "params": 9,
            "measured": True,
        }
    ],
    "profile": {"line": [0.1, 2.0], "int8_line": [1.0, 2.0], "machine": "a server"},
}


def test_a_profile_is_scaled_by_what_one_network_takes_on_the_device() -> None:
    genome = Genome(space="image", genes=(1, 2))
    seen = [timings(job(), "pi5-1", 0.5), timings(job(), "pi5-2", 0.8)]
    raw, ratio = scaled_profile(json.dumps(ARCHIVE).encode(), [(genome, seen)])
    profile = json.loads(raw)
    assert ratio == pytest.approx(4.0)
    assert profile["line"] == pytest.approx([0.4, 8.0])
    assert profile["int8_line"] == pytest.approx([4.0, 8.0])


def test_what_was_timed_for_a_refusal_counts_where_the_archive_knows_it() -> None:
    known, other = Genome(space="image", genes=(1, 2)), Genome(space="image", genes=(9, 9))
    timed = [(known, [timings(job(), "pi5-1", 0.4)]), (known, [timings(job(), "pi5-1", 1.0)])]
    assert scaled_profile(json.dumps(ARCHIVE).encode(), timed)[1] == pytest.approx(5.0)
    timed[1] = (other, [timings(job(), "pi5-1", 50.0)])
    assert scaled_profile(json.dumps(ARCHIVE).encode(), timed)[1] == pytest.approx(2.0)


def test_a_long_tail_counts_by_half() -> None:
    known, rows = Genome(space="image", genes=(1, 2)), job(count=100)
    tailed = timings(rows, "pi5-1", 0.4).model_copy(update={"times_ms": ((0.4,) * 90 + (4.0,) * 10,)})
    assert scaled_profile(json.dumps(ARCHIVE).encode(), [(known, [tailed])])[1] == pytest.approx(10.0)


def test_a_network_that_the_archive_does_not_price_scales_nothing() -> None:
    archive, seen = json.dumps(ARCHIVE).encode(), [timings(job(), "pi5-1")]
    with pytest.raises(PermanentError, match="expected the archive to price"):
        scaled_profile(archive, [(Genome(space="image", genes=(1, 3)), seen)])
    with pytest.raises(TamperError, match="expected a search archive"):
        scaled_profile(b"{}", [(Genome(space="image", genes=(1, 2)), seen)])
