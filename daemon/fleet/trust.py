"""What a device believes: releases whose signatures, versions and expiry hold, and the blobs they name.

* The checks of The Update Framework are python-tuf's: signatures by the keys of a root that was given at
  enrolment, versions that never go down (kept on this device), expiry, sizes, and one snapshot for all.
* Nothing is read beyond the length that was signed, and nothing for longer than ``DOWNLOAD_S``.
* A blob that was broken off goes on where it stopped; one that is not what was signed is thrown away.
* A deployment is believed when all its bundles are here and are the signed ones, never before.

Called by the device. What was believed last is served on, whatever a hub says or does not say.
"""

import contextlib
import io
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from pydantic import ValidationError
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
)
from tuf.api.metadata import TargetFile
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from daemon.fleet.releases import DEPLOYMENT
from daemon.store.blobs import Blobs
from policies.errors import TamperError, TemporaryError, first_fault
from policies.terms import Deployment

log = logging.getLogger(__name__)

DOWNLOAD_S = 120.0


class Frozen(TamperError):  # noqa: N818  a state of the world, not a mistake
    """No statement that still holds: the hub is silent, or somebody keeps its word from us."""


class Trust:
    """The trusted view of one lane's releases.

    Args:
        folder: Where trusted metadata and halves of blobs are kept; made if missing.
        http: A client of the hub.
        blobs: Where verified blobs go.
        root: The first root, as it was given at enrolment.
    """

    def __init__(self, folder: Path, http: httpx.Client, blobs: Blobs, root: bytes) -> None:
        self._metadata = folder / "trusted"
        self._halves = folder / "halves"
        for each in (self._metadata, self._halves):
            each.mkdir(parents=True, exist_ok=True)
        self._http = http
        self._blobs = blobs
        self._root = root

    def pull(self) -> Deployment | None:
        """Return what the lane shall serve, its blobs stored; None when nothing was ever released.

        Raises:
            Frozen: What the hub says has run out.
            TamperError: It says something that is not to be believed.
            TemporaryError: It does not answer, or breaks off.
        """
        try:
            updater = Updater(
                str(self._metadata), "/v1/release/", fetcher=_Fetcher(self._http), bootstrap=self._root
            )
            try:
                updater.refresh()
            finally:
                _sync(self._metadata)
            return self._deployment(updater)
        except DownloadHTTPError as error:
            if error.status_code == httpx.codes.NOT_FOUND:
                return None
            raise TemporaryError(f"expected a release from the hub, got {error}") from error
        except ExpiredMetadataError as error:
            raise Frozen(
                f"expected a release statement that holds, got {error}; is the hub alive, are clocks right?"
            ) from error
        except RepositoryError as error:
            raise TamperError(
                f"expected a release to be believed, got {error}; what is served stays"
            ) from error
        except DownloadError as error:
            raise TemporaryError(f"expected a whole release from the hub, got {error}") from error

    def fetch(self, name: str, size_bytes: int) -> bytes:
        """Return a blob by the hex of its digest, stored and verified; goes on where it was broken off.

        Raises:
            TamperError: It is larger, or other, than was said.
            TemporaryError: The hub does not answer, or breaks off.
        """
        digest = f"sha256:{name}"
        if self._blobs.has(digest):
            with contextlib.suppress(TamperError):
                return self._blobs.read(digest)
        half = self._halves / name
        self._download(name, half, size_bytes)
        data = half.read_bytes()
        half.unlink()
        found = self._verified(name, size_bytes, data)
        self._blobs.put(found)
        return found

    def forget(self, keep: frozenset[str]) -> None:
        """Delete all blobs but these: a device has little room."""
        for path in self._blobs.root.glob("sha256/*/*"):
            if f"sha256:{path.parent.name}{path.name}" not in keep:
                path.unlink(missing_ok=True)

    def _deployment(self, updater: Updater) -> Deployment:
        info = _named(updater, DEPLOYMENT)
        raw = self.fetch(info.hashes["sha256"], info.length)
        try:
            deployment = Deployment.model_validate_json(raw)
        except ValidationError as error:
            raise TamperError(f"expected a deployment in the release, got {first_fault(error)}") from error
        for slot in (deployment.stable, deployment.newcomer, deployment.previous):
            if slot is not None:
                info = _named(updater, slot.bundle.removeprefix("sha256:"))
                if f"sha256:{info.hashes['sha256']}" != slot.bundle:
                    raise TamperError(f"expected {slot.bundle} to be released, got other bytes in its name")
                self.fetch(info.hashes["sha256"], info.length)
        return deployment

    def _download(self, name: str, half: Path, size_bytes: int) -> None:
        have = half.stat().st_size if half.is_file() else 0
        if have > size_bytes:
            half.unlink()
            have = 0
        if have == size_bytes:
            return
        headers = {"Range": f"bytes={have}-"} if have else {}
        with half.open("ab") as file:
            for chunk in _stream(self._http, f"/v1/blob/{name}", headers, resumed=have > 0):
                have += len(chunk)
                if have > size_bytes:
                    half.unlink()
                    raise TamperError(f"expected {size_bytes} bytes of sha256:{name}, the hub sends more")
                file.write(chunk)
        if have < size_bytes:
            raise TemporaryError(
                f"expected {size_bytes} bytes of sha256:{name}, got {have}; it goes on from there"
            )

    def _verified(self, name: str, size_bytes: int, data: bytes) -> bytes:
        try:
            TargetFile(size_bytes, {"sha256": name}, name).verify_length_and_hashes(io.BytesIO(data))
        except LengthOrHashMismatchError as error:
            raise TamperError(
                f"expected sha256:{name} from the hub, got {error}; it was thrown away"
            ) from error
        return data


class _Fetcher(FetcherInterface):
    """python-tuf's way to the network: over our client, with its certificate."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield from _stream(self._http, url, {}, resumed=False)
        except TemporaryError as error:
            raise DownloadError(str(error)) from error


def _stream(http: httpx.Client, url: str, headers: dict[str, str], resumed: bool) -> Iterator[bytes]:
    """Yield a body's chunks as they come.

    Raises:
        DownloadHTTPError: The hub refuses.
        TemporaryError: It does not answer, breaks off, or takes too long.
    """
    end = time.monotonic() + DOWNLOAD_S
    wanted = httpx.codes.PARTIAL_CONTENT if resumed else httpx.codes.OK
    try:
        with http.stream("GET", url, headers=headers) as answer:
            if answer.status_code != wanted:
                raise DownloadHTTPError(f"{answer.status_code} for {url}", answer.status_code)
            for chunk in answer.iter_raw():
                if time.monotonic() > end:
                    raise TemporaryError(f"expected {url} within {DOWNLOAD_S:g} s, it is still coming")
                yield chunk
    except httpx.TransportError as error:
        raise TemporaryError(f"expected the hub to send {url}, got {error!r}") from error


def _named(updater: Updater, name: str) -> TargetFile:
    info = updater.get_targetinfo(name)
    if info is None or "sha256" not in info.hashes:
        raise TamperError(f"expected {name} in the signed release, it is not there")
    return info


def _sync(folder: Path) -> None:
    """Make what was believed last a power cut: python-tuf renames, and leaves the rest to the disk."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
