"""Is the candidate no worse than the signed baseline, on rows since the change?

Each swap may lose a margin against its incumbent; against the baseline, all swaps together may lose one.
"""

from guards.comparison import Question, compare
from guards.material import NEW, Material
from policies.case import Case
from policies.terms import Verdict


class Baseline:
    """What was signed first."""

    name = "baseline"

    def clause(self, case: Case) -> str:
        """Return the id of the clause it judges by."""
        return case.policy.modification_protocol.evaluation.baseline.clause

    def judge(self, case: Case, material: Material) -> Verdict:
        """Compare, row by row."""
        limit = case.policy.modification_protocol.evaluation.baseline
        return compare(self, case, material, Question(case.baseline, "baseline", NEW, limit))
