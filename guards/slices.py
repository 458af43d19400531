"""Is a class sacrificed for the mean? Every class against the incumbent, on rows since the change.

* A class that is significantly worse fails (exact sign test, Holm over all classes): a fixed limit of some
  points would reject every good model by chance, for classes have few rows.
* A class with too few rows is not judged, and unknown is not good: inconclusive.
* What the test could have found is published for every class, and so is the interval of its difference.
"""

import numpy as np

from guards.contract import used, verdict
from guards.intervals import Paired
from guards.material import NEW, Material
from guards.signtest import detectable_drop, holm, worse_p
from policies.case import Case
from policies.terms import Artefact, Evidence, Finding, Verdict

CLASS = "class {} difference"
DETECTABLE = "class {} detectable drop"


class Slices:
    """Every class."""

    name = "slices"

    def clause(self, case: Case) -> str:
        """Return the id of the clause it judges by."""
        return case.policy.modification_protocol.evaluation.slices.clause

    def judge(self, case: Case, material: Material) -> Verdict:
        """Ask every class whether it lost."""
        limit = case.policy.modification_protocol.evaluation.slices
        if case.incumbent is None:
            reason = "expected an incumbent to compare with, none is given"
            return verdict(self, case, Finding.INCONCLUSIVE, reason)
        counts = _counts(case, material, case.incumbent)
        few = [(name, n) for name, (_w, _l, n) in counts.items() if n < limit.min_rows]
        asked = {name: count for name, count in counts.items() if count[2] >= limit.min_rows}
        adjusted = dict(
            zip(asked, holm([worse_p(won, lost) for won, lost, _n in asked.values()]), strict=True)
        )
        evidence = _evidence(case, asked)
        lowest = min(adjusted.values(), default=1.0)
        evidence.append(
            Evidence(name="smallest p", value=lowest, unit="p (Holm)", n=len(asked), limit=limit.alpha)
        )
        evidence.append(used(limit.alpha / max(lowest, 1e-9)))
        worse = [name for name, p in adjusted.items() if p <= limit.alpha]
        if worse:
            told = "; ".join(_told(name, asked[name], adjusted[name]) for name in worse)
            reason = f"{len(worse)} of {len(asked)} classes are worse than the incumbent's: {told}"
            return verdict(self, case, Finding.FAIL, reason, *evidence)
        if few:
            told = ", ".join(f"{name} has {n}" for name, n in few)
            reason = f"expected {limit.min_rows} gate rows since the change for every class: {told}"
            return verdict(self, case, Finding.INCONCLUSIVE, reason, *evidence)
        last = min(asked, key=lambda name: (asked[name][0] - asked[name][1]) / asked[name][2])
        reason = f"no class of {len(asked)} is worse than the incumbent's; lowest is "
        return verdict(self, case, Finding.PASS, reason + _told(last, asked[last], adjusted[last]), *evidence)


Count = tuple[int, int, int]
"""Rows that only the candidate had right, that only the incumbent had right, and all rows."""


def _counts(case: Case, material: Material, incumbent: Artefact) -> dict[str, Count]:
    y = material.rows(NEW).y
    mine, theirs = (material.answers(bundle, NEW).right for bundle in (case.bundle, incumbent))
    found = {}
    for index, name in enumerate(case.task.classes):
        here = y == index
        won, lost = np.count_nonzero(here & mine & ~theirs), np.count_nonzero(here & theirs & ~mine)
        found[name] = (int(won), int(lost), int(np.count_nonzero(here)))
    return found


def _evidence(case: Case, asked: dict[str, Count]) -> list[Evidence]:
    evaluation = case.policy.modification_protocol.evaluation
    alpha, expected = evaluation.slices.alpha, evaluation.incumbent
    found = []
    for name, (won, lost, n) in asked.items():
        paired = Paired(won, lost, n)
        drop = detectable_drop(n, alpha, len(asked), expected.power, expected.discordance)
        found.append(
            Evidence(
                name=CLASS.format(name),
                value=paired.difference,
                unit="share",
                n=n,
                interval=paired.bounds(0.025),
                source=case.gate.digest,
            )
        )
        found.append(Evidence(name=DETECTABLE.format(name), value=drop, unit="share", n=n))
    return found


def _told(name: str, count: Count, p: float) -> str:
    won, lost, n = count
    return f"class {name} {(won - lost) / n:+.1%} (won {won}, lost {lost}, n={n}, p={p:.2g})"
