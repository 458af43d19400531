"""A witness that knows of canaries: a generation and its newcomer answer side by side.

    python -m benchmarks.serving.lookout ADDRESS FORM CASE COUNT OUT

* As ``witness``, but that on a connection an answer may name the generation ``BESIDE`` before the newest one
  that was seen there. An older one is wrong as before; whether either had traffic then, ``storm`` judges.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.serving.asks import Form
from benchmarks.serving.stage import CLIENT_CORE
from benchmarks.serving.witness import Case, Grpc, Rest, _Line

BESIDE = 1


class Lookout(Rest):
    """Asks over HTTP/1.1, and remembers the newest generation of each connection."""

    def __init__(self, address: str, form: Form, case: Case) -> None:
        super().__init__(address, form, case)
        self._newest: dict[int, int] = {}

    def _ask(self, line: _Line, number: int) -> None:
        fileno = line.socket.fileno()
        newest = self._newest[fileno] = max(line.generation, self._newest.get(fileno, 0))
        line.generation = max(0, newest - BESIDE)
        super()._ask(line, number)


def main(arguments: list[str]) -> None:
    """Ask, and leave the tally."""
    address, form, case, count, out = arguments
    os.sched_setaffinity(0, {CLIENT_CORE})
    what, kind = Case.read(Path(case)), Form(form)
    witness = Grpc(address, what) if kind is Form.GRPC else Lookout(address, kind, what)
    Path(out).write_text(json.dumps(asdict(witness.run(int(count)))))


if __name__ == "__main__":
    main(sys.argv[1:])
