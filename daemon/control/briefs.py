"""Briefs, cases and records: what control tells its workers, and what it makes of their answer.

* A brief has rows of roles train, search and replay; a case has gate rows. Neither has the other's.
* Whatever a worker must believe comes with its digest.
* What a search may inherit beside its parent is what was live once: judged, signed and confirmed.
"""

import math
import os
from pathlib import Path

from daemon.control.book import Book
from daemon.control.law import Law
from daemon.store.blobs import Blobs
from daemon.store.samples import Samples
from policies import limits, rules
from policies.case import Case
from policies.lifecycle import Stage
from policies.terms import (
    Artefact,
    Brief,
    Genome,
    Heirloom,
    Limits,
    Precision,
    SearchResult,
    Task,
    Trigger,
    TriggerKind,
)
from policies.world import Candidate, Kind

_FAR = 10_000
_MAX_NEW = 4000
_MAX_REPLAY = 4000
_TRAFFIC_ROWS = 400
_LIBRARY = 6
"""Earlier regimes that a search is shown: each costs it an exam and a supernet in memory."""

_INT8_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})


class Briefs:
    """Writes for the workers of one task."""

    def __init__(self, task: Task, law: Law, book: Book, blobs: Blobs, samples: Samples, seed: int) -> None:
        self._vault = samples.vault
        self._task = task
        self._law = law
        self._book = book
        self._blobs = blobs
        self._samples = samples
        self._seed = seed

    def brief(self, name: str, trigger: Trigger, seed: int, folder: Path) -> Brief:
        """Return what a search may spend and must meet; its rows are written into ``folder``."""
        policy = self._law.policy
        clause = policy.modification_protocol.search
        founding = trigger.kind is TriggerKind.FOUNDING
        data = self._samples.export_search(
            folder / "data.npz",
            since=rules.change_since(trigger),
            max_new=_FAR if founding else _MAX_NEW,
            max_replay=_MAX_REPLAY,
            seed=seed,
        )
        live = self._book.ledger.live_candidate
        left = None if live is None else self._book.ledger.heritage[live.id]
        size = policy.description_of_modifications.size
        return Brief(
            id=name,
            kind=trigger.kind,
            task=self._task,
            seed=seed,
            budget_cpu_s=clause.founding_cpu_s if founding else clause.budget_cpu_s,
            max_memory_bytes=clause.max_memory_bytes,
            # Nothing is served while the first generation trains: it may have all cores.
            threads=max(1, os.cpu_count() or 1) if founding else clause.threads,
            limits=Limits(
                max_params=size.max_params,
                max_size_bytes=size.max_size_bytes,
                max_p99_ms=policy.modification_protocol.evaluation.latency.max_p99_ms,
                max_edit_distance=_FAR
                if founding
                else policy.description_of_modifications.architecture.max_edit_distance,
            ),
            data=data,
            parent_generation=0 if self._book.ledger.live is None else self._book.ledger.live.generation,
            parent_genome=None if live is None else live.genome,
            parent_state=None if left is None else self._blob(left.state),
            parent_archive=None if left is None else self._blob(left.archive),
            precisions=self._precisions(),
            library=self._library(live) if trigger.kind is TriggerKind.DATA and live is not None else (),
            served_p50_ms=_served_p50_ms(trigger) if trigger.kind is TriggerKind.LATENCY else None,
            exit_confidence=policy.modification_protocol.exits.threshold,
        )

    def gate_path(self, candidate: str) -> Path:
        """Return where a candidate's gate rows lie for its panel."""
        return self._vault / f"{candidate}.npz"

    def case(self, candidate: Candidate, result: SearchResult, folder: Path) -> Case:
        """Return what the panel is shown: gate rows go into the vault, traffic into ``folder``."""
        ledger = self._book.ledger
        data = self._law.policy.modification_protocol.data
        live = ledger.live_candidate
        baseline = None if ledger.baseline is None else ledger.candidates[ledger.baseline]
        gate = self._samples.export_gate(
            self.gate_path(candidate.id),
            since=rules.change_since(candidate.trigger),
            max_rows=data.max_gate_rows,
            seed=self._seed,
        )
        if candidate.bundle is None:
            raise ValueError(f"expected an exported bundle on {candidate.id}")
        return Case(
            candidate=candidate.id,
            task=self._task,
            trigger=candidate.trigger,
            genome=candidate.genome,
            incumbent_genome=None if live is None else live.genome,
            bundle=self._blob(candidate.bundle),
            incumbent=None if live is None or live.bundle is None else self._blob(live.bundle),
            baseline=None if baseline is None or baseline.bundle is None else self._blob(baseline.bundle),
            gate=gate,
            traffic=self._samples.export_traffic(folder / "traffic.npz", max_rows=_TRAFFIC_ROWS),
            policy=self._law.policy,
            policy_digest=self._law.digest,
            search=result,
            baseline_distance=candidate.baseline_distance,
            incumbent_distance=candidate.incumbent_distance,
            demo_key=self._law.demo_key,
        )

    def record(self, name: str, trigger: Trigger, result: SearchResult, now: float) -> Candidate:
        """Return a search's winner as a candidate."""
        ledger = self._book.ledger
        live = ledger.live_candidate
        baseline = None if ledger.baseline is None else ledger.candidates[ledger.baseline]
        founding = trigger.kind is TriggerKind.FOUNDING
        return Candidate(
            id=name,
            kind=Kind.FOUNDING if founding else Kind.ADAPTATION,
            stage=Stage.PROPOSED,
            since=now,
            trigger=trigger,
            genome=result.winner,
            # What it was searched from, which need not be what is live when its search ends.
            base_generation=trigger.generation,
            incumbent_distance=0 if live is None else limits.edit_distance(result.winner, live.genome),
            baseline_distance=0 if baseline is None else limits.edit_distance(result.winner, baseline.genome),
        )

    def _precisions(self) -> tuple[Precision, ...]:
        """Return what a network may compute in: what the integrity guard would let pass."""
        allowed = self._law.policy.modification_protocol.evaluation.integrity.allowed_ops
        return (Precision.FP32, Precision.INT8) if set(allowed) >= _INT8_OPS else (Precision.FP32,)

    def _library(self, live: Candidate) -> tuple[Heirloom, ...]:
        """Return what earlier generations left, the latest first; the live one's is the parent's.

        Passed over is what a search would refuse or cannot compare: an accuracy that was never journalled, a
        state that is gone, a genome of another space or length.
        """
        ledger = self._book.ledger
        found: list[Heirloom] = []
        # A regime that came back is one network under two names: it is tried once.
        known = {(live.genome, ledger.heritage[live.id].state)}
        for name, generation in ledger.retired.items():
            left, genome = ledger.heritage[name], ledger.candidates[name].genome
            if left.accuracy is None or not _of_one_space(genome, live.genome):
                continue
            if (genome, left.state) in known or not self._blobs.has(left.state):
                continue
            known.add((genome, left.state))
            found.append(
                Heirloom(
                    generation=generation, genome=genome, state=self._blob(left.state), accuracy=left.accuracy
                )
            )
        return tuple(found[:_LIBRARY])

    def _blob(self, digest: str) -> Artefact:
        return Artefact(path=str(self._blobs.path(digest)), digest=digest)


def _of_one_space(one: Genome, other: Genome) -> bool:
    return one.space == other.space and len(one.genes) == len(other.genes)


def _served_p50_ms(trigger: Trigger) -> float | None:
    """Return the live generation's median latency as the trigger's latency signal has it, or None.

    It is of the whole request in the data plane: from when its body had come to when the model had answered,
    with the waiting for its batch; without the way to and from the client. A request of several rows counts
    once a row.
    """
    facts = next((signal.facts for signal in trigger.signals if signal.monitor == "latency"), {})
    p50_ms = facts.get("p50_ms", 0.0)
    return p50_ms if math.isfinite(p50_ms) and p50_ms > 0 else None
