"""What a hub and its devices say to each other, beside raw telemetry and signed releases.

Canonical JSON, version 1 of the protocol (``/v1/...``). A device's name is in its certificate, never in what
it says.
"""

from pydantic import Field

from daemon.control.targets.target import Observed
from policies.terms import MOST, Digest, Name, Term

KINDS = ("telemetry", "samples")
"""Kinds of segments in a spool (``policies.telemetry``)."""

EPOCH_PATTERN = r"^[0-9a-f]{16}$"


class Hardware(Term):
    """What a device is, as it sees itself; for people, and beside every timing."""

    processor: str = Field(max_length=200)
    cores: int = Field(ge=1, le=4096)
    mhz: float | None = Field(description="Highest clock; None where the kernel does not say.")
    memory_bytes: int = Field(gt=0, le=MOST)
    governor: str | None = Field(max_length=60, description="Of the processor's clock.")
    runtime: str = Field(max_length=60)
    system: str = Field(max_length=120)

    def __str__(self) -> str:
        clock = "" if self.mhz is None else f", {self.mhz:.0f} MHz"
        return f"{self.processor}, {self.cores} cores{clock}, {self.runtime}"


class Report(Term):
    """How a device stands."""

    observed: Observed | None = Field(description="Of its instar-serve; None while that does not answer.")
    revision: int = Field(ge=0, le=MOST, description="The last deployment that it believed; 0: none yet.")
    problem: str | None = Field(max_length=1000, description="Why it does not serve what it believed.")
    idle: bool = Field(description="Whether it has time for a timing.")
    lost_segments: int = Field(ge=0, le=MOST, description="That its spool gave up before they were sent.")
    hardware: Hardware


class Answer(Term):
    """What a hub answers to a report."""

    release: int = Field(ge=0, description="Number of the newest timestamp; 0: nothing is published.")
    job: bool = Field(description="Whether there is a timing to do.")


class Position(Term):
    """Up to where a hub has a device's segments; ``offset`` counts the file's bytes, header included."""

    segment: int = Field(ge=0, le=MOST)
    offset: int = Field(ge=0, le=MOST)


class Received(Term):
    """What a hub answers to a push."""

    position: Position
    release: int = Field(ge=0)


class Piece(Term):
    """Bytes by digest and size."""

    digest: Digest
    size_bytes: int = Field(gt=0, le=MOST)


class TimingJob(Term):
    """Bundles to be timed side by side, one row at a time, on the rows of an ``.npz`` (array ``x``)."""

    id: Name
    bundles: tuple[Piece, ...] = Field(min_length=1, max_length=2)
    rows: Piece
    count: int = Field(ge=1, le=10_000, description="The last so many rows are run.")
