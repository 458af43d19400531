"""Opens the intake where somebody else serves; where instar-serve does, it writes the spool itself."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.control.ledger import Ledger
from daemon.control.targets.target import Target

if TYPE_CHECKING:
    from daemon.outside.intake import Intake


def open_intake(
    target: Target, model: str, ledger: Callable[[], Ledger], blobs: Path, spool: Path, turn_s: float
) -> "Intake | None":
    """Return the intake of a model, or None where the target writes the spool.

    Args:
        target: Where deployments go.
        model: The model's name.
        ledger: Gives the folded journal.
        blobs: The blob store's folder.
        spool: The spool's folder; the intake's own file lies beside it.
        turn_s: Seconds between two turns.
    """
    if target.abilities.spool:
        return None
    # The runtime stays unloaded where instar-serve does the proving.
    from daemon.control.targets.proofs import Proofs
    from daemon.outside.intake import Intake

    return Intake(
        model,
        Proofs(blobs, model),
        lambda generation: bundle_of(ledger(), generation),
        lambda: current(ledger()),
        spool,
        spool.with_name("intake.db"),
        turn_s,
    )


def bundle_of(ledger: Ledger, generation: int) -> str | None:
    """Return the bundle that a generation names or named; None when there never was such a generation."""
    # Copied at once: the turn's thread may fold an entry in meanwhile.
    for candidate in list(ledger.candidates.values()):
        if candidate.generation == generation:
            return candidate.bundle
    # A rollback gave the candidate a new number; telemetry of the old one may still come.
    for swap in list(ledger.swaps):
        if swap.generation == generation:
            return ledger.candidates[swap.candidate].bundle
    return None


def current(ledger: Ledger) -> int:
    """Return the live generation, else the one that is on its way there, else 0."""
    if ledger.live is not None:
        return ledger.live.generation
    candidate = ledger.open_candidate
    return 0 if candidate is None or candidate.generation is None else candidate.generation
