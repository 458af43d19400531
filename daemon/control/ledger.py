"""The journal, folded: what all entries so far amount to.

* Folding is pure: the same entries give the same ledger, on any machine, at any time.
* A candidate's stage changes by ``candidate.moved`` alone, and only along the lifecycle's roads.
* Kinds that tell a story but decide nothing (``page``, ``deploy.*``) fold to nothing.

``turn`` reads it; nobody writes it but ``apply``.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import TypeAdapter

from policies.lifecycle import OPEN, Stage, move
from policies.probation import Step
from policies.shadow import ShadowVerdict
from policies.status import Freeze, Swap
from policies.terms import Approval, Finding, Release, Slot, Trigger, TriggerKind, Verdict
from policies.world import Candidate, Kind, Spent

_VERDICTS = TypeAdapter(tuple[Verdict, ...])


class EntryLike(Protocol):
    """The part of a journal entry that folding reads."""

    @property
    def seq(self) -> int: ...  # noqa: D102
    @property
    def at(self) -> float: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def body(self) -> dict[str, Any]: ...  # noqa: D102


@dataclass(frozen=True)
class OpenSearch:
    """A search that was started and has not ended."""

    id: str
    trigger: str
    seed: int
    started_at: float
    attempts: int
    charged_cpu_s: float
    resumed_cpu_s: float


@dataclass(frozen=True)
class Heritage:
    """What a candidate's search leaves to later ones.

    ``accuracy`` is the winner's on rows of role search, in its own regime; None where nobody knows.
    """

    state: str
    archive: str
    accuracy: float | None


@dataclass
class Ledger:
    """The folded journal."""

    candidates: dict[str, Candidate] = field(default_factory=dict)
    heritage: dict[str, Heritage] = field(default_factory=dict)
    live: Release | None = None
    previous: Slot | None = None
    baseline: str | None = None
    last_generation: int = 0
    trigger: Trigger | None = None
    triggers: int = 0
    search: OpenSearch | None = None
    searches: int = 0
    judge_attempts: dict[str, int] = field(default_factory=dict)
    judge_failed: dict[str, str] = field(default_factory=dict)
    shadow_attempts: dict[str, int] = field(default_factory=dict)
    stage_failures: dict[str, int] = field(default_factory=dict)
    frozen: Freeze | None = None
    swaps: list[Swap] = field(default_factory=list)
    spent: list[Spent] = field(default_factory=list)
    references: dict[int, int] = field(default_factory=dict)
    levels: dict[str, str] = field(default_factory=dict)
    policy: str | None = None
    entries: int = 0

    @classmethod
    def fold(cls, entries: Iterable[EntryLike]) -> "Ledger":
        """Return the ledger of all entries, in order."""
        ledger = cls()
        for entry in entries:
            ledger.apply(entry)
        return ledger

    def apply(self, entry: EntryLike) -> None:
        """Fold one more entry in."""
        fold = _FOLDS.get(entry.kind)
        if fold is not None:
            fold(self, entry)
        self.entries = entry.seq

    @property
    def open_candidate(self) -> Candidate | None:
        """The candidate under way, if any; the furthest one when an operator rolls back beside it."""
        return next((c for c in reversed(self.candidates.values()) if c.stage in OPEN), None)

    @property
    def live_candidate(self) -> Candidate | None:
        """The candidate whose bytes are live."""
        return None if self.live is None else self.candidates[self.live.candidate]

    @property
    def retired(self) -> dict[str, int]:
        """Candidates that were live and are not, each with the last generation it had; the latest first."""
        last = {swap.candidate: swap.generation for swap in self.swaps}
        if self.live is not None:
            last.pop(self.live.candidate, None)
        return dict(sorted(last.items(), key=lambda item: item[1], reverse=True))

    @property
    def line(self) -> tuple[str, ...]:
        """Candidates that led to what is live, the first one first: a rollback goes back along it."""
        line: list[str] = []
        for swap in self.swaps:
            if swap.candidate in line:
                # What was left behind by going back is no longer on the way.
                del line[line.index(swap.candidate) :]
            line.append(swap.candidate)
        return tuple(line)

    def nonces(self, now: float) -> set[str]:
        """Return who has spoken on which nonce, as ``nonce/principal``; a yes that expired may be renewed."""
        said = [a for c in self.candidates.values() for a in c.approvals]
        counts = [a for a in said if a.decision == "decline" or a.expires_at > now]
        return {f"{a.subject.nonce}/{a.principal}" for a in counts}


def _trigger(ledger: Ledger, entry: EntryLike) -> None:
    ledger.trigger = Trigger.model_validate_json(_json(entry.body["trigger"]))
    ledger.triggers += 1


def _lapsed(ledger: Ledger, _entry: EntryLike) -> None:
    ledger.trigger = None


def _search_started(ledger: Ledger, entry: EntryLike) -> None:
    body = entry.body
    ledger.searches += 0 if ledger.search is not None else 1
    ledger.search = OpenSearch(
        id=body["id"],
        trigger=body["trigger"],
        seed=body["seed"],
        started_at=entry.at,
        attempts=body["attempt"],
        charged_cpu_s=body["charged_cpu_s"],
        # Entries of before there were checkpoints do not have it.
        resumed_cpu_s=body.get("resumed_cpu_s", 0.0),
    )


def _search_ended(ledger: Ledger, entry: EntryLike) -> None:
    body = entry.body
    kind = TriggerKind(body["kind"])
    ledger.spent.append(
        Spent(kind=kind, at=entry.at, cpu_s=body["cpu_s"], outcome=body["outcome"], reason=body["reason"])
    )
    ledger.search = None
    ledger.trigger = None


def _moved(ledger: Ledger, entry: EntryLike) -> None:
    body = entry.body
    if body["from"] is None:
        candidate = Candidate.model_validate_json(_json(body["record"]))
        ledger.heritage[candidate.id] = Heritage(
            state=body["state"],
            archive=body["archive"],
            # Entries of before there was a library do not have it.
            accuracy=body.get("accuracy"),
        )
    else:
        candidate = ledger.candidates.pop(body["candidate"])
        stage = move(candidate.stage, Stage(body["to"]))
        changes = {"stage": stage, "since": entry.at, "reason": body["reason"]}
        changes |= {key: body[key] for key in ("bundle", "generation", "base_generation") if key in body}
        if "kind" in body:
            changes["kind"] = Kind(body["kind"])
        if stage is Stage.STAGED:
            # A generation that comes back is watched anew.
            changes |= {"shadow": None, "step": None}
        candidate = candidate.model_copy(update=changes)
    ledger.candidates[candidate.id] = candidate
    if candidate.generation is not None:
        ledger.last_generation = max(ledger.last_generation, candidate.generation)
    if candidate.stage is Stage.LIVE:
        _went_live(ledger, candidate, entry.at)


def _went_live(ledger: Ledger, candidate: Candidate, at: float) -> None:
    if candidate.generation is None or candidate.bundle is None:
        raise ValueError(f"expected a generation and a bundle on {candidate.id}, which goes live")
    if ledger.live is not None:
        ledger.previous = Slot(generation=ledger.live.generation, bundle=ledger.live.bundle)
    ledger.live = Release(
        generation=candidate.generation, bundle=candidate.bundle, candidate=candidate.id, at=at
    )
    ledger.swaps.append(
        Swap(at=at, generation=candidate.generation, candidate=candidate.id, kind=candidate.kind)
    )
    if ledger.baseline is None:
        ledger.baseline = candidate.id


def _judge_started(ledger: Ledger, entry: EntryLike) -> None:
    name = entry.body["candidate"]
    ledger.judge_attempts[name] = entry.body["attempt"]
    ledger.judge_failed.pop(name, None)


def _judge_failed(ledger: Ledger, entry: EntryLike) -> None:
    ledger.judge_failed[entry.body["candidate"]] = entry.body["reason"]


def _shadow_started(ledger: Ledger, entry: EntryLike) -> None:
    ledger.shadow_attempts[entry.body["candidate"]] = entry.body["attempt"]


def _shadow_judged(ledger: Ledger, entry: EntryLike) -> None:
    body = entry.body
    _change(
        ledger,
        body["candidate"],
        shadow=ShadowVerdict(finding=Finding(body["finding"]), reason=body["reason"]),
    )


def _probation_step(ledger: Ledger, entry: EntryLike) -> None:
    body = entry.body
    step = Step(number=body["step"], of=body["of"], share=float(body["share"]), since=entry.at)
    _change(ledger, body["candidate"], step=step)


def _change(ledger: Ledger, name: str, **facts: object) -> None:
    ledger.candidates[name] = ledger.candidates[name].model_copy(update=facts)


def _stage_failed(ledger: Ledger, entry: EntryLike) -> None:
    name = entry.body["candidate"]
    ledger.stage_failures[name] = ledger.stage_failures.get(name, 0) + 1


def _sealed(ledger: Ledger, entry: EntryLike) -> None:
    body = entry.body
    candidate = ledger.candidates[body["candidate"]]
    ledger.candidates[candidate.id] = candidate.model_copy(
        update={
            "dossier": body["digest"],
            "report": body["report"],
            "verdicts": _VERDICTS.validate_json(_json(body["verdicts"])),
            "sealed_at": entry.at,
        }
    )


def _approval(ledger: Ledger, entry: EntryLike) -> None:
    approval = Approval.model_validate_json(_json(entry.body["approval"]))
    candidate = ledger.candidates[approval.subject.candidate]
    ledger.candidates[candidate.id] = candidate.model_copy(
        update={"approvals": (*candidate.approvals, approval)}
    )


def _freeze(ledger: Ledger, entry: EntryLike) -> None:
    ledger.frozen = Freeze(at=entry.at, by=entry.body["by"], reason=entry.body["reason"])


def _thaw(ledger: Ledger, _entry: EntryLike) -> None:
    ledger.frozen = None


def _reference(ledger: Ledger, entry: EntryLike) -> None:
    ledger.references[entry.body["generation"]] = entry.body["rows"]


def _signal(ledger: Ledger, entry: EntryLike) -> None:
    ledger.levels[entry.body["monitor"]] = entry.body["level"]


def _policy(ledger: Ledger, entry: EntryLike) -> None:
    ledger.policy = entry.body["digest"]


def _json(value: Any) -> bytes:
    # Strict terms take tuples and enums from JSON text only, not from the lists and texts it parses to.
    return TypeAdapter(Any).dump_json(value)


_FOLDS: dict[str, Callable[[Ledger, EntryLike], None]] = {
    "trigger": _trigger,
    "trigger.lapsed": _lapsed,
    "search.started": _search_started,
    "search.ended": _search_ended,
    "candidate.moved": _moved,
    "judge.started": _judge_started,
    "judge.failed": _judge_failed,
    "stage.failed": _stage_failed,
    "shadow.started": _shadow_started,
    "shadow.judged": _shadow_judged,
    "probation.step": _probation_step,
    "dossier.sealed": _sealed,
    "approval.received": _approval,
    "freeze": _freeze,
    "thaw": _thaw,
    "reference.sealed": _reference,
    "signal": _signal,
    "policy.loaded": _policy,
}
