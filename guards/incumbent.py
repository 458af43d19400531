"""Is the candidate no worse than what serves now, on rows since the change?

It asks ``comparison`` and adds nothing.
"""

from guards.comparison import Question, compare
from guards.material import NEW, Material
from policies.case import Case
from policies.terms import Verdict


class Incumbent:
    """What serves now."""

    name = "incumbent"

    def clause(self, case: Case) -> str:
        """Return the id of the clause it judges by."""
        return case.policy.modification_protocol.evaluation.incumbent.clause

    def judge(self, case: Case, material: Material) -> Verdict:
        """Compare, row by row."""
        limit = case.policy.modification_protocol.evaluation.incumbent
        return compare(self, case, material, Question(case.incumbent, "incumbent", NEW, limit))
