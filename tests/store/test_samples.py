"""Samples: one role for ever, the gate apart, labels early and late."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.store.roles import Roles
from daemon.store.samples import Samples
from policies.clauses import Data
from policies.errors import PermanentError
from policies.telemetry import group_key, row_key, sample_fields
from policies.terms import Role
from policies.wire import digest_bytes

Request = tuple[str, str, float]
Store = Callable[..., Samples]

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


def block(requests: list[Request], shape: tuple[int, ...] = (4, 4)) -> np.ndarray:
    """Return sample records whose inputs carry the number of their request in the first two bytes."""
    rows = np.zeros(len(requests), np.dtype([(n, d, s) for n, d, s in sample_fields("|u1", shape)]))
    for place, (request, group, at) in enumerate(requests):
        rows[place]["row_key"] = np.void(row_key(request, 0, 1))
        rows[place]["group_key"] = np.void(group_key(group))
        rows[place]["at"] = at
        rows[place]["input"][0, :2] = divmod(place, 256)
    return rows


def numbers(x: np.ndarray) -> list[int]:
    return (x[:, 0, 0].astype(int) * 256 + x[:, 0, 1]).tolist()


def keys(requests: list[Request]) -> np.ndarray:
    return np.array([np.void(row_key(name, 0, 1)) for name, _, _ in requests], "V16")


def label_all(samples: Samples, requests: list[Request], at: float = 100.0) -> int:
    return samples.label(keys(requests), np.arange(len(requests), dtype=np.int64) % 10, at)


def total(samples: Samples, since: float = 0.0) -> int:
    counts = samples.counts(since)
    return counts.train + counts.search + counts.gate + counts.reference


def founding(n: int) -> np.ndarray:
    x = np.zeros((n, 4, 4), np.uint8)
    x[:, 0, 0], x[:, 0, 1] = divmod(np.arange(n), 256)
    return x


class TestRoles:
    def test_near_duplicates_share_a_role_and_shares_are_kept(self) -> None:
        groups = [group_key(f"meter-{n}") for n in range(8000)]
        drawn = [Roles(KEY, SHARES).draw(group) for group in groups]
        assert drawn == [Roles(KEY, SHARES).draw(group) for group in groups]
        for role, share in zip(Role, (0.45, 0.12, 0.38, 0.05), strict=True):
            # Five standard errors of a share of 8000 draws are below 0.028.
            assert drawn.count(role) / 8000 == pytest.approx(share, abs=0.028)

    def test_another_key_draws_other_roles_and_a_short_one_is_refused(self) -> None:
        groups = [group_key(f"meter-{n}") for n in range(200)]
        assert [Roles(KEY, SHARES).draw(g) for g in groups] != [
            Roles(b"z" * 32, SHARES).draw(g) for g in groups
        ]
        with pytest.raises(ValueError, match="at least 16 bytes, got 5"):
            Roles(b"short", SHARES)

    def test_roles_do_not_depend_on_the_order_of_arrival(self, store: Store, tmp_path: Path) -> None:
        requests = [(f"r{n}", f"meter-{n // 3}", float(n)) for n in range(90)]
        shuffled = random.Random(1).sample(requests, len(requests))
        one, other = store(tmp_path / "a"), store(tmp_path / "b")
        one.ingest(block(requests))
        for request in shuffled:
            other.ingest(block([request]))
        for samples in (one, other):
            label_all(samples, requests)
        assert one.counts(0.0) == other.counts(0.0)

    def test_a_group_keeps_its_role_when_the_shares_change(self, store: Store, tmp_path: Path) -> None:
        requests = [(f"r{n}", f"meter-{n}", 1.0) for n in range(100)]
        before = store(tmp_path, shares=(1.0, 0.0, 0.0, 0.0))
        before.ingest(block(requests))
        before.close()
        after = store(tmp_path, shares=(0.0, 0.0, 1.0, 0.0))
        again = [(f"again-{n}", f"meter-{n}", 2.0) for n in range(100)]
        fresh = [(f"fresh-{n}", f"other-{n}", 2.0) for n in range(10)]
        after.ingest(block(again + fresh))
        label_all(after, again + fresh)
        assert (after.counts(0.0).train, after.counts(0.0).gate) == (100, 10)


class Leaky(Samples):
    """A mutant that draws a role a row: near-duplicates of gate rows reach the search."""

    def _role(self, group: bytes) -> Role:
        self.drawn = getattr(self, "drawn", 0) + 1
        return self._roles.draw(group + bytes([self.drawn % 256]))


def leaked_groups(samples: Samples, folder: Path, seed: int, size: int) -> set[str]:
    """Return the groups that both a search and a guard got rows of."""
    requests = [(f"r{seed}-{n}", f"meter-{seed}-{n // 2}", float(n)) for n in range(size)]
    for place in range(0, size, 3):
        rows = block(requests)[place : place + 3]
        samples.ingest(rows)
    label_all(samples, requests)
    samples.export_search(folder / "s.npz", since=10.0, max_new=1000, max_replay=1000, seed=1)
    samples.export_gate(folder / "g.npz", since=10.0, max_rows=1000, seed=1)
    with np.load(folder / "s.npz") as search, np.load(folder / "g.npz") as gate:
        seen = [{requests[n][1] for n in numbers(file["x"])} for file in (search, gate)]
    assert all(seen)
    return seen[0] & seen[1]


class TestTheGate:
    @settings(max_examples=12, deadline=None)
    @given(seed=st.integers(0, 2**16), size=st.integers(40, 120))
    def test_no_group_of_the_gate_ever_reaches_a_search(
        self, tmp_path_factory: pytest.TempPathFactory, seed: int, size: int
    ) -> None:
        folder = tmp_path_factory.mktemp("samples")
        samples = Samples(folder, KEY, SHARES)
        assert leaked_groups(samples, folder, seed, size) == set()
        samples.close()

    def test_a_store_that_draws_a_role_a_row_would_be_noticed(self, store: Store, tmp_path: Path) -> None:
        assert leaked_groups(store(tmp_path, kind=Leaky), tmp_path, seed=1, size=120)

    def test_a_row_that_comes_again_under_another_group_stays_where_it_is(self, store: Store) -> None:
        samples = store()
        groups = [f"meter-{n}" for n in range(40)]
        train = next(g for g in groups if samples.role(group_key(g)) is Role.TRAIN)
        gate = next(g for g in groups if samples.role(group_key(g)) is Role.GATE)
        assert samples.ingest(block([("r", train, 1.0)])) == 1
        assert samples.ingest(block([("r", gate, 1.0)])) == 0
        label_all(samples, [("r", gate, 1.0)])
        assert (samples.counts(0.0).train, samples.counts(0.0).gate) == (1, 0)

    def test_guards_get_the_latest_row_a_group_and_regime_and_the_query_is_counted(
        self, store: Store, tmp_path: Path
    ) -> None:
        samples = store()
        names = [n for n in range(200) if samples.role(group_key(f"meter-{n}")) is Role.GATE][:20]
        requests = [(f"r{n}-{at}", f"meter-{n}", float(at)) for n in names for at in (1, 2, 11, 12)]
        samples.ingest(block(requests))
        label_all(samples, requests)
        samples.export_gate(tmp_path / "g.npz", since=10.0, max_rows=1000, seed=1)
        with np.load(tmp_path / "g.npz") as gate:
            assert gate["group"].dtype == np.dtype("V8")
            assert len(np.unique(gate["group"])) == 20
            assert gate["regime"].tolist() == [0] * 20 + [1] * 20
            latest = {n for n, (name, _, _) in enumerate(requests) if name.endswith(("-2", "-12"))}
            assert set(numbers(gate["x"])) == latest
            assert gate["y"].tolist() == [n % 10 for n in numbers(gate["x"])]
            expected = [group_key(requests[n][1]) for n in numbers(gate["x"])]
            assert [bytes(group) for group in gate["group"]] == expected
        assert samples.gate_queries() == 1
        assert samples.counts(0.0).gate == 20
        samples.export_gate(tmp_path / "few.npz", since=10.0, max_rows=5, seed=1)
        with np.load(tmp_path / "few.npz") as gate:
            assert gate["regime"].tolist() == [0] * 5 + [1] * 5
        assert samples.gate_queries() == 2

    def test_the_vault_and_what_comes_from_it_are_closed_to_others(
        self, store: Store, tmp_path: Path
    ) -> None:
        samples = store()
        (tmp_path / "g.npz").touch(0o644)
        samples.export_gate(tmp_path / "g.npz", since=0.0, max_rows=5, seed=1)
        assert (tmp_path / "vault").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "g.npz").stat().st_mode & 0o777 == 0o600


class TestLabels:
    def test_a_label_may_come_before_its_sample_and_only_the_first_counts(
        self, store: Store, tmp_path: Path
    ) -> None:
        samples = store()
        requests = [(f"r{n}", f"meter-{n}", 1.0) for n in range(50)]
        assert label_all(samples, requests) == 0
        assert samples.label(keys(requests), np.full(50, 9), 101.0) == 0
        assert samples.ingest(block(requests)) == 50
        assert samples.ingest(block(requests)) == 0
        assert total(samples) == 50
        assert samples.label(keys(requests), np.full(50, 9), 102.0) == 0
        samples.export_search(tmp_path / "s.npz", since=0.0, max_new=50, max_replay=0, seed=1)
        with np.load(tmp_path / "s.npz") as search:
            assert search["y"].tolist() == [n % 10 for n in numbers(search["x"])]

    def test_a_label_may_come_after_its_sample(self, store: Store) -> None:
        samples = store()
        requests = [(f"r{n}", f"meter-{n}", 1.0) for n in range(50)]
        samples.ingest(block(requests))
        assert total(samples) == 0
        assert label_all(samples, requests) == 50
        assert total(samples) == 50

    def test_a_label_whose_sample_never_came_is_forgotten_after_a_while(self, store: Store) -> None:
        samples = store()
        early, late = [("early", "a", 1.0)], [("late", "b", 1.0)]
        label_all(samples, early, at=100.0)
        label_all(samples, late, at=1000.5)
        samples.ingest(block(early + late))
        assert total(samples) == 1


class TestFounding:
    def test_two_files_do_not_hide_each_other_and_a_file_read_again_changes_nothing(
        self, store: Store
    ) -> None:
        samples, x = store(), founding(120)
        y = np.zeros(120, np.int64)
        assert samples.ingest_source(x[:80], y[:80], 0.0) == 80
        assert samples.ingest_source(x[80:], y[80:], 0.0) == 40
        assert samples.ingest_source(x, y, 0.0) == 0
        assert total(samples) == 120

    def test_founding_rows_count_and_are_traffic_until_there_is_other(
        self, store: Store, tmp_path: Path
    ) -> None:
        samples = store()
        samples.ingest_source(founding(400), np.arange(400) % 10, 0.0)
        assert samples.counts(0.0).reference > 5
        assert samples.counts(0.5).reference == 0
        samples.export_traffic(tmp_path / "t.npz", max_rows=5)
        with np.load(tmp_path / "t.npz") as traffic:
            assert traffic["x"].shape == (5, 4, 4)
            assert traffic.files == ["x"]


class TestExports:
    def test_search_gets_the_latest_new_rows_and_an_even_replay(self, store: Store, tmp_path: Path) -> None:
        samples = store(shares=(0.5, 0.5, 0.0, 0.0))
        samples.ingest_source(founding(1000), np.repeat([0, 1], [900, 100]), 0.0)
        requests = [(f"r{n}", f"meter-{n}", 10.0 + n) for n in range(40)]
        samples.ingest(block(requests))
        label_all(samples, requests)
        samples.export_search(tmp_path / "s.npz", since=10.0, max_new=15, max_replay=60, seed=3)
        with np.load(tmp_path / "s.npz") as search:
            assert search["regime"].tolist() == [1] * 15 + [0] * 60
            assert sorted(numbers(search["x"][:15])) == list(range(25, 40))
            assert np.bincount(search["y"][15:]).tolist() == [30, 30]
            assert 0 < search["role"].sum() < 75

    def test_traffic_is_in_order_of_arrival_and_the_latest(self, store: Store, tmp_path: Path) -> None:
        samples = store(shares=(0.0, 0.0, 0.0, 1.0))
        samples.ingest(block([(f"r{n}", f"meter-{n}", float(n)) for n in range(30)]))
        samples.export_traffic(tmp_path / "t.npz", max_rows=10)
        with np.load(tmp_path / "t.npz") as traffic:
            assert numbers(traffic["x"]) == list(range(20, 30))

    def test_the_same_store_and_seed_give_the_same_bytes_and_another_seed_other_ones(
        self, store: Store, tmp_path: Path
    ) -> None:
        samples = store()
        samples.ingest_source(founding(300), np.arange(300) % 10, 0.0)
        kind = {"since": 5.0, "max_new": 10, "max_replay": 50}
        digests = [
            samples.export_search(tmp_path / name, seed=seed, **kind).digest
            for name, seed in (("a.npz", 1), ("b", 1), ("c", 2))
        ]
        assert digests[0] == digests[1] != digests[2]
        assert digests[1] == digest_bytes((tmp_path / "b").read_bytes())

    def test_an_empty_store_exports_nothing_rather_than_failing(self, store: Store, tmp_path: Path) -> None:
        samples = store()
        samples.export_search(tmp_path / "s.npz", since=5.0, max_new=10, max_replay=10, seed=1)
        samples.export_gate(tmp_path / "g.npz", since=5.0, max_rows=10, seed=1)
        samples.export_traffic(tmp_path / "t.npz", max_rows=10)
        for name in ("s", "g", "t"):
            with np.load(tmp_path / f"{name}.npz") as file:
                assert all(len(file[array]) == 0 for array in file.files)


def test_rows_of_another_shape_are_refused(store: Store) -> None:
    samples = store()
    samples.ingest(block([("a", "g", 1.0)]))
    with pytest.raises(PermanentError, match=r"expected samples of \|u1 \(4,4\), got \|u1 \(5,5\)"):
        samples.ingest(block([("b", "g", 1.0)], shape=(5, 5)))


def test_a_record_without_a_finite_time_is_left_out(store: Store) -> None:
    assert store().ingest(block([("a", "g", float("nan")), ("b", "h", 1.0)])) == 1


def test_trimming_keeps_the_latest_and_the_founding_rows(store: Store) -> None:
    samples = store()
    samples.ingest_source(founding(100), np.zeros(100, np.int64), 0.0)
    requests = [(f"r{n}", f"meter-{n}", float(n + 1)) for n in range(300)]
    samples.ingest(block(requests))
    label_all(samples, requests)
    assert samples.trim(20) == 300 - 40
    assert total(samples) == 100 + 40
    assert samples.counts(200.0).gate == 20
    assert samples.trim(20) == 0


def test_what_a_closed_store_knew_the_next_one_knows(store: Store, tmp_path: Path) -> None:
    requests = [(f"r{n}", f"meter-{n}", 1.0) for n in range(50)]
    first = store(tmp_path)
    first.ingest(block(requests))
    label_all(first, requests[:25])
    first.close()
    second = store(tmp_path)
    assert total(second) == 25
    assert second.ingest(block(requests)) == 0
