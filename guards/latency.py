"""How long does one row take, on recorded traffic, beside the incumbent?

* Candidate and incumbent take turns row by row, and who goes first alternates: whatever the machine does
  meanwhile, it does to both.
* A row counts with the best of its runs. A busy machine only adds; what is left is the net's own time and how
  it depends on the input. The service's tail under load is the monitors' to watch, not this guard's.
* Inputs are recorded traffic, so that a net that is quick on blank images gains nothing.
* p99 is a time that was measured, the next higher one; nothing is interpolated.
* A net with an exit is timed as it is served: rows leave at the policy's confidence. How many do, and how
  long rows take that leave and that stay, is said beside the limits, for a median hides the smaller half.
* Where other devices will serve it, this machine's clock says nothing: their timings are judged, the slowest
  device's first, and none is inconclusive (``guards.timings``).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from guards import timings
from guards.contract import used, verdict
from guards.material import Array, Material, Net
from policies.case import Case
from policies.clauses import Latency as LatencyClause
from policies.terms import Evidence, Finding, Verdict

_RUNS = 3
_WARM_ROWS = 20

Times = NDArray[np.float64]


class Latency:
    """Time through the real runtime."""

    name = "latency"

    def clause(self, case: Case) -> str:
        """Return the id of the clause it judges by."""
        return case.policy.modification_protocol.evaluation.latency.clause

    def judge(self, case: Case, material: Material) -> Verdict:
        """Time both nets on the same rows, or judge what devices timed."""
        if case.device_class is not None:
            return self._by_devices(case, material)
        limit = case.policy.modification_protocol.evaluation.latency
        x = material.traffic[-limit.rows :]
        if len(x) < limit.rows:
            reason = f"expected {limit.rows} recorded rows to time on, there are {len(x)}"
            return verdict(self, case, Finding.INCONCLUSIVE, reason)
        nets = [material.net(case.bundle)]
        if case.incumbent is not None:
            nets.append(material.net(case.incumbent))
        times, source = interleave(nets, x, material.clock), case.traffic.digest
        return self._weigh(case, times, source, "", _leaving(nets[0], x, times[0], source))

    def _by_devices(self, case: Case, material: Material) -> Verdict:
        found = [(timings.read(case, artefact, material), artefact.digest) for artefact in case.timings]
        if not found:
            reason = f"expected timings by a device of {case.device_class}, there are none"
            return verdict(self, case, Finding.INCONCLUSIVE, reason)
        verdicts = [
            self._weigh(case, [np.array(one) for one in seen.times_ms], digest, f" on {seen.device}")
            for seen, digest in found
        ]
        # Every device that will serve it must be quick enough: the one that comes nearest the limit speaks.
        return max(verdicts, key=lambda told: (told.finding is Finding.FAIL, told.evidence[-1].value))

    def _weigh(
        self, case: Case, times: list[Times], source: str, where: str, exits: Sequence[Evidence] = ()
    ) -> Verdict:
        """Judge milliseconds of each row, the candidate's list first; ``exits`` is said beside."""
        limit = case.policy.modification_protocol.evaluation.latency
        n = len(times[0])
        p50, p99 = _quantiles(times[0])
        evidence = [_ms("p99", p99, n, source, limit.max_p99_ms), _ms("p50", p50, n, source, None)]
        told = f"p99 {p99:.3f} ms{where}, limit {limit.max_p99_ms:g} ms"
        ratio = None
        if len(times) > 1:
            ratio, more = _against(times, p50, limit, source)
            evidence += more
            told += f"; median {p50:.3f} ms, {ratio:.2f} × the incumbent's, limit {limit.max_ratio:g}"
        share = max(p99 / limit.max_p99_ms, 0.0 if ratio is None else _ratio_used(ratio, limit.max_ratio))
        within = p99 <= limit.max_p99_ms and (ratio is None or ratio <= limit.max_ratio)
        finding = Finding.PASS if within else Finding.FAIL
        if exits:
            told += f"; {', '.join(f'{one.name} {one.value:.3g} {one.unit}' for one in exits)}"
        return verdict(self, case, finding, f"{told} (n={n})", *evidence, *exits, used(share))


def interleave(nets: list[Net], x: Array, clock: Callable[[], float]) -> list[Times]:
    """Return the milliseconds of each row, a list a net; each (n,), the best of ``_RUNS`` runs.

    Args:
        nets: One, or two to be compared.
        x: Rows (n, ...).
        clock: Returns seconds that never go back.
    """
    times = np.full((len(nets), len(x)), np.inf)
    for place in range(min(_WARM_ROWS, len(x))):
        for net in nets:
            net.serve(x[place : place + 1])
    for place in range(len(x)):
        row = x[place : place + 1]
        for turn in range(_RUNS):
            order = range(len(nets)) if (place + turn) % 2 == 0 else reversed(range(len(nets)))
            for index in order:
                began = clock()
                nets[index].serve(row)
                times[index, place] = min(times[index, place], (clock() - began) * 1000)
    return list(times)


def _leaving(net: Net, x: Array, times: Times, source: str) -> list[Evidence]:
    """Return how many rows leave a net early, and the medians of both kinds; nothing where none may."""
    if not net.leaves:
        return []
    gone = np.concatenate([net.serve(x[place : place + 1])[1] for place in range(len(x))])
    found = [Evidence(name="exit share", value=float(gone.mean()), unit="share", n=len(x), source=source)]
    for name, kind in (("p50 of rows that left", gone), ("p50 of rows that stayed", ~gone)):
        if kind.any():
            found.append(_ms(name, _quantiles(times[kind])[0], int(kind.sum()), source, None))
    return found


def _against(
    times: list[Times], p50: float, limit: LatencyClause, source: str
) -> tuple[float, list[Evidence]]:
    other50, other99 = _quantiles(times[1])
    n = len(times[0])
    ratio = p50 / other50 if other50 > 0 else float("inf")
    capped = min(ratio, 1e9)
    return ratio, [
        _ms("incumbent p99", other99, n, source, None),
        _ms("incumbent p50", other50, n, source, None),
        Evidence(name="ratio", value=capped, unit="×", n=n, limit=limit.max_ratio, source=source),
    ]


def _ratio_used(ratio: float, limit: float) -> float:
    """Return the share of an allowance to be slower; as fast as the incumbent uses nothing of it.

    >>> _ratio_used(ratio=1.25, limit=1.5), _ratio_used(ratio=0.8, limit=1.0)
    (0.5, 0.8)
    """
    return max(0.0, (ratio - 1) / (limit - 1)) if limit > 1 else ratio / limit


def _quantiles(times: Times) -> tuple[float, float]:
    p50, p99 = np.quantile(times, [0.5, 0.99], method="higher")
    return float(p50), float(p99)


def _ms(name: str, value: float, n: int, source: str, limit: float | None) -> Evidence:
    return Evidence(name=name, value=value, unit="ms", n=n, limit=limit, source=source)
