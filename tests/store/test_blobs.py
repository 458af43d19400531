"""Blobs: what comes back is what was put, or an error."""

import os
import threading
from pathlib import Path

import pytest

from daemon.store.blobs import Blobs
from policies.errors import PermanentError, TamperError


def test_bytes_come_back_and_a_flipped_byte_does_not(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs")
    digest = blobs.put(b"some bytes")
    assert blobs.put(b"some bytes") == digest
    assert blobs.read(digest) == b"some bytes"
    assert blobs.path(digest).relative_to(tmp_path / "blobs" / "sha256").as_posix() == (
        f"{digest[7:9]}/{digest[9:]}"
    )
    path = blobs.path(digest)
    path.chmod(0o644)
    path.write_bytes(b"some bytez")
    with pytest.raises(TamperError, match="expected sha256"):
        blobs.read(digest)
    assert blobs.put(b"some bytes") == digest
    assert blobs.read(digest) == b"some bytes"


def test_a_blob_that_is_not_there_and_a_name_that_is_none_are_errors(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    assert not blobs.has("sha256:" + "0" * 64)
    with pytest.raises(TamperError, match="there is none"):
        blobs.read("sha256:" + "0" * 64)
    with pytest.raises(PermanentError, match="expected sha256:<64 hex>"):
        blobs.path("sha256:../../etc/passwd")


def test_a_blob_is_read_only_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    path = blobs.path(blobs.put(b"x"))
    assert path.stat().st_mode & 0o777 == 0o444
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_a_put_that_fails_leaves_nothing_under_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    blobs = Blobs(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        blobs.put(b"x")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_the_file_is_synced_before_its_name_and_its_folders_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story: list[str] = []
    sync, replace = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        story.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        sync(handle)

    def rename(self: Path, target: Path) -> Path:
        story.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    blobs = Blobs(tmp_path / "blobs")
    folder = blobs.path(blobs.put(b"x")).parent
    assert story[0].endswith(".tmp")
    assert story[1:] == ["rename", *map(str, (folder, folder.parent, tmp_path / "blobs", tmp_path))]


def test_threads_may_put_the_same_bytes_at_once(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def put() -> None:
        start.wait()
        try:
            blobs.put(b"same" * 10_000)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == 1
