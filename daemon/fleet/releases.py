"""What a lane's devices shall serve, signed: a small repository of The Update Framework, one a lane.

* ``root`` says which keys count; it is made offline (``daemon.fleet.enrol``), and only read here. The release
  key signs ``targets`` (the wanted deployment and the bundles that it names, by digest and size),
  ``snapshot`` (which targets belong to it) and ``timestamp`` (this is still the newest, for ``fresh_s``).
* Versions only grow. ``timestamp`` is written last and durably: a release is whole before it is visible.
* ``keep_fresh`` signs the same statement again before it runs out, so that silence means a freeze.
* Every lane has its own keys: a release of one class means nothing to another.

Called by ``daemon.fleet.link`` and the hub. What devices check is ``daemon.fleet.trust``'s.

Source: The Update Framework specification 1.0, sections 4 and 6; python-tuf.
"""

import logging
import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import ValidationError
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import StorageError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from daemon.ops.files import persist
from daemon.store.blobs import Blobs
from policies.clock import Clock
from policies.errors import PolicyError, TamperError
from policies.terms import Deployment
from policies.wire import canonical

log = logging.getLogger(__name__)

DEPLOYMENT = "deployment.json"
ROLES = (Targets.type, Snapshot.type, Timestamp.type)
"""What a release key signs."""

_NAME = re.compile(r"timestamp\.json|[1-9][0-9]{0,8}\.(root|targets|snapshot)\.json")
_LONG_S = 90 * 86400.0
"""How long targets and snapshot hold; the timestamp alone says that they are the newest."""
_KEPT = 8

T = TypeVar("T", Root, Timestamp, Snapshot, Targets)


class Releases:
    """The releases of one lane.

    Args:
        folder: Where they lie; made if missing.
        roots: Folder of the signed roots, ``N.root.json``.
        key: The release key (PEM, Ed25519).
        blobs: The lane's; bundles are read from it, deployments stored in it.
        fresh_s: How long a timestamp holds.
        clock: For expiry.

    Raises:
        PolicyError: No root, a root that ran out, or a key that the root does not name.
        TamperError: What lies in the folder is no repository.
    """

    def __init__(
        self, folder: Path, roots: Path, key: Path, blobs: Blobs, fresh_s: float, clock: Clock
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._blobs = blobs
        self._fresh_s = fresh_s
        self._clock = clock
        self._lock = threading.Lock()
        self._signer = _signer(key)
        self._take_roots(roots)
        # Whether the key was renewed since: devices no longer believe what the former one signed.
        self._renewed = False
        self._timestamp, self._snapshot, self._targets = self._stand()
        self.deployment = self._published()

    @property
    def number(self) -> int:
        """Return the newest timestamp's version; 0 when nothing was published."""
        timestamp = self._timestamp
        return 0 if timestamp is None else timestamp.version

    @property
    def digests(self) -> frozenset[str]:
        """Return the digests of what is released: deployment and bundles."""
        targets = self._targets
        files = [] if targets is None else list(targets.targets.values())
        return frozenset(f"sha256:{file.hashes['sha256']}" for file in files)

    def read(self, name: str) -> bytes | None:
        """Return a metadata file by its name in the repository, or None."""
        if not _NAME.fullmatch(name):
            return None
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def publish(self, deployment: Deployment) -> None:
        """Have a deployment wanted by all devices of the lane; durable before it is visible.

        Raises:
            TamperError: A bundle is not in the store.
        """
        raw = canonical(deployment)
        self._blobs.put(raw)
        files = {DEPLOYMENT: TargetFile.from_data(DEPLOYMENT, raw, ["sha256"])}
        for slot in (deployment.stable, deployment.newcomer, deployment.previous):
            if slot is not None:
                name = slot.bundle.removeprefix("sha256:")
                files[name] = TargetFile.from_data(name, self._blobs.read(slot.bundle), ["sha256"])
        with self._lock:
            version = 1 if self._targets is None else self._targets.version + 1
            self._sign(Targets(version=version, expires=self._until(_LONG_S), targets=files))
            self.deployment = deployment
        log.info("release=%d revision=%d published", self.number, deployment.revision)

    def keep_fresh(self) -> bool:
        """Sign anew what has used up half of its time; return whether anything was."""
        with self._lock:
            if self._timestamp is None or self._targets is None:
                return False
            if self._half_used(self._targets, _LONG_S) or self._renewed:
                again = Targets(
                    version=self._targets.version + 1,
                    expires=self._until(_LONG_S),
                    targets=self._targets.targets,
                )
                self._sign(again)
                return True
            if not self._half_used(self._timestamp, self._fresh_s):
                return False
            self._stamp()
            return True

    # -- signing ----------------------------------------------------------------------------------------

    def _sign(self, targets: Targets) -> None:
        held = self._write(f"{targets.version}.targets.json", targets)
        version = 1 if self._snapshot is None else self._snapshot.version + 1
        meta = {"targets.json": _meta(targets.version, held)}
        self._targets = targets
        self._snapshot = Snapshot(version=version, expires=self._until(_LONG_S), meta=meta)
        self._write(f"{version}.snapshot.json", self._snapshot)
        self._stamp()
        self._renewed = False
        self._prune()

    def _stamp(self) -> None:
        if self._snapshot is None:
            raise ValueError("expected a snapshot to sign a timestamp of")
        version = self._snapshot.version
        held = (self._folder / f"{version}.snapshot.json").read_bytes()
        timestamp = Timestamp(
            version=self.number + 1, expires=self._until(self._fresh_s), snapshot_meta=_meta(version, held)
        )
        self._write("timestamp.json", timestamp)
        self._timestamp = timestamp

    def _write(self, name: str, signed: T) -> bytes:
        metadata = Metadata(signed)
        metadata.sign(self._signer)
        raw = metadata.to_bytes()
        persist(self._folder / name, raw)
        return raw

    def _until(self, seconds: float) -> datetime:
        # TUF counts whole seconds.
        return datetime.fromtimestamp(int(self._clock.now() + seconds), UTC)

    def _half_used(self, signed: Targets | Timestamp, whole_s: float) -> bool:
        return signed.expires.timestamp() - self._clock.now() < whole_s / 2

    def _prune(self) -> None:
        """Forget versions that no device asks for any more."""
        for role, newest in (("targets", self._targets), ("snapshot", self._snapshot)):
            last = 0 if newest is None else newest.version
            for path in self._folder.glob(f"*.{role}.json"):
                if int(path.name.partition(".")[0]) <= last - _KEPT:
                    path.unlink()

    # -- what there is ----------------------------------------------------------------------------------

    def _take_roots(self, roots: Path) -> None:
        found = sorted(roots.glob("*.root.json"), key=lambda path: int(path.name.partition(".")[0]))
        if not found:
            raise PolicyError(
                f"expected signed roots N.root.json in {roots}, got none; run instar-fleet init"
            )
        for path in found:
            persist(self._folder / path.name, path.read_bytes())
        root = _load(found[-1], Root)
        if root.expires.timestamp() <= self._clock.now():
            raise PolicyError(
                f"expected a root that holds, {found[-1]} ran out on {root.expires:%Y-%m-%d}; renew it"
            )
        for role in ROLES:
            if self._signer.public_key.keyid not in root.roles[role].keyids:
                raise PolicyError(
                    f"expected the release key among those of role {role} in {found[-1]}; renew it"
                )

    def _stand(self) -> tuple[Timestamp | None, Snapshot | None, Targets | None]:
        path = self._folder / "timestamp.json"
        if not path.is_file():
            return None, None, None
        timestamp = _load(path, Timestamp)
        snapshot = _load(self._folder / f"{timestamp.snapshot_meta.version}.snapshot.json", Snapshot)
        targets = self._folder / f"{snapshot.meta['targets.json'].version}.targets.json"
        self._renewed = self._signer.public_key.keyid not in _signers(targets)
        return timestamp, snapshot, _load(targets, Targets)

    def _published(self) -> Deployment | None:
        if self._targets is None:
            return None
        digest = f"sha256:{self._targets.targets[DEPLOYMENT].hashes['sha256']}"
        try:
            return Deployment.model_validate_json(self._blobs.read(digest))
        except ValidationError as error:
            raise TamperError(f"expected a deployment under {digest}, got {error}") from error


def _meta(version: int, raw: bytes) -> MetaFile:
    return MetaFile.from_data(version, raw, ["sha256"])


def _signers(path: Path) -> set[str]:
    try:
        return set(Metadata.from_file(str(path)).signatures)
    except (DeserializationError, StorageError) as error:
        raise TamperError(f"expected signed metadata at {path}, got {error}; restore a backup") from error


def _load(path: Path, kind: type[T]) -> T:
    try:
        signed = Metadata.from_file(str(path)).signed
    except (DeserializationError, StorageError) as error:
        raise TamperError(f"expected signed {kind.type} at {path}, got {error}; restore a backup") from error
    if not isinstance(signed, kind):
        raise TamperError(f"expected signed {kind.type} at {path}, got {signed.type}")
    return signed


def _signer(path: Path) -> CryptoSigner:
    try:
        return CryptoSigner(load_pem_private_key(path.read_bytes(), None))
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PolicyError(f"expected a release key (PEM, Ed25519) at {path}, got {error}") from error
