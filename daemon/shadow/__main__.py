"""``python -m daemon.shadow CASE OUT``: one newcomer beside the traffic, till a verdict stands or time is up.

* CASE is the canonical JSON of a ``policies.shadow.ShadowCase``; OUT receives ``shadow.json``, its
  ``ShadowResult``.
* Exit 0: it has counted, whatever came of it. Exit 3: the newcomer or the incumbent cannot be loaded, or the
  case is refused; OUT/refusal.json says why. Anything else is a crash: no counts, and no counts are no pass.
* It reads the spool and the two bundles, writes into OUT alone, and opens no socket. No request waits for it:
  what it runs was answered long before.
"""

import argparse
import logging
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from daemon.serving.slot import Slot, build
from daemon.shadow.contest import Contest
from daemon.shadow.pairs import Pairs
from policies.errors import InstarError, TamperError, first_fault
from policies.shadow import ShadowCase, ShadowResult
from policies.terms import Slot as SlotTerm
from policies.wire import canonical, parse_canonical

log = logging.getLogger("daemon.shadow")

REFUSED = 3
PAUSE_S = 0.2


def main(arguments: list[str]) -> int:
    """Run one shadow and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m daemon.shadow", description="Run a newcomer in shadow.")
    parser.add_argument("case", type=Path, help="file with the case")
    parser.add_argument("out", type=Path, help="folder for the result")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        result = shadow(read_case(options.case), threading.Event())
    except InstarError as error:
        _write(options.out / "refusal.json", canonical({"reason": str(error)}))
        log.error("refused: %s", error)
        return REFUSED
    _write(options.out / "shadow.json", canonical(result))
    return 0


def read_case(path: Path) -> ShadowCase:
    """Read a case.

    Raises:
        TamperError: It cannot be read, is not canonical, or is not a case.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TamperError(f"expected a shadow's case at {path}, got {error}") from error
    parse_canonical(raw, str(path))
    try:
        return ShadowCase.model_validate_json(raw)
    except ValidationError as error:
        raise TamperError(f"expected a shadow's case at {path}, got {first_fault(error)}") from error


def shadow(case: ShadowCase, stop: threading.Event) -> ShadowResult:
    """Tail the spool and run what it holds, until a verdict stands, time is up, or ``stop`` is set.

    Raises:
        InstarError: One of the two bundles cannot be loaded.
    """
    contest = Contest(case, _load(case, case.newcomer), _load(case, case.incumbent), time.perf_counter)
    pairs = Pairs(Path(case.spool), case.incumbent.generation, case.since)
    deadline = time.monotonic() + case.clause.max_s
    log.info("candidate=%s runs beside generation %d", case.candidate, case.incumbent.generation)
    while time.monotonic() < deadline and not stop.is_set():
        found = pairs.read()
        for pair in found:
            verdict = contest.take(pair)
            if verdict is not None:
                log.info("candidate=%s %s: %s", case.candidate, verdict.finding.value, verdict.reason)
                return contest.result()
            if time.monotonic() >= deadline:
                break
        if not found:
            stop.wait(PAUSE_S)
    log.info("candidate=%s: no verdict within %.0f s", case.candidate, case.clause.max_s)
    return contest.result()


@dataclass(frozen=True)
class AsServed:
    """A model that answers as clients are answered: easy rows leave it early."""

    slot: Slot
    confidence: float | None

    def run(self, x: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits ``(n, classes)`` and embedding ``(n, d)``, zeros for a row that left.

        Raises:
            ModelFailed: It could not.
        """
        logits, embedding, _ = self.slot.answer(x, self.confidence)
        return logits, embedding


def _load(case: ShadowCase, which: SlotTerm) -> AsServed:
    slot = build(Path(case.blobs), case.model, which.generation, which.bundle, max_batch=1)
    return AsServed(slot, case.exit_confidence)


def _write(path: Path, raw: bytes) -> None:
    """Write a file whole or not at all."""
    half = path.with_name(path.name + ".half")
    half.write_bytes(raw)
    os.replace(half, path)  # noqa: PTH105  an atomic rename over what is there


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
