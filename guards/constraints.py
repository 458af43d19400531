"""How large is the file that ships? Counted in its bytes, not in what it says.

* Learned numbers are counted wherever they hide (``guards.weights``); quantised ones count as many as before.
* A file that holds more than it declares fails: what is not declared was not searched for.
"""

from guards import structure, weights
from guards.contract import used, verdict
from guards.material import Material
from policies.case import Case
from policies.errors import TamperError
from policies.terms import Evidence, Finding, Verdict


class Constraints:
    """Parameters and bytes."""

    name = "constraints"

    def clause(self, case: Case) -> str:
        """Return the id of the clause it judges by."""
        return case.policy.modification_protocol.evaluation.constraints.clause

    def judge(self, case: Case, material: Material) -> Verdict:
        """Count and compare."""
        limit = case.policy.modification_protocol.evaluation.constraints
        try:
            raw = material.raw(case.bundle)
            model = structure.parse(raw)
            declared = structure.read_meta(model).params
        except TamperError as error:
            return verdict(self, case, Finding.FAIL, str(error))
        params, source = weights.count_params(model), case.bundle.digest
        evidence = (
            Evidence(name="params", value=params, unit="numbers", n=1, limit=limit.max_params, source=source),
            Evidence(
                name="size", value=len(raw), unit="bytes", n=1, limit=limit.max_size_bytes, source=source
            ),
            used(max(params / limit.max_params, len(raw) / limit.max_size_bytes)),
        )
        told = f"{params} parameters (limit {limit.max_params}), {len(raw)} bytes ({limit.max_size_bytes})"
        if params > declared:
            reason = f"the file holds {params} parameters and declares {declared}"
            return verdict(self, case, Finding.FAIL, reason, *evidence)
        within = params <= limit.max_params and len(raw) <= limit.max_size_bytes
        return verdict(self, case, Finding.PASS if within else Finding.FAIL, told, *evidence)
