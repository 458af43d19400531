"""Does the file that ships compute what the trained network computed?

* Its goldens are inputs with the outputs that the network gave before it was folded and written down.
* Of a bundle with an exit, its two halves are run as well, which is how it is served, and the exit compared.
* Clean inputs show a mistake in writing; probes, which no camera takes, show a planted branch.
* Both kinds must be there; one number outside the tolerance, or not finite, fails.

The goldens travel inside the bundle: who writes the bundle writes them too. They prove that exporting went
well and that serving computes the same, not that the trained network was honest.
"""

import base64
import binascii

import numpy as np

from guards import structure
from guards.contract import used, verdict
from guards.material import DTYPES, Array, Floats, Material, Net
from policies.bundle import BundleMeta, Golden
from policies.case import Case
from policies.clauses import Parity as Clause
from policies.errors import TamperError
from policies.terms import Evidence, Finding, Verdict


class Parity:
    """Served outputs against the trained network's."""

    name = "parity"

    def clause(self, case: Case) -> str:
        """Return the id of the clause it judges by."""
        return case.policy.modification_protocol.evaluation.parity.clause

    def judge(self, case: Case, material: Material) -> Verdict:
        """Run every golden and compare both outputs, number by number."""
        limit = case.policy.modification_protocol.evaluation.parity
        evidence, worst, over = [], 0.0, []
        try:
            meta = structure.read_meta(structure.parse(material.raw(case.bundle)))
            for golden in meta.goldens:
                x, wanted = _decode(golden, meta)
                gap, share = _both(material.net(case.bundle), x, wanted, limit)
                worst = max(worst, share)
                if share > 1.0:
                    over.append(f"{golden.kind} by {gap:.3g}")
                evidence.append(
                    Evidence(
                        name=f"{golden.kind} difference",
                        value=min(gap, 1e30),
                        unit="output",
                        n=golden.rows,
                        limit=limit.atol,
                        source=case.bundle.digest,
                    )
                )
        except TamperError as error:
            return verdict(self, case, Finding.FAIL, str(error))
        kinds = {golden.kind for golden in meta.goldens}
        rows = sum(golden.rows for golden in meta.goldens)
        tolerance = f"tolerance {limit.atol:g} + {limit.rtol:g} × output"
        if over:
            reason = f"outputs leave the trained network's: {', '.join(over)} ({tolerance}, n={rows})"
            return verdict(self, case, Finding.FAIL, reason, *evidence, used(worst))
        if kinds != {"clean", "probe"}:
            reason = f"expected goldens of both kinds, clean and probe, got {', '.join(sorted(kinds))} alone"
            return verdict(self, case, Finding.INCONCLUSIVE, reason, *evidence)
        most = max(one.value for one in evidence)
        reason = f"largest difference {most:.2g} on {rows} clean and probe inputs ({tolerance})"
        return verdict(self, case, Finding.PASS, reason, *evidence, used(worst))


def _both(net: Net, x: Array, wanted: tuple[Floats, ...], limit: Clause) -> tuple[float, float]:
    """Return the larger gap of the whole and of the halves, as ``_gap``."""
    whole = _gap(net.run(x), wanted[:2], limit.atol, limit.rtol)
    halves = net.halves(x)
    if halves is None:
        return whole
    return max(whole, _gap(halves, wanted, limit.atol, limit.rtol), key=lambda found: found[1])


def _decode(golden: Golden, meta: BundleMeta) -> tuple[Array, tuple[Floats, ...]]:
    x = _array(golden.input_b64, DTYPES[meta.input.datatype], (golden.rows, *meta.input.shape[1:]), "input")
    kind = np.dtype("<f4")
    texts = (golden.logits_b64, golden.embedding_b64, golden.exit_logits_b64)
    told = [text for text in texts if text is not None]
    return x, tuple(
        _array(text, kind, (golden.rows, *spec.shape[1:]), spec.name).astype(np.float32)
        for text, spec in zip(told, meta.outputs, strict=True)
    )


def _array(text: str, dtype: np.dtype[np.generic], shape: tuple[int, ...], name: str) -> Array:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TamperError(f"expected base64 in golden {name}, got {error}") from error
    size = int(np.prod(shape)) * dtype.itemsize
    if len(raw) != size:
        raise TamperError(f"expected golden {name} of {size} bytes for shape {shape}, got {len(raw)}")
    return np.frombuffer(raw, dtype.newbyteorder("<")).reshape(shape).astype(dtype)


def _gap(
    got: tuple[Floats, ...], wanted: tuple[Floats, ...], atol: float, rtol: float
) -> tuple[float, float]:
    """Return the largest difference, and the largest share of the tolerance; infinite where not finite."""
    gap = share = 0.0
    for mine, theirs in zip(got, wanted, strict=True):
        if mine.shape != theirs.shape or not (np.isfinite(mine).all() and np.isfinite(theirs).all()):
            return float("inf"), float("inf")
        apart = np.abs(mine.astype(np.float64) - theirs)
        gap = max(gap, float(apart.max()))
        share = max(share, float((apart / (atol + rtol * np.abs(theirs))).max()))
    return gap, share
