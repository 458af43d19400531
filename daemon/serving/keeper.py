"""The keeper: holds the table, and turns a wanted deployment into it or refuses.

* ``apply`` builds what is missing in a thread, persists the wanted state, and then makes it visible by one
  store: recorded before visible. Whatever fails before, the old table and the old file stay.
* Applying the same deployment twice is applying it once. A lower revision, or the same revision with other
  content, is refused.
* Bytes that are loaded already are not loaded again, also under a new generation number.
* One model name has one contract: a bundle with another input or other classes is refused.
* A previous slot that cannot be built does not stop a deployment: it is a comfort, and named as a problem.
* At a start the persisted deployment is loaded; what does not prove itself is not served, and ``problem``
  says why.

* ``unload`` serves nothing until ``load`` or the next deployment; the persisted one stays, so that a restart
  brings it back.

Called by ``admin.py``, ``main.py`` and, where clients may, the fronts. Does not decide what shall be served:
control does.
"""

import asyncio
import logging
from pathlib import Path

from pydantic import ValidationError

from daemon.ops.files import persist
from daemon.ops.memory import give_back
from daemon.serving.loading import short_turns
from daemon.serving.metrics import ServeMetrics
from daemon.serving.refusals import BundleRefused, DeploymentRefused
from daemon.serving.slot import Slot, build
from daemon.serving.table import Table
from policies.clock import Clock
from policies.terms import Deployment, Share, Term
from policies.terms import Slot as SlotTerm
from policies.wire import canonical

log = logging.getLogger(__name__)


class Observed(Term):
    """What is really served; ``problem`` says what of the wanted state is not."""

    revision: int
    stable: SlotTerm | None
    newcomer: SlotTerm | None
    previous: SlotTerm | None
    newcomer_share: Share
    exit_confidence: float | None
    ready: bool
    problem: str | None


class Keeper:
    """One a process; ``table`` is read by the batcher, once a batch."""

    def __init__(
        self, model: str, blobs: Path, path: Path, max_batch: int, metrics: ServeMetrics, clock: Clock
    ) -> None:
        self.table = Table(model)
        self._model, self._blobs, self._path, self._max_batch = model, blobs, path, max_batch
        self._metrics, self._clock = metrics, clock
        self._deployment: Deployment | None = None
        self._problem: str | None = "no deployment yet"
        self.unloaded = False
        self._lock = asyncio.Lock()

    def observed(self) -> Observed:
        """Return what is served now."""
        table = self.table
        terms = [
            None if slot is None else slot.term for slot in (table.stable, table.newcomer, table.previous)
        ]
        return Observed(
            revision=0 if self._deployment is None else self._deployment.revision,
            stable=terms[0],
            newcomer=terms[1],
            previous=terms[2],
            newcomer_share=table.share,
            exit_confidence=table.exit_confidence,
            ready=table.stable is not None,
            problem=self._problem,
        )

    async def apply(self, raw: bytes) -> Observed:
        """Serve the deployment in ``raw`` (JSON of ``policies.terms.Deployment``).

        Raises:
            DeploymentRefused: It is malformed, out of order, or a bundle is refused; nothing changed.
        """
        async with self._lock:
            return await self._applied(raw)

    async def _applied(self, raw: bytes) -> Observed:
        began = self._clock.monotonic()
        try:
            wanted = self._read(raw, "the request")
            if wanted == self._deployment and self._problem is None and not self.unloaded:
                return self.observed()
            self._check_order(wanted)
            with short_turns():
                table, problem = await asyncio.to_thread(self._make, wanted, self.table)
            await asyncio.to_thread(persist, self._path, canonical(wanted))
        except (BundleRefused, DeploymentRefused, OSError) as error:
            self._metrics.swap("refused", self._clock.monotonic() - began)
            log.warning("deployment refused, what is served stays: %s", error)
            raise DeploymentRefused(str(error)) from error
        gone = {slot.digest for slot in self.table.slots()} - {slot.digest for slot in table.slots()}
        self._show(wanted, table, problem)
        self._metrics.swap("ok", self._clock.monotonic() - began)
        if gone:
            # What is under way may still run on it; then its memory goes back with the next one's.
            await asyncio.to_thread(give_back)
        return self.observed()

    async def restore(self) -> None:
        """Serve the persisted deployment as far as its bundles still prove themselves."""
        try:
            raw = await asyncio.to_thread(self._path.read_bytes)
        except FileNotFoundError:
            return
        try:
            wanted = self._read(raw, str(self._path))
        except DeploymentRefused as error:
            self._problem = str(error)
            log.error("not ready: %s", error)
            return
        table, problem = await asyncio.to_thread(self._salvage, wanted)
        self._show(wanted, table, problem)

    async def load(self) -> None:
        """Serve the deployment that is wanted, proven anew where it is not loaded.

        Raises:
            DeploymentRefused: There is none, or a bundle is refused.
        """
        # Looked at under the lock: what is wanted may change while another order is carried out.
        async with self._lock:
            wanted = self._deployment
            if wanted is None:
                raise DeploymentRefused("expected a deployment to load, there is none yet; instard sends it")
            await self._applied(canonical(wanted))

    async def unload(self) -> None:
        """Serve nothing until ``load`` or the next deployment."""
        async with self._lock:
            self.unloaded, self._problem = True, "unloaded by a client"
            self.table = Table(self._model)
            self._metrics.stable(None, None, self._clock.now())
            self._metrics.canary.set(0.0)
            log.warning("model=%s unloaded by a client", self._model)
            await asyncio.to_thread(give_back)

    def _read(self, raw: bytes, where: str) -> Deployment:
        try:
            wanted = Deployment.model_validate_json(raw)
        except ValidationError as error:
            raise DeploymentRefused(f"expected a deployment in {where}, got {error}") from error
        if wanted.model != self._model:
            raise DeploymentRefused(f"expected model {self._model!r} in {where}, got {wanted.model!r}")
        return wanted

    def _check_order(self, wanted: Deployment) -> None:
        kept = self._deployment
        if kept is None or wanted == kept or wanted.revision > kept.revision:
            return
        raise DeploymentRefused(
            f"expected a revision above {kept.revision}, got {wanted.revision} with other content; "
            "read /observed and plan again"
        )

    def _make(self, wanted: Deployment, old: Table) -> tuple[Table, str | None]:
        """Return the wanted table, whole but for the previous slot, and what is wrong with that."""
        _check_generations(wanted, old)
        stable = self._slot(wanted.stable, old, None)
        base = stable or old.stable
        newcomer = self._slot(wanted.newcomer, old, base)
        if stable is not None and old.stable is not None:
            _check_contract(stable, old.stable)
        previous, problem = self._comfort(wanted.previous, old, stable)
        return self._table(wanted, stable, newcomer, wanted.newcomer_share, previous), problem

    def _salvage(self, wanted: Deployment) -> tuple[Table, str | None]:
        """Return what of a persisted deployment still proves itself; a stable slot that fails leaves none."""
        empty = Table(self._model)
        try:
            _check_generations(wanted, empty)
            stable = self._slot(wanted.stable, empty, None)
        except BundleRefused as error:
            return empty, str(error)
        newcomer, newcomer_problem = self._comfort(wanted.newcomer, empty, stable)
        share = wanted.newcomer_share if newcomer is not None else 0.0
        previous, previous_problem = self._comfort(wanted.previous, empty, stable)
        table = self._table(wanted, stable, newcomer, share, previous)
        return table, newcomer_problem or previous_problem

    def _table(
        self,
        wanted: Deployment,
        stable: Slot | None,
        newcomer: Slot | None,
        share: float,
        previous: Slot | None,
    ) -> Table:
        return Table(self._model, stable, newcomer, share, previous, wanted.exit_confidence)

    def _comfort(
        self, term: SlotTerm | None, old: Table, base: Slot | None
    ) -> tuple[Slot | None, str | None]:
        try:
            return self._slot(term, old, base), None
        except BundleRefused as error:
            return None, str(error)

    def _slot(self, term: SlotTerm | None, old: Table, base: Slot | None) -> Slot | None:
        if term is None:
            return None
        same = [slot for slot in old.slots() if slot.digest == term.bundle]
        if same:
            # Of the same bytes under several numbers, the one that has counted under this one.
            slot = next((each for each in same if each.term == term), same[0]).renumbered(term.generation)
        else:
            slot = build(self._blobs, self._model, term.generation, term.bundle, self._max_batch)
        if base is not None:
            _check_contract(slot, base)
        return slot

    def _show(self, wanted: Deployment, table: Table, problem: str | None) -> None:
        before = self.table.stable
        self._deployment, self._problem, self.unloaded = wanted, problem, False
        if problem is None and table.stable is None:
            self._problem = "no stable model is deployed"
        self.table = table
        stable = table.stable
        if (before and before.term) != (stable and stable.term):
            generation, digest = (stable.generation, stable.digest) if stable else (None, None)
            self._metrics.stable(generation, digest, self._clock.now())
        self._metrics.canary.set(table.share if table.newcomer is not None else 0.0)
        log.log(
            logging.INFO if problem is None else logging.ERROR,
            "serving model=%s revision=%d stable=%s newcomer=%s share=%g%s",
            self._model,
            wanted.revision,
            stable and stable.generation,
            table.newcomer and table.newcomer.generation,
            table.share,
            "" if problem is None else f" problem: {problem}",
        )


def _check_generations(wanted: Deployment, old: Table) -> None:
    """Refuse a generation number that would name two different things."""
    terms = [term for term in (wanted.stable, wanted.newcomer, wanted.previous) if term is not None]
    # A newcomer that never had traffic left no trace of its number: it may be replaced.
    known = {slot.generation: slot.digest for slot in (*old.open(), old.previous) if slot is not None}
    for term in terms:
        if known.setdefault(term.generation, term.bundle) != term.bundle:
            raise BundleRefused(
                f"expected generation {term.generation} to be {known[term.generation]}, got {term.bundle}; "
                "a generation never names other bytes, use a new number"
            )
    if wanted.stable is not None and wanted.newcomer is not None:
        stable, newcomer = wanted.stable.generation, wanted.newcomer.generation
        if stable == newcomer:
            raise BundleRefused(
                f"expected a newcomer of another generation than stable {stable}, got the same"
            )


def _check_contract(slot: Slot, base: Slot) -> None:
    if slot.meta.input != base.meta.input or slot.meta.classes != base.meta.classes:
        raise BundleRefused(
            f"expected the contract of generation {base.generation} ({base.meta.input}, "
            f"{len(base.meta.classes)} classes), {slot.digest} has {slot.meta.input}, "
            f"{len(slot.meta.classes)} classes; another contract needs another model name"
        )
