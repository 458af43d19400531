"""Does the candidate still know what was learned before the change? Against the baseline, on older rows.

The past may come back, and labels of the past are what the baseline is strong on: forgetting shows here.
"""

from guards.comparison import Question, compare
from guards.material import OLD, Material
from policies.case import Case
from policies.terms import Verdict


class Retention:
    """What must not be lost."""

    name = "retention"

    def clause(self, case: Case) -> str:
        """Return the id of the clause it judges by."""
        return case.policy.modification_protocol.evaluation.retention.clause

    def judge(self, case: Case, material: Material) -> Verdict:
        """Compare, row by row."""
        limit = case.policy.modification_protocol.evaluation.retention
        return compare(self, case, material, Question(case.baseline, "baseline", OLD, limit))
