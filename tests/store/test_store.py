"""Blobs, lock and samples."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.store.blobs import Blobs
from daemon.store.lock import StateLock
from daemon.store.samples import Samples
from policies.clauses import Data
from policies.errors import PermanentError, TamperError
from policies.telemetry import group_key, row_key, sample_fields
from policies.terms import Role

KEY = b"k" * 32
SHARES = Data(
    clause="MP-1",
    train_share=0.45,
    search_share=0.12,
    gate_share=0.38,
    reference_share=0.05,
    min_train_rows=1,
    min_search_rows=1,
    min_gate_rows=1,
    max_gate_rows=1,
)


class TestBlobs:
    def test_bytes_come_back_and_a_flipped_byte_does_not(self, tmp_path: Path) -> None:
        blobs = Blobs(tmp_path)
        digest = blobs.put(b"some bytes")
        assert blobs.put(b"some bytes") == digest
        assert blobs.read(digest) == b"some bytes"
        path = blobs.path(digest)
        path.chmod(0o644)
        path.write_bytes(b"some bytez")
        with pytest.raises(TamperError, match="expected sha256"):
            blobs.read(digest)
        assert blobs.put(b"some bytes") == digest
        assert blobs.read(digest) == b"some bytes"

    def test_a_blob_that_is_not_there_and_a_name_that_is_none_are_errors(self, tmp_path: Path) -> None:
        blobs = Blobs(tmp_path)
        with pytest.raises(TamperError, match="there is none"):
            blobs.read("sha256:" + "0" * 64)
        with pytest.raises(PermanentError, match="expected sha256:<64 hex>"):
            blobs.path("sha256:../../etc/passwd")


HOLDER = """
import sys
from pathlib import Path
from daemon.store.lock import StateLock
with StateLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_instard_is_told_who_holds_the_state(tmp_path: Path) -> None:
    path = tmp_path / "instard.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(PermanentError, match=f"process {holder.pid} holds it"), StateLock(path):
        pytest.fail("the lock was given twice")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert holder.stdin is not None
    holder.stdin.close()
    with StateLock(path):
        assert path.read_text().strip().isdigit()


def block(requests: list[tuple[str, str, float]], shape: tuple[int, ...] = (4, 4)) -> np.ndarray:
    rows = np.zeros(len(requests), np.dtype([(n, d, s) for n, d, s in sample_fields("|u1", shape)]))
    for place, (request, group, at) in enumerate(requests):
        rows[place]["row_key"] = np.void(row_key(request, 0, 1))
        rows[place]["group_key"] = np.void(group_key(group))
        rows[place]["at"] = at
        rows[place]["input"] = place % 250
    return rows


def label_all(samples: Samples, requests: list[tuple[str, str, float]], at: float = 100.0) -> int:
    keys = np.array([np.void(row_key(name, 0, 1)) for name, _, _ in requests], "V16")
    return samples.label(keys, np.arange(len(requests), dtype=np.int64) % 10, at)


class TestSamples:
    def test_near_duplicates_share_a_role_and_shares_are_kept(self, tmp_path: Path) -> None:
        samples = Samples(tmp_path, KEY, SHARES)
        roles = [samples.role(group_key(f"meter-{n}")) for n in range(4000)]
        assert roles == [samples.role(group_key(f"meter-{n}")) for n in range(4000)]
        for role, share in zip(Role, (0.45, 0.12, 0.38, 0.05), strict=True):
            assert roles.count(role) / 4000 == pytest.approx(share, abs=0.03)

    def test_another_key_draws_other_roles(self, tmp_path: Path) -> None:
        one, other = Samples(tmp_path / "a", KEY, SHARES), Samples(tmp_path / "b", b"z" * 32, SHARES)
        keys = [group_key(f"meter-{n}") for n in range(200)]
        assert [one.role(k) for k in keys] != [other.role(k) for k in keys]

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 2**16), size=st.integers(30, 120))
    def test_gate_rows_never_reach_a_search(
        self, tmp_path_factory: pytest.TempPathFactory, seed: int, size: int
    ) -> None:
        folder = tmp_path_factory.mktemp("samples")
        samples = Samples(folder, KEY, SHARES)
        requests = [(f"r{seed}-{n}", f"meter-{seed}-{n // 2}", float(n)) for n in range(size)]
        rows = block(requests)
        rows["input"][:, 0, 0] = np.arange(size) % 256
        rows["input"][:, 0, 1] = 7
        samples.ingest(rows)
        label_all(samples, requests)
        samples.export_search(folder / "s.npz", since=10.0, max_new=1000, max_replay=1000, seed=1)
        samples.export_gate(folder / "g.npz", since=10.0, max_rows=1000, seed=1)
        gate = {n for n, (_, group, _) in enumerate(requests) if samples.role(group_key(group)) is Role.GATE}
        with np.load(folder / "s.npz") as search, np.load(folder / "g.npz") as guarded:
            assert not set(search["x"][:, 0, 0].tolist()) & gate
            assert set(guarded["x"][:, 0, 0].tolist()) <= gate

    def test_one_latest_row_a_group_and_regime_reaches_the_gate_and_the_query_is_counted(
        self, tmp_path: Path
    ) -> None:
        samples = Samples(tmp_path, KEY, SHARES)
        names = [n for n in range(200) if samples.role(group_key(f"meter-{n}")) is Role.GATE][:20]
        requests = [(f"r{n}-{at}", f"meter-{n}", float(at)) for n in names for at in (1, 2, 11, 12)]
        samples.ingest(block(requests))
        label_all(samples, requests)
        samples.export_gate(tmp_path / "g.npz", since=10.0, max_rows=1000, seed=1)
        with np.load(tmp_path / "g.npz") as gate:
            assert len(gate["group"]) == 40
            assert len(np.unique(gate["group"])) == 20
            assert gate["regime"].tolist() == [0] * 20 + [1] * 20
            latest = {
                place % 250 for place, (name, _, _) in enumerate(requests) if name.endswith(("-2", "-12"))
            }
            assert set(gate["x"][:, 0, 0].tolist()) == latest
        assert samples.gate_queries() == 1
        assert samples.counts(0.0).gate == 20

    def test_a_label_may_come_before_its_sample_and_only_the_first_counts(self, tmp_path: Path) -> None:
        samples = Samples(tmp_path, KEY, SHARES)
        requests = [(f"r{n}", f"meter-{n}", 1.0) for n in range(50)]
        assert label_all(samples, requests) == 0
        assert samples.ingest(block(requests)) == 50
        assert samples.ingest(block(requests)) == 0
        counts = samples.counts(0.0)
        assert counts.train + counts.search + counts.gate + counts.reference == 50
        keys = np.array([np.void(row_key("r1", 0, 1))], "V16")
        assert samples.label(keys, np.array([9]), 2.0) == 0

    def test_replay_is_even_over_the_classes(self, tmp_path: Path) -> None:
        samples = Samples(tmp_path, KEY, SHARES)
        y = np.repeat([0, 1], [900, 100])
        samples.ingest_source(np.zeros((1000, 4, 4), np.uint8), y, 0.0)
        samples.export_search(tmp_path / "s.npz", since=5.0, max_new=10, max_replay=60, seed=3)
        with np.load(tmp_path / "s.npz") as search:
            assert np.bincount(search["y"]).tolist() == [30, 30]
            assert not search["regime"].any()

    def test_rows_of_another_shape_are_refused(self, tmp_path: Path) -> None:
        samples = Samples(tmp_path, KEY, SHARES)
        samples.ingest(block([("a", "g", 1.0)]))
        with pytest.raises(ValueError, match=r"expected samples of \|u1 \(4,4\)"):
            samples.ingest(block([("b", "g", 1.0)], shape=(5, 5)))

    def test_trimming_keeps_the_latest_and_the_founding_rows(self, tmp_path: Path) -> None:
        samples = Samples(tmp_path, KEY, SHARES)
        samples.ingest_source(np.zeros((100, 4, 4), np.uint8), np.zeros(100, np.int64), 0.0)
        requests = [(f"r{n}", f"meter-{n}", float(n + 1)) for n in range(300)]
        samples.ingest(block(requests))
        label_all(samples, requests)
        samples.trim(20)
        counts = samples.counts(0.0)
        assert counts.train + counts.search + counts.gate + counts.reference == 100 + 40
        assert samples.counts(200.0).gate == 20

    def test_the_vault_is_closed_to_others(self, tmp_path: Path) -> None:
        Samples(tmp_path, KEY, SHARES)
        assert (tmp_path / "vault").stat().st_mode & 0o077 == 0
