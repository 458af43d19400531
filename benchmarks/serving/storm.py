"""A storm: swaps, one after the other, under as much load as the server takes; every answer is checked.

    python -m benchmarks.serving.storm [--requests 1000000] [--pause-s 0.2]

* Three witnesses (``lookout``) ask at once, in JSON, with binary tensors and, where ``instar-serve`` has
  ``--grpc``, by gRPC. Each answer must be bit-equal to what onnxruntime gives for that row alone with the
  bundle of the generation that the answer names.
* Meanwhile generations are swapped without end. Bundles are four (three MLPs, one convolutional network), in
  a fixed order in which some come back at once (from the slot that was kept warm), some later (built again)
  and one follows itself under a new number. Every tenth order is a bundle whose bytes were altered: it must
  be refused, and nothing else may come of it. Two orders of ten are canaries: a newcomer gets 0.05, then 0.5
  of the traffic, and is promoted, or taken away.
* Wrong is also an answer by a generation before it was ordered, or to what was asked when one that replaced
  it was confirmed, or it was taken away; and one that goes back on its connection, but from a canary.
* Asked when refused (not 200), lost (no answer), wrong: none is wanted of 1,000,000 over at least 200 swaps.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.search.table import say
from benchmarks.serving import models, stage
from benchmarks.serving.asks import Form
from benchmarks.serving.row import Figure, Row
from benchmarks.serving.stage import ROOT, Served
from benchmarks.serving.swap import MODEL, Desk
from benchmarks.serving.witness import Case, Tally
from policies.errors import PermanentError
from policies.terms import Deployment, Slot
from policies.wire import canonical

REQUESTS, QUICK_REQUESTS, SWAPS, PAUSE_S = 1_000_000, 20_000, 200, 0.2
REFUSE_AT, PROMOTE_AT, DISMISS_AT, CYCLE = 0, 5, 8, 10
"""Which order of ten is an altered bundle, a canary that is promoted, one that is taken away."""
SHARES = (0.05, 0.5)
TURNS = (0, 1, 0, 2, 3, 2, 2, 1, 3, 0, 3, 1)
"""Which bundle each generation has, in turn; the third is the first one's way back, the seventh renumbers."""
# JSON costs twice as much as binary, and gRPC more again: so they end at about the same time.
_SHARES = {Form.JSON: 0.35, Form.BINARY: 0.5, Form.GRPC: 0.15}


@dataclass
class Log:
    """When each generation was first ordered, had all the traffic for certain, and was taken away (canaries).

    On the monotonic clock. Beside that, how many orders were refused, went back, and were canaries.
    """

    ordered: dict[int, float] = field(default_factory=dict)
    confirmed: dict[int, float] = field(default_factory=dict)
    dismissed: dict[int, float] = field(default_factory=dict)
    refused: int = 0
    back: int = 0
    canaries: int = 0

    def end(self, generation: int) -> tuple[float, str]:
        """Return from when on a generation has no traffic for certain, and why."""
        later = [number for number in self.confirmed if number > generation]
        heir = min(later, default=generation + 1)
        ends = [(self.confirmed.get(heir, float("inf")), f"after {heir} was confirmed")]
        ends.append((self.dismissed.get(generation, float("inf")), "after it was taken away"))
        return min(ends)


class Pilot(Desk):
    """A desk that also gives newcomers a share. ``stable`` and ``previous`` are generations, 0 is none."""

    stable = previous = 0

    def swap(self) -> float:
        """Make the next generation the stable one, the present one the way back; return the seconds."""
        self.generation += 1
        self.previous, self.stable = self.stable, self.generation
        return self._order(self.stable, self.previous, self.digest)

    def goes_back(self) -> bool:
        """Tell whether the next generation has the bytes from before the present one."""
        back = self.previous and self.digest(self.previous)
        return back == self.digest(self.generation + 1) != self.digest(self.stable)

    def give(self, share: float) -> None:
        """Give the next generation a share of the traffic.

        Raises:
            PermanentError: The server refused it.
        """
        stable, newcomer, back = (
            Slot(generation=number, bundle=self.digest(number)) if number else None
            for number in (self.stable, self.generation + 1, self.previous)
        )
        self._revision += 1
        wanted = Deployment(
            revision=self._revision,
            model=MODEL,
            stable=stable,
            newcomer=newcomer,
            newcomer_share=share,
            previous=back,
        )
        answer = self._door.post("/apply", content=canonical(wanted))
        if answer.status_code != 200 or answer.json()["problem"] is not None:
            raise PermanentError(f"expected {newcomer} to get {share:g}, got: {answer.text[:300]}")

    def dismiss(self) -> None:
        """Take the newcomer away; its number is not given again."""
        self._order(self.stable, self.previous, self.digest)
        self.generation += 1


def misplaced(tally: Tally, log: Log) -> list[str]:
    """Return generations that answered too early or too late, in words.

    >>> log = Log(ordered={1: 1.0, 2: 3.0}, confirmed={1: 2.0, 2: 4.0})
    >>> misplaced(Tally(last_asked={1: 3.9, 2: 9.0}, first_seen={1: 1.5, 2: 3.5}), log)
    []
    >>> misplaced(Tally(last_asked={1: 4.1, 2: 9.0}, first_seen={1: 1.5, 2: 2.9}), log)
    ['generation 2 answered before its order', 'generation 1 answered what was asked after 2 was confirmed']
    """
    early = [
        f"generation {generation} answered before its order"
        for generation, moment in tally.first_seen.items()
        if moment < log.ordered.get(generation, float("inf"))
    ]
    late = [
        f"generation {generation} answered what was asked {why}"
        for generation, moment in tally.last_asked.items()
        for end, why in [log.end(generation)]
        if moment > end
    ]
    return early + late


def witnesses(served: Served, case: Path, requests: int) -> dict[Form, tuple[subprocess.Popen[bytes], Path]]:
    """Start one witness a form; return them, and where each leaves its tally."""
    started = {}
    shares = {form: share for form, share in _SHARES.items() if form is not Form.GRPC or served.grpc}
    for form, share in shares.items():
        out = case.with_name(f"{form}.json")
        port = served.grpc if form is Form.GRPC else served.port
        count = round(requests * share / sum(shares.values()))
        command = [sys.executable, "-m", "benchmarks.serving.lookout", f"{served.host}:{port}", form]
        command += [str(case), str(count), str(out)]
        started[form] = (subprocess.Popen(command, cwd=ROOT), out)
    return started


def blow(desk: Pilot, altered: str, running: list[subprocess.Popen[bytes]], pause_s: float) -> Log:
    """Order until the witnesses have ended."""
    log, orders = Log(), 0
    while any(each.poll() is None for each in running):
        orders += 1
        at = orders % CYCLE
        if at == REFUSE_AT:
            desk.refused(altered)
            log.refused += 1
        elif at in (PROMOTE_AT, DISMISS_AT):
            canary(desk, log, pause_s, promoted=at == PROMOTE_AT)
        else:
            swap(desk, log)
        time.sleep(pause_s)
    return log


def swap(desk: Pilot, log: Log) -> None:
    """Order the next generation, and note it."""
    log.back += desk.goes_back()
    log.ordered.setdefault(desk.generation + 1, time.monotonic())
    desk.swap()
    log.confirmed[desk.stable] = time.monotonic()


def canary(desk: Pilot, log: Log, pause_s: float, *, promoted: bool) -> None:
    """Let the next generation have more and more of the traffic; then all of it, or none."""
    log.canaries += 1
    log.ordered[desk.generation + 1] = time.monotonic()
    for share in SHARES:
        desk.give(share)
        time.sleep(pause_s)
    if promoted:
        swap(desk, log)
    else:
        desk.dismiss()
        log.dismissed[desk.generation] = time.monotonic()


def alter(state: Path, digest: str) -> str:
    """Put a bundle under the digest of another and return that digest."""
    hexes = digest.removeprefix("sha256:")
    raw = bytearray((state / "blobs" / "sha256" / hexes[:2] / hexes[2:]).read_bytes())
    claimed = stage.put(state, bytes(raw) + b"\0")
    raw[len(raw) // 2] ^= 1
    hexes = claimed.removeprefix("sha256:")
    (state / "blobs" / "sha256" / hexes[:2] / hexes[2:]).write_bytes(raw)
    return claimed


def storm(requests: int, pause_s: float) -> tuple[dict[Form, Tally], Log]:
    """Let one blow over; return what each witness saw, and what was ordered.

    Raises:
        PermanentError: A witness broke off.
    """
    bundles = [models.make_bundle(MODEL, seed) for seed in range(3)]
    bundles.append(models.with_meta(models.GRAPHS["conv"](0), MODEL, 3))
    with tempfile.TemporaryDirectory() as folder:
        state, case = Path(folder), Path(folder) / "case.npz"
        digests = [stage.put(state, each) for each in bundles]
        Case.of(bundles, TURNS).write(case)
        served = stage.start(state, MODEL, grpc=stage.supports("--grpc"))
        desk = Pilot(state, tuple(digests[turn] for turn in TURNS))
        try:
            began = time.monotonic()
            desk.swap()
            started = witnesses(served, case, requests)
            log = blow(desk, alter(state, digests[0]), [process for process, _ in started.values()], pause_s)
            log.ordered[1] = log.confirmed[1] = began
            if failed := [form for form, (process, _) in started.items() if process.returncode]:
                raise PermanentError(f"expected all witnesses to end well, {', '.join(failed)} did not")
            tallies = {form: Tally.read(out) for form, (_, out) in started.items()}
        finally:
            desk.close()
            served.stop()
    return tallies, log


def rows(tallies: dict[Form, Tally], log: Log, requests: int) -> list[Row]:
    """Return what a storm came to."""
    swaps, asked = len(log.confirmed) - 1, sum(each.asked for each in tallies.values())
    lost = sum(each.lost + sum(each.refused.values()) for each in tallies.values())
    astray = [why for each in tallies.values() for why in misplaced(each, log)]
    wrong = sum(each.wrong for each in tallies.values()) + len(astray)
    told = ", ".join(f"{each.asked:,} {form}" for form, each in tallies.items())
    note = f"{asked:,} requests ({told}) over {swaps} swaps; {log.refused} altered bundles refused"
    note += f"; {log.canaries} canaries ({len(log.dismissed)} taken away), {log.back} ways back"
    if Form.GRPC not in tallies:
        note += "; gRPC not measured: instar-serve has no --grpc"
    examples = "; ".join([why for each in tallies.values() for why in each.examples] + astray[:5])
    whole = requests >= REQUESTS and swaps >= SWAPS
    target = f"0 of {REQUESTS:,}, over at least {SWAPS} swaps"
    return [
        Row(
            "requests lost or refused over swaps under load",
            target,
            Figure.of([lost]),
            "requests",
            met=_met(lost, whole),
            note=note,
        ),
        Row(
            "answers not bit-equal to their generation's, or by the wrong generation",
            target,
            Figure.of([wrong]),
            "answers",
            met=_met(wrong, whole),
            note=examples or note,
        ),
    ]


def _met(count: int, whole: bool) -> bool | None:
    """Judge a count: one is too many in any storm, none is enough in a whole one alone."""
    return False if count else True if whole else None


def measure(runs: int, quick: bool) -> list[Row]:
    """Return the rows of this part: one storm, however many runs the others have."""
    del runs
    requests = QUICK_REQUESTS if quick else REQUESTS
    say(f"storm: {requests:,} requests")
    return rows(*storm(requests, PAUSE_S), requests)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description="Swaps under load, every answer checked.")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--pause-s", type=float, default=PAUSE_S, help="between two orders")
    flags = parser.parse_args()
    for row in rows(*storm(flags.requests, flags.pause_s), flags.requests):
        print(f"{row.what}: {row.ours} {row.unit}, wanted {row.target}: {row.verdict} ({row.note})")


if __name__ == "__main__":
    main()
