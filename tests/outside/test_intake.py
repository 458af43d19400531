"""The intake: what monitors read of it, all or nothing, once, bounded, and over a kill at every step."""

import base64
import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.control.targets.proofs import Proofs
from daemon.outside import intake as intake_module
from daemon.outside.intake import Intake
from daemon.outside.once import Once
from daemon.outside.records import Busy, Record
from daemon.serving import spool as spool_module
from daemon.serving.recorder import summary
from monitors.channels import usable
from monitors.spool import Cursor, SpoolReader
from policies.errors import TemporaryError
from policies.telemetry import OUTCOMES, group_key, row_key
from tests.serving.conftest import MODEL, Forge, Tiny

AT = 1_800_000_000.0
RNG = np.random.default_rng(3)


class Killed(BaseException):
    """The process dies here."""


@pytest.fixture
def tinies(tmp_path: Path) -> dict[int, Tiny]:
    forge = Forge(tmp_path)
    return {1: forge.tiny(1, width=16), 2: forge.tiny(2, width=8)}


@pytest.fixture
def make(tmp_path: Path, tinies: dict[int, Tiny]) -> Callable[[], Intake]:
    proofs = Proofs(tmp_path / "blobs", MODEL)

    def made() -> Intake:
        return Intake(
            MODEL,
            proofs,
            lambda generation: tinies[generation].digest if generation in tinies else None,
            lambda: 1,
            tmp_path / "spool",
            tmp_path / "intake.db",
            1.0,
        )

    return made


@pytest.fixture
def intake(make: Callable[[], Intake]) -> Intake:
    return make()


def picture() -> np.ndarray:
    return RNG.integers(0, 256, (28, 28)).astype(np.uint8)


def ok(name: str, tiny: Tiny, generation: int = 1, x: np.ndarray | None = None, **more: Any) -> Record:
    """Return the record of an answered row; with its input, if it is given."""
    seen = picture() if x is None else x
    logits, embedding = tiny.expected(seen[None])
    told = {"summary": summary(seen[None])[0].tolist()}
    if x is not None:
        told = {"input_b64": base64.b64encode(x.tobytes()).decode()}
    return Record(
        id=name,
        generation=generation,
        outcome="ok",
        latency_ms=2.5,
        logits=logits[0].tolist(),
        embedding=embedding[0].tolist(),
        **(told | more),
    )


def failed(name: str, generation: int = 0, outcome: str = "shed") -> Record:
    return Record(id=name, generation=generation, outcome=outcome, latency_ms=0.5)


def read(folder: Path, kind: Any = "telemetry") -> list[np.ndarray]:
    reader = SpoolReader(folder / "spool", kind, Cursor(0, 0))
    blocks = []
    while True:
        block, _ = reader.read(10_000)
        if block is None:
            assert reader.lost_segments == 0
            return blocks
        blocks.append(block)


def ids(folder: Path, kind: str = "telemetry") -> list[bytes]:
    return [bytes(key) for block in read(folder, kind) for key in block["row_key"]]


def keys(*names: str) -> list[bytes]:
    return [row_key(name, 0, 1) for name in names]


class TestWhatMonitorsRead:
    def test_an_answered_row_reads_as_instar_serve_would_have_written_it(
        self, intake: Intake, tinies: dict[int, Tiny], tmp_path: Path
    ) -> None:
        x = picture()
        assert intake.take("k", [ok("a", tinies[1], x=x, group="meter-7", batch=3)], AT) == (1, False)
        (block,) = read(tmp_path)
        logits, embedding = tinies[1].expected(x[None])
        row = block[0]
        assert (row["at"], row["generation"], row["batch"], row["latency_ms"]) == (AT, 1, 3, 2.5)
        assert OUTCOMES[row["outcome"]] == "ok"
        assert bytes(row["group_key"]) == group_key("meter-7")
        assert np.array_equal(row["logits"], logits[0])
        assert np.array_equal(row["embedding"], embedding[0])
        assert np.array_equal(row["summary"], summary(x[None])[0])
        assert usable(block).all()
        (samples,) = read(tmp_path, "samples")
        assert np.array_equal(samples["input"][0], x)
        assert samples["row_key"][0] == row["row_key"]

    def test_a_row_that_failed_feeds_no_channel_and_counts_for_its_generation(
        self, intake: Intake, tinies: dict[int, Tiny], tmp_path: Path
    ) -> None:
        intake.take("k", [ok("a", tinies[1]), failed("b", 1, "timeout"), failed("c")], AT)
        (block,) = read(tmp_path)
        assert usable(block).tolist() == [True, False, False]
        assert [OUTCOMES[code] for code in block["outcome"]] == ["ok", "timeout", "shed"]
        assert block["generation"].tolist() == [1, 1, 0]

    def test_each_generation_has_its_own_width(
        self, intake: Intake, tinies: dict[int, Tiny], tmp_path: Path
    ) -> None:
        intake.take("k1", [ok("a", tinies[1], 1)], AT)
        intake.take("k2", [ok("b", tinies[2], 2)], AT)
        intake.take("k3", [ok("c", tinies[1], 1)], AT)
        assert [block["embedding"].shape[1] for block in read(tmp_path)] == [16, 8, 16]


class TestAllOrNothing:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"logits": [1.0]}, r"expected 10 numbers in records\[1\]\.logits, got 1"),
            ({"embedding": [1.0] * 8}, r"expected 16 numbers in records\[1\]\.embedding, got 8"),
            ({"logits": [1e300] * 10}, r"records\[1\]\.logits that a float32 holds"),
            ({"summary": None, "input_b64": "AAAA"}, r"expected 784 bytes .* records\[1\]\.input_b64, got 3"),
            ({"summary": None, "input_b64": "?"}, r"expected base64 in records\[1\]\.input_b64"),
            ({"generation": 2}, r"records\[1\]\.generation to be 1 as before it, got 2"),
        ],
    )
    def test_one_wrong_record_refuses_all(
        self, intake: Intake, tinies: dict[int, Tiny], tmp_path: Path, change: dict[str, Any], words: str
    ) -> None:
        good = ok("a", tinies[1])
        plain = {name: getattr(good, name) for name in good.__struct_fields__}
        with pytest.raises(ValueError, match=words):
            intake.take("k", [good, Record(**(plain | {"id": "b"} | change))], AT)
        assert read(tmp_path) == []
        assert intake.take("k", [good], AT) == (1, False), "the key is still free"

    def test_a_generation_that_never_was_is_refused(self, intake: Intake, tinies: dict[int, Tiny]) -> None:
        with pytest.raises(ValueError, match=r"records\[0\]\.generation to be one that is or was served"):
            intake.take("k", [ok("a", tinies[1], 9)], AT)

    def test_a_disk_that_refuses_leaves_nothing_and_the_batch_may_come_again(
        self, intake: Intake, tinies: dict[int, Tiny], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        intake.take("k1", [ok("a", tinies[1])], AT)
        batch = [ok("b", tinies[1])]

        def full(fd: int, data: Any) -> int:
            raise OSError(errno.ENOSPC, "no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(spool_module.os, "write", full)
            with pytest.raises(TemporaryError, match="expected to write the spool"):
                intake.take("k2", batch, AT)
        assert ids(tmp_path) == keys("a")
        assert intake.take("k2", batch, AT) == (1, False)
        assert ids(tmp_path) == keys("a", "b")

    @pytest.mark.parametrize("step", ["begin", "done"])
    def test_a_note_that_cannot_be_written_neither_loses_nor_doubles_a_row(
        self,
        intake: Intake,
        tinies: dict[int, Tiny],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        step: str,
    ) -> None:
        def full(*_given: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        batch, other = [ok("a", tinies[1])], [ok("b", tinies[1])]
        with monkeypatch.context() as patch:
            patch.setattr(Once, step, full)
            for key, rows in (("k1", batch), ("k1", batch), ("k2", other)):
                with pytest.raises(TemporaryError, match="expected to note the batch"):
                    intake.take(key, rows, AT)
        assert intake.take("k1", batch, AT) == (1, step == "done")
        assert intake.take("k2", other, AT) == (1, False)
        assert ids(tmp_path) == keys("a", "b")


class TestOnce:
    def test_a_batch_that_comes_again_is_taken_once_also_by_a_new_start(
        self, make: Callable[[], Intake], tinies: dict[int, Tiny], tmp_path: Path
    ) -> None:
        batch = [ok("a", tinies[1]), ok("b", tinies[1])]
        first = make()
        assert first.take("k", batch, AT) == (2, False)
        assert first.take("k", batch, AT + 1) == (2, True)
        first.close()
        assert make().take("k", batch, AT + 2) == (2, True)
        assert ids(tmp_path) == keys("a", "b")

    def test_another_batch_under_the_same_key_is_refused(
        self, intake: Intake, tinies: dict[int, Tiny]
    ) -> None:
        intake.take("k", [ok("a", tinies[1])], AT)
        with pytest.raises(ValueError, match="expected the batch that was taken under key 'k'"):
            intake.take("k", [ok("b", tinies[1])], AT)

    def test_killed_at_any_step_every_batch_is_there_once_in_the_end(
        self, tmp_path: Path, tinies: dict[int, Tiny], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batches = [
            ("k1", [ok("a", tinies[1], x=picture())]),
            ("k2", [ok("b", tinies[1]), failed("c")]),
            ("k3", [ok("d", tinies[2], 2, x=picture())]),
        ]
        steps = play(tmp_path / "whole", tinies, batches, None, monkeypatch)
        assert steps > 15
        for strike in range(steps):
            folder = tmp_path / f"strike-{strike}"
            with pytest.raises(Killed):
                play(folder, tinies, batches, strike, monkeypatch)
            acknowledged = len(ids(folder))
            play(folder, tinies, batches, None, monkeypatch)
            assert ids(folder) == keys("a", "b", "c", "d"), f"killed at step {strike} ({acknowledged} rows)"
            assert set(ids(folder, "samples")) == set(keys("a", "d"))

    def test_without_the_recovery_a_kill_would_double_rows(
        self, tmp_path: Path, tinies: dict[int, Tiny], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The mutant forgets what was begun, and takes the batch again."""
        batches = [("k1", [ok("a", tinies[1])])]
        steps = play(tmp_path / "whole", tinies, batches, None, monkeypatch)
        monkeypatch.setattr(Once, "_recover", lambda self: None)
        doubled = 0
        for strike in range(steps):
            folder = tmp_path / f"strike-{strike}"
            with pytest.raises(Killed):
                play(folder, tinies, batches, strike, monkeypatch)
            play(folder, tinies, batches, None, monkeypatch)
            doubled += ids(folder) == keys("a", "a")
        assert doubled

    def test_half_of_a_batch_is_cut_off_before_it_comes_again(
        self,
        make: Callable[[], Intake],
        tinies: dict[int, Tiny],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        first = make()
        first.take("k1", [ok("a", tinies[1])], AT)
        batch = [ok("b", tinies[1]), ok("c", tinies[1])]
        real = os.write

        def torn(fd: int, data: Any) -> int:
            real(fd, bytes(data)[: len(data) * 3 // 4])
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(spool_module.os, "write", torn)
            with pytest.raises(Killed):
                first.take("k2", batch, AT)
        assert ids(tmp_path) == keys("a", "b"), "a reader may have seen half of it"
        assert make().take("k2", batch, AT) == (2, False)
        assert ids(tmp_path) == keys("a", "b", "c")


def play(
    folder: Path,
    tinies: dict[int, Tiny],
    batches: list[tuple[str, list[Record]]],
    strike: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> int:
    """Send every batch, dying before step ``strike``; return how many steps there were."""
    count = 0

    def struck(real: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **named: Any) -> Any:
            nonlocal count
            if count == strike:
                raise Killed
            count += 1
            return real(*args, **named)

        return stepped

    blobs = Path(folder).parent / "blobs"
    made = Intake(
        MODEL,
        Proofs(blobs, MODEL),
        lambda generation: tinies[generation].digest if generation in tinies else None,
        lambda: 1,
        folder / "spool",
        folder / "intake.db",
        1.0,
    )
    with monkeypatch.context() as patch:
        patch.setattr(intake_module, "sync", struck(intake_module.sync))
        patch.setattr(spool_module.os, "write", struck(os.write))
        for name in ("begin", "done"):
            patch.setattr(Once, name, struck(getattr(Once, name)))
        for key, batch in batches:
            made.take(key, batch, AT)
        made.close()
    return count


class TestBounds:
    def test_more_than_the_turns_can_read_is_told_to_wait_and_taken_after(
        self, intake: Intake, tinies: dict[int, Tiny], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(intake_module, "MOST_UNREAD_BYTES", 400)
        intake.take("k1", [ok("a", tinies[1])], AT)
        begun = intake.begun()
        intake.take("k2", [ok("b", tinies[1])], AT)
        with pytest.raises(Busy) as refused:
            intake.take("k3", [ok("c", tinies[1])], AT)
        assert refused.value.retry_after_s == 1.0
        intake.read(begun)
        assert intake.take("k3", [ok("c", tinies[1])], AT) == (1, False), "one of two is read"
        with pytest.raises(Busy):
            intake.take("k4", [ok("d", tinies[1])], AT)

    def test_a_batch_that_does_not_fit_one_write_is_refused_with_what_would(
        self, intake: Intake, tinies: dict[int, Tiny], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(intake_module, "MOST_BYTES", 200)
        with pytest.raises(ValueError, match="send at most 1 records at once"):
            intake.take("k", [ok("a", tinies[1]), ok("b", tinies[1])], AT)

    def test_what_is_remembered_of_batches_is_bounded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("daemon.outside.once.KEPT", 3)
        (tmp_path / "spool").mkdir()
        once = Once(tmp_path / "intake.db", tmp_path / "spool")
        for number in range(10):
            once.begin(f"k{number}", "digest", 1, 1)
            once.done(f"k{number}")
        assert [once.taken(f"k{number}") is not None for number in range(10)] == [False] * 7 + [True] * 3
        once.close()
