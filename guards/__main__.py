"""``python -m guards CASE OUT``: one panel, as a process of its own.

* CASE is the canonical JSON of a ``policies.case.Case``.
* OUT receives ``report.html``, ``report.json`` and, last, ``panel.json`` (``PanelResult``).
* Exit 0: the guards have spoken, whatever they said. Exit 3: the case is refused, and OUT/refusal.json says
  why. Anything else is a crash: no verdict, and a missing verdict is not a pass.
* Here alone clocks are read. The network is not used.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from guards import panel
from policies.case import Case, PanelResult
from policies.errors import InstarError, TamperError, first_fault
from policies.terms import Artefact, Finding, Verdict
from policies.wire import canonical, digest_bytes, parse_canonical

if TYPE_CHECKING:  # a runtime must not be loaded before the fork
    from guards.contract import Factory
    from guards.weights import Layer

REFUSED = 3


def main(arguments: list[str]) -> int:
    """Let the panel sit once and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m guards", description="Judge a candidate.")
    parser.add_argument("case", type=Path, help="file with the case")
    parser.add_argument("out", type=Path, help="folder for the verdicts and the report")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        judge(read_case(options.case), options.out)
    except InstarError as error:
        _write(options.out / "refusal.json", canonical({"reason": str(error)}))
        logging.getLogger("guards").error("refused: %s", error)
        return REFUSED
    return 0


def read_case(path: Path) -> Case:
    """Read a case.

    Raises:
        TamperError: It cannot be read, is not canonical, or is not a case.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TamperError(f"expected a case at {path}, got {error}") from error
    parse_canonical(raw, str(path))
    try:
        return Case.model_validate_json(raw)
    except ValidationError as error:
        raise TamperError(f"expected a case at {path}, got {first_fault(error)}") from error


def judge(case: Case, out: Path) -> PanelResult:
    """Let all guards judge, and write verdicts and report.

    Args:
        case: What is judged.
        out: An existing folder.
    """
    began = time.monotonic()
    verdicts = panel.sit(case, _roster, time.perf_counter)
    # The report's parts load a runtime and are imported after the guards' process was forked.
    from guards import page, report

    made = report.make(case, verdicts, *_layers(case, verdicts))
    html, twin = page.render(made), canonical(made)
    _write(out / "report.html", html)
    _write(out / "report.json", twin)
    result = PanelResult(
        candidate=case.candidate,
        verdicts=verdicts,
        report=digest_bytes(html),
        report_json=digest_bytes(twin),
        wall_s=round(time.monotonic() - began, 3),
        runners_up=report.runners_up(case),
    )
    _write(out / "panel.json", canonical(result))
    return result


def _roster() -> "Mapping[str, Factory]":
    from guards.roster import installed

    return installed()


def _layers(case: Case, verdicts: tuple[Verdict, ...]) -> "tuple[list[Layer], list[Layer]]":
    """Return the layers of the candidate and of the incumbent; of a file that is refused, none."""
    from guards import structure, weights
    from guards.material import Material

    trusted = {verdict.guard: verdict.finding for verdict in verdicts}.get(panel.FIRST) is Finding.PASS
    material = Material(case, time.perf_counter)

    def read(artefact: Artefact | None) -> list[weights.Layer]:
        if artefact is None:
            return []
        try:
            return weights.layers(structure.parse(material.raw(artefact)))
        except TamperError:
            return []  # the guards have said so; a drawing less is no reason to lose their verdicts

    return read(case.bundle if trusted else None), read(case.incumbent if trusted else None)


def _write(path: Path, raw: bytes) -> None:
    """Write a file whole or not at all."""
    half = path.with_name(path.name + ".half")
    half.write_bytes(raw)
    os.replace(half, path)  # noqa: PTH105  an atomic rename over what is there


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
