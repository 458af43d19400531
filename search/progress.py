"""How far a search is: one small file that is always whole, and a line for people at each new phase."""

from collections.abc import Callable
from pathlib import Path

from policies.wire import canonical


class Progress:
    """Writes ``progress.json``.

    Args:
        folder: Where it lies.
        cpu: Returns CPU-seconds used.
        say: Takes a line for people.
    """

    def __init__(self, folder: Path, cpu: Callable[[], float], say: Callable[[str], None]) -> None:
        self._path = folder / "progress.json"
        self._cpu = cpu
        self._say = say
        self._phase = ""
        self._began_s = 0.0
        self.phases_s: dict[str, float] = {}

    def report(self, phase: str, done: int, total: int, message: str) -> None:
        """Say where the search is; replaces the file at once."""
        used = self._cpu()
        if phase != self._phase:
            self._close(used)
            self._phase = phase
            self._say(f"{used:6.1f} CPU-s  {message}")
        record = {"phase": phase, "done": done, "total": total, "cpu_s": round(used, 3), "message": message}
        write_whole(self._path, canonical(record))

    def so_far(self) -> dict[str, float]:
        """Return CPU-seconds of each phase, the present one included."""
        spent = dict(self.phases_s)
        if self._phase:
            spent[self._phase] = round(spent.get(self._phase, 0.0) + self._cpu() - self._began_s, 3)
        return spent

    def end(self, message: str) -> None:
        """Close the last phase."""
        used = self._cpu()
        self._close(used)
        self._phase = ""
        self._say(f"{used:6.1f} CPU-s  {message}")

    def _close(self, used: float) -> None:
        if self._phase:
            spent = self.phases_s.get(self._phase, 0.0) + used - self._began_s
            self.phases_s[self._phase] = round(spent, 3)
        self._began_s = used


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees all of it or none."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
