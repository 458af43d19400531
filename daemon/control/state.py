"""What the data plane shall serve, as the ledger has it: a pure function of the journal."""

from daemon.control.ledger import Ledger
from policies.lifecycle import Stage
from policies.terms import Deployment, Slot
from policies.world import Candidate


def slot(candidate: Candidate, generation: int | None = None) -> Slot:
    """Return a candidate's slot.

    Raises:
        ValueError: It has no bytes or no generation yet.
    """
    number = generation if generation is not None else candidate.generation
    if number is None or candidate.bundle is None:
        raise ValueError(f"expected a generation and a bundle on {candidate.id} ({candidate.stage})")
    return Slot(generation=number, bundle=candidate.bundle)


def wanted(
    ledger: Ledger,
    model: str,
    staging: tuple[str, int] | None = None,
    exit_confidence: float | None = None,
) -> Deployment:
    """Return the deployment that the ledger asks for.

    Args:
        ledger: The folded journal.
        model: The model's name.
        staging: A candidate and its generation that are about to be staged.
        exit_confidence: At which a row may leave early (policy); None: nobody does.
    """
    live = ledger.live
    stable = None if live is None else Slot(generation=live.generation, bundle=live.bundle)
    newcomer: Slot | None = None
    part = 0.0
    for candidate in ledger.candidates.values():
        if staging is not None and candidate.id == staging[0]:
            newcomer = slot(candidate, staging[1])
        elif candidate.stage is Stage.STAGED:
            newcomer = slot(candidate)
        elif candidate.stage is Stage.PROBATION:
            newcomer = slot(candidate)
            # Recorded and then given: without a step there is no share yet.
            part = 0.0 if candidate.step is None else candidate.step.share
            if stable is None:
                # The founding generation serves alone while it is on probation.
                stable, newcomer, part = newcomer, None, 0.0
    return Deployment(
        revision=0,
        model=model,
        stable=stable,
        newcomer=newcomer,
        newcomer_share=part,
        previous=ledger.previous,
        exit_confidence=exit_confidence,
    )
