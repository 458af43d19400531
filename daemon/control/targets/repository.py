"""The target ``repository``: a versioned model repository that another server reads.

* The bytes are proven on this host, written under a hidden name on the same file system, synced, read back
  and compared with their digest. Only then one rename makes a generation visible, and the highest visible
  number is what the server answers with.
* The traffic cannot be split: a staged newcomer is hidden, one on probation is on top and has all of it.
* Recorded before visible: the wanted deployment lies beside the hidden generations, so that a new start
  sees what is served, and one that was killed half-way goes on.
* Lower numbers stay while the deployment names them (the incumbent on probation, the previous one) and are
  removed after. A number that is not ours is never removed: it is refused, since it could be on top.
* ``ready`` speaks of the folder. Whether a server has read it, only the target ``v2`` knows.
"""

import contextlib
import logging
import os
import shutil
from pathlib import Path

from pydantic import Field, ValidationError

from daemon.control.targets import layout
from daemon.control.targets.proofs import Proofs
from daemon.control.targets.target import Abilities, Observed, active
from daemon.ops.files import persist
from daemon.store.blobs import Blobs
from policies.errors import PermanentError
from policies.terms import Deployment, Slot, Term
from policies.wire import canonical, digest_bytes

log = logging.getLogger(__name__)

_Signature = tuple[int, int, int, int]


class Record(Term):
    """What this target wants served, and every number that it may have written."""

    deployment: Deployment
    former: Deployment | None = Field(description="The last one that was confirmed: the way back.")
    written: tuple[int, ...] = Field(description="Generations whose folders are ours.")


class RepositoryTarget:
    """One model's folder in a repository.

    Args:
        folder: The repository; made when it is not there.
        model: The model's name, and its folder's.
        blobs: Where the bundles are.
        proofs: What proves them.
    """

    abilities = Abilities(splits=False, previous=False, spool=False, exits=False)

    def __init__(self, folder: Path, model: str, blobs: Blobs, proofs: Proofs) -> None:
        self._model = model
        self._blobs = blobs
        self._proofs = proofs
        self.folder = folder / model
        self._hidden = self.folder / layout.HIDDEN
        self._seen: dict[Path, tuple[_Signature, str]] = {}

    # -- the target -------------------------------------------------------------------------------------

    def observed(self) -> Observed:
        """Return what lies in the folder, read from the disk.

        Raises:
            PermanentError: The record cannot be read.
        """
        record = self.record()
        if record is None:
            return Observed(
                revision=0,
                stable=None,
                newcomer=None,
                previous=None,
                newcomer_share=0.0,
                ready=False,
                problem=f"no deployment yet in {self.folder}",
            )
        wanted, problem = record.deployment, self._problem(record)
        top = active(wanted)
        newcomer = self._present(wanted.newcomer)
        return Observed(
            revision=wanted.revision,
            stable=self._present(wanted.stable) if problem is None else None,
            newcomer=newcomer,
            previous=self._present(wanted.previous),
            newcomer_share=1.0 if problem is None and newcomer is not None and newcomer == top else 0.0,
            exit_confidence=wanted.exit_confidence,
            ready=top is not None and problem is None,
            problem=problem,
        )

    def apply(self, deployment: Deployment) -> Observed:
        """Write what is missing, then show it.

        Raises:
            PermanentError: It cannot be served from here; what was visible stays visible.
        """
        self.check(deployment)
        self.prepare(deployment)
        self.show(deployment)
        self.confirm()
        return self.observed()

    def close(self) -> None:
        """Hold nothing open."""

    # -- the steps, for a target that also has a server to ask ------------------------------------------

    def record(self) -> Record | None:
        """Return what was recorded last; None before the first deployment.

        Raises:
            PermanentError: It cannot be read.
        """
        path = self._hidden / layout.RECORD
        try:
            return Record.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise PermanentError(f"expected a deployment's record at {path}, got {error}") from error

    def check(self, deployment: Deployment) -> None:
        """Refuse what this target cannot do.

        Raises:
            PermanentError: Another model, an old revision, a split of the traffic, early exits, or a foreign
                number.
        """
        if deployment.model != self._model:
            raise PermanentError(f"expected model {self._model!r}, got {deployment.model!r}")
        if 0.0 < deployment.newcomer_share < 1.0:
            raise PermanentError(
                f"expected a share of 0 or 1, got {deployment.newcomer_share:g}: "
                f"the traffic of {self.folder} cannot be split"
            )
        if deployment.exit_confidence is not None:
            raise PermanentError(
                f"expected no exit_confidence, got {deployment.exit_confidence:g}: who reads {self.folder} "
                'computes the whole network; sign a policy with modification_protocol.exits "off"'
            )
        record = self.record()
        ours: tuple[int, ...] = () if record is None else record.written
        foreign = [number for number in layout.versions(self.folder) if number not in ours]
        if foreign:
            raise PermanentError(
                f"expected only generations of this instard in {self.folder}, got {foreign}; "
                "move them away: the highest number is what is served"
            )
        kept = None if record is None else record.deployment
        if kept is not None and deployment != kept and deployment.revision <= kept.revision:
            raise PermanentError(
                f"expected a revision above {kept.revision}, got {deployment.revision} with other content"
            )

    def prepare(self, deployment: Deployment) -> None:
        """Write every generation that is named and not there yet, hidden.

        Raises:
            PermanentError: A bundle does not prove itself, or the disk refuses.
        """
        for term in (deployment.stable, deployment.newcomer):
            if term is not None and not self._whole(term):
                self._write(term)

    def show(self, deployment: Deployment) -> None:
        """Record a deployment, then make exactly its generations visible.

        Raises:
            PermanentError: The disk refuses.
        """
        before = self.record()
        written = set(() if before is None else before.written)
        written |= {term.generation for term in _terms(deployment)}
        try:
            self._remember(deployment, None if before is None else before.former, written)
            visible = _visible(deployment)
            # What shall be on top comes before what shall go: there is always something to answer with.
            for number in sorted(visible):
                self._move(self._hidden / str(number), self.folder / str(number))
            for number in layout.versions(self.folder):
                if number in written and number not in visible:
                    self._move(self.folder / str(number), self._hidden / str(number))
            for folder in (self._hidden, self.folder, self.folder.parent):
                _sync(folder)
        except OSError as error:
            raise PermanentError(f"expected to change {self.folder}, got {error}") from error
        top = active(deployment)
        log.info(
            "visible folder=%s generation=%s newcomer=%s revision=%d",
            self.folder,
            None if top is None else top.generation,
            None if deployment.newcomer is None else deployment.newcomer.generation,
            deployment.revision,
        )

    def confirm(self) -> None:
        """Note that the recorded deployment is served, and remove the generations that it does not name.

        Raises:
            PermanentError: The disk refuses.
        """
        record = self.record()
        if record is None:
            return
        named = {term.generation for term in _terms(record.deployment)}
        old = [number for number in layout.versions(self._hidden) if number not in named]
        try:
            # The way back is forgotten before it is removed, so that it is never a promise without bytes.
            self._remember(record.deployment, record.deployment, set(record.written))
            for number in old:
                shutil.rmtree(self._hidden / str(number))
            for leftover in self._hidden.glob("new-*"):
                shutil.rmtree(leftover)
            if not named.issuperset(record.written):
                self._remember(record.deployment, record.deployment, set(record.written) & named)
        except OSError as error:
            raise PermanentError(f"expected to remove generations {old}, got {error}") from error

    # -- files ------------------------------------------------------------------------------------------

    def _remember(self, deployment: Deployment, former: Deployment | None, written: set[int]) -> None:
        record = Record(deployment=deployment, former=former, written=tuple(sorted(written)))
        persist(self._hidden / layout.RECORD, canonical(record))

    def _write(self, term: Slot) -> None:
        proof = self._proofs.of(term.bundle)
        raw = self._blobs.read(term.bundle)
        place, new = self._hidden / str(term.generation), self._hidden / f"new-{term.generation}"
        try:
            _remove(new)
            persist(new / layout.FILE, raw)
            came = digest_bytes((new / layout.FILE).read_bytes())
            if came != term.bundle:
                raise PermanentError(
                    f"expected {term.bundle} read back from {new}, got {came}; check the disk"
                )
            # What stands under this number is left by a start that was killed, or somebody altered it.
            _remove(place)
            _remove(self.folder / str(term.generation))
            new.rename(place)
            _sync(self._hidden)
            if not (self.folder / layout.CONFIG).is_file():
                persist(self.folder / layout.CONFIG, layout.config(proof.meta).encode())
        except OSError as error:
            raise PermanentError(f"expected to write {place}, got {error}") from error

    @staticmethod
    def _move(source: Path, target: Path) -> None:
        if source.is_dir() and not target.exists():
            source.rename(target)

    def _problem(self, record: Record) -> str | None:
        """Return what is wrong with the generation that shall answer, or None."""
        top = active(record.deployment)
        if top is None:
            return "no stable model is deployed"
        found = layout.versions(self.folder)
        if found[-1:] != [top.generation]:
            return f"expected generation {top.generation} on top in {self.folder}, got {found}"
        if not self._whole(top, self.folder):
            return f"expected {top.bundle} as generation {top.generation} in {self.folder}, it was altered"
        return None

    def _present(self, term: Slot | None) -> Slot | None:
        return term if term is not None and self._whole(term) else None

    def _whole(self, term: Slot, *places: Path) -> bool:
        """Tell whether a generation lies in one of the places with the bytes of its digest."""
        paths = [
            place / str(term.generation) / layout.FILE for place in places or (self.folder, self._hidden)
        ]
        return any(self._digest(path) == term.bundle for path in paths)

    def _digest(self, path: Path) -> str | None:
        """Return a file's digest; it is read again whenever the file is another one than before."""
        try:
            stat = path.stat()
            signature = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            known = self._seen.get(path)
            if known is None or known[0] != signature:
                known = signature, digest_bytes(path.read_bytes())
                self._seen[path] = known
        except OSError:
            self._seen.pop(path, None)
            return None
        return known[1]


def _terms(deployment: Deployment) -> list[Slot]:
    slots = (deployment.stable, deployment.newcomer, deployment.previous)
    return [slot for slot in slots if slot is not None]


def _visible(deployment: Deployment) -> set[int]:
    """Return the numbers to show: the active one, and those below it that the deployment names."""
    top = active(deployment)
    if top is None:
        return set()
    return {term.generation for term in _terms(deployment) if term.generation <= top.generation}


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
