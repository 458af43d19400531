"""Is the candidate no worse than another bundle, by more than a margin? Paired, on the same gate rows.

* Passes when the lower bound of the difference lies above ``-margin`` (non-inferiority).
* The number of rows is fixed beforehand by margin, level, power and expected discordance; with fewer it is
  inconclusive, whatever the rows say: a test that may be read at any size is another test.
* With enough rows, "not shown" is a fail: the test had its chance.
* Answers that are not finite fail the candidate at any size.

``incumbent``, ``baseline`` and ``retention`` ask it three questions; comparing with the incumbent alone would
let quality creep downwards by a margin a swap.

Source: Tango, Statistics in Medicine 17 (1998); Feng, Emerson and Simon, Biometrics 77 (2021), on creep.
"""

from dataclasses import dataclass

import numpy as np

from guards.contract import Guard, used, verdict
from guards.intervals import Paired, share_bounds
from guards.material import NEW, Material
from policies.case import Case
from policies.clauses import NonInferiority
from policies.support import required_rows
from policies.terms import Artefact, Evidence, Finding, Verdict


@dataclass(frozen=True)
class Question:
    """What is compared with what, and where.

    Args:
        other: The bundle to compare with, if there is one.
        label: What to call it: ``incumbent`` or ``baseline``.
        regime: Of the gate rows.
        limit: The clause.
    """

    other: Artefact | None
    label: str
    regime: int
    limit: NonInferiority


def pair(case: Case, material: Material, other: Artefact, regime: int) -> Paired:
    """Return who was right where the other was wrong; there must be rows."""
    mine = material.answers(case.bundle, regime).right
    theirs = material.answers(other, regime).right
    won, lost = np.count_nonzero(mine & ~theirs), np.count_nonzero(theirs & ~mine)
    return Paired(int(won), int(lost), len(mine))


def compare(guard: Guard, case: Case, material: Material, question: Question) -> Verdict:
    """Answer one question of non-inferiority."""
    limit, label = question.limit, question.label
    where = "since the change" if question.regime == NEW else "of the time before it"
    if question.other is None:
        return verdict(
            guard, case, Finding.INCONCLUSIVE, f"expected a {label} to compare with, none is given"
        )
    n, need = len(material.rows(question.regime).y), required_rows(limit)
    if n == 0:
        reason = f"expected {need} gate rows {where} for a margin of {limit.margin:.1%}, there are 0"
        return verdict(guard, case, Finding.INCONCLUSIVE, reason)
    broken = material.answers(case.bundle, question.regime).broken
    paired = pair(case, material, question.other, question.regime)
    lower, upper = paired.bounds(limit.alpha)
    evidence = _evidence(case, material, question, paired)
    if broken:
        return verdict(guard, case, Finding.FAIL, f"{broken} of {n} answers are not finite", *evidence)
    told = (
        f"{paired.difference:+.1%} against the {label} on rows {where}, lower bound {lower:+.1%} at "
        f"{1 - limit.alpha:.0%}, limit {-limit.margin:+.1%} (n={n}, {paired.discordance:.1%} differ)"
    )
    if n < need:
        reason = (
            f"expected {need} gate rows {where} for a margin of {limit.margin:.1%}, there are {n}; {told}"
        )
        return verdict(guard, case, Finding.INCONCLUSIVE, reason, *evidence)
    if lower > -limit.margin:
        return verdict(guard, case, Finding.PASS, told, *evidence, used(-lower / limit.margin))
    shown = "shown worse" if upper < -limit.margin else "not shown to be within the margin"
    return verdict(guard, case, Finding.FAIL, f"{shown}: {told}", *evidence, used(-lower / limit.margin))


def _evidence(case: Case, material: Material, question: Question, paired: Paired) -> list[Evidence]:
    assert question.other is not None
    limit, n = question.limit, paired.n
    found = [
        Evidence(
            name="difference",
            value=paired.difference,
            unit="share",
            n=n,
            interval=paired.bounds(limit.alpha),
            limit=-limit.margin,
            source=case.gate.digest,
        )
    ]
    for name, artefact in (("accuracy", case.bundle), (f"{question.label} accuracy", question.other)):
        good = int(np.count_nonzero(material.answers(artefact, question.regime).right))
        found.append(
            Evidence(
                name=name,
                value=good / n,
                unit="share",
                n=n,
                interval=share_bounds(good, n, limit.alpha),
                source=case.gate.digest,
            )
        )
    found.append(
        Evidence(name="discordance", value=paired.discordance, unit="share", n=n, limit=limit.discordance)
    )
    found.append(Evidence(name="rows", value=n, unit="rows", n=n, limit=required_rows(limit)))
    return found
