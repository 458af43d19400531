"""Files that are whole: after a power cut the old one stands or the new one, never half of either."""

import os
from pathlib import Path


def persist(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a file durably; it has ``mode`` from its first byte.

    Raises:
        OSError: The disk refuses; before the rename the old file stands. When only the folder's own sync
            fails, the new file stands already, and writing it again is safe.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
