"""Blobs: bytes under their own digest, never changed, checked whenever they are read.

* Layout ``root/sha256/<2 hex>/<62 hex>``, files read-only.
* A blob is durable when ``put`` returns: written beside its place, fsync, rename, fsync of its folder and of
  every new parent. A torn write therefore never stands under a digest.
* Nothing here deletes.
"""

import os
import tempfile
from pathlib import Path

from policies.errors import PermanentError, TamperError
from policies.wire import digest_bytes, is_digest


class Blobs:
    """A content-addressed store under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: str) -> Path:
        """Return where a blob lies.

        Raises:
            PermanentError: Not a digest.
        """
        if not is_digest(digest):
            raise PermanentError(f"expected sha256:<64 hex>, got {digest!r}")
        name = digest.removeprefix("sha256:")
        return self.root / "sha256" / name[:2] / name[2:]

    def has(self, digest: str) -> bool:
        """Tell whether a blob is there, unchecked."""
        return self.path(digest).is_file()

    def put(self, data: bytes) -> str:
        """Store bytes durably; return their digest. Storing them again mends a damaged copy."""
        digest = digest_bytes(data)
        path = self.path(digest)
        if path.is_file() and digest_bytes(path.read_bytes()) == digest:
            return digest
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), 0o444)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        for folder in (path.parent, path.parent.parent, self.root, self.root.parent):
            _sync(folder)
        return digest

    def read(self, digest: str) -> bytes:
        """Return a blob's bytes.

        Raises:
            TamperError: It is not there, or not what its name says.
        """
        path = self.path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise TamperError(f"expected a blob at {path}, there is none; restore a backup") from error
        if digest_bytes(data) != digest:
            raise TamperError(f"expected {digest} at {path}, got {digest_bytes(data)}; restore a backup")
        return data


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
