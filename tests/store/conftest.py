"""A journal with seven entries, and sample stores that are closed after the test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.store.journal import Journal
from daemon.store.samples import Samples
from policies.clauses import Data

Shares = tuple[float, float, float, float]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a journal with seven entries that nobody has open."""
    journal = Journal(tmp_path / "journal.db")
    for number in range(1, 8):
        journal.append("note", {"number": number, "text": "entry"}, float(number))
    journal.close()
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    """Return the journal with seven entries, open."""
    opened = Journal(path)
    yield opened
    opened.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Callable[..., Samples]]:
    """Return what makes sample stores: ``store(folder, key, shares, kind)``."""
    made: list[Samples] = []

    def make(
        folder: Path = tmp_path,
        key: bytes = b"k" * 32,
        shares: Shares = (0.45, 0.12, 0.38, 0.05),
        kind: type[Samples] = Samples,
    ) -> Samples:
        train, search, gate, reference = shares
        clause = Data(
            clause="MP-1",
            train_share=train,
            search_share=search,
            gate_share=gate,
            reference_share=reference,
            min_train_rows=1,
            min_search_rows=1,
            min_gate_rows=1,
            max_gate_rows=1,
        )
        made.append(kind(folder, key, clause))
        return made[-1]

    yield make
    for samples in made:
        samples.close()
