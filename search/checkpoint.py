"""What a search keeps on disk while it works, so that one that was killed goes on where it was.

* Lies in ``OUT/checkpoint``: ``checkpoint.json``, and the tensors that it names by digest. Never a pickle.
* A file is replaced whole; the JSON last, so that it never names tensors that are not there.
* It belongs to one brief, strategy and set of libraries. Another's, or a broken one, is not taken up: the
  search begins anew.
"""

import base64
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from policies.errors import TamperError
from policies.terms import Artefact, Evidence, Term
from policies.wire import canonical, digest_bytes
from search.exam import Marks
from search.explore import Look
from search.profile import Profile
from search.progress import write_whole
from search.training import Memory


class Moment(Term):
    """``training.Memory`` as text."""

    step: int
    planned: int
    scale: float
    smooth: float | None
    rollbacks: int


class Seen(Term):
    """One look as text; bits are packed, eight rows a byte."""

    genes: tuple[int, ...]
    new_b64: str
    old_b64: str
    rows: tuple[int, int]
    latency_ms: float
    predicted: float | None


class Kept(Term):
    """The text of ``checkpoint.json``."""

    format: Literal[1]
    search: str = Field(description="Digest of the brief, the strategy and the versions that it belongs to.")
    profile: Profile
    cpu_s: float
    wall_s: float
    phases_s: dict[str, float]
    cut: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    old_before: float | None
    mix: float
    centres: tuple[tuple[int, ...], ...]
    training: Moment | None
    trained: bool
    tensors: Artefact | None
    looks: tuple[Seen, ...]
    rounds: int
    guessed: tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """A checkpoint with its tensors, read and checked."""

    kept: Kept
    tensors: dict[str, Tensor]


class Checkpoint:
    """The folder.

    Args:
        out: Of the search.
        search: Digest of what the search is: brief, strategy, versions.
    """

    def __init__(self, out: Path, search: str) -> None:
        self._folder = out / "checkpoint"
        self._search = search

    def find(self) -> Found | None:
        """Return what a former process left of the same search, if it is whole."""
        try:
            kept = Kept.model_validate_json((self._folder / "checkpoint.json").read_bytes())
            if kept.search != self._search:
                return None
            tensors = {} if kept.tensors is None else load(self._read(kept.tensors))
        except (OSError, ValidationError, SafetensorError, TamperError):
            return None
        return Found(kept, tensors)

    def keep(self, kept: Kept, tensors: Mapping[str, Tensor] | None) -> Kept:
        """Replace what is kept, and return it as it was written; without tensors those that are named
        stay."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if tensors is not None:
            raw = save({name: tensor.contiguous() for name, tensor in tensors.items()})
            digest = digest_bytes(raw)
            path = self._folder / f"{digest.removeprefix('sha256:')[:16]}.safetensors"
            write_whole(path, raw)
            kept = kept.model_copy(update={"tensors": Artefact(path=path.name, digest=digest)})
        write_whole(self._folder / "checkpoint.json", canonical(kept))
        self._tidy(kept.tensors)
        return kept

    def drop(self) -> None:
        """Take the folder away: the search is over."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, artefact: Artefact) -> bytes:
        raw = (self._folder / artefact.path).read_bytes()
        if digest_bytes(raw) != artefact.digest:
            raise TamperError(f"expected {artefact.digest} in {artefact.path}, got other bytes")
        return raw

    def _tidy(self, named: Artefact | None) -> None:
        for path in self._folder.glob("*.safetensors"):
            if named is None or path.name != named.path:
                path.unlink(missing_ok=True)


def to_moment(memory: Memory) -> Moment:
    """Return a training's memory as text."""
    smooth = None if math.isnan(memory.smooth) else memory.smooth
    return Moment(
        step=memory.step,
        planned=memory.planned,
        scale=memory.scale,
        smooth=smooth,
        rollbacks=memory.rollbacks,
    )


def to_memory(moment: Moment) -> Memory:
    """Return a training's memory from its text."""
    smooth = math.nan if moment.smooth is None else moment.smooth
    return Memory(moment.step, moment.planned, moment.scale, smooth, moment.rollbacks)


def to_seen(look: Look) -> Seen:
    """Return a look as text."""
    return Seen(
        genes=tuple(int(gene) for gene in look.genes),
        new_b64=_packed(look.marks.new),
        old_b64=_packed(look.marks.old),
        rows=(len(look.marks.new), len(look.marks.old)),
        latency_ms=look.latency_ms,
        predicted=look.predicted,
    )


def to_look(seen: Seen) -> Look:
    """Return a look from its text."""
    marks = Marks(_bits(seen.new_b64, seen.rows[0]), _bits(seen.old_b64, seen.rows[1]))
    return Look(np.array(seen.genes, dtype=np.int64), marks, seen.latency_ms, seen.predicted)


def _packed(bits: NDArray[np.bool_]) -> str:
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def _bits(text: str, n: int) -> NDArray[np.bool_]:
    packed = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    return np.unpackbits(packed, count=n).astype(np.bool_)
