"""The final: the best that was examined, exported as it would ship, and measured as that.

* A finalist is calibrated on more rows than in the search, examined again, exported and timed.
* Only one whose file and timing meet the limits can win.
"""

from collections.abc import Callable

import numpy as np

from policies.errors import PermanentError
from policies.terms import Brief
from search import choice, export, latency
from search.bounds import MEDIAN_OF_P99, Bounds
from search.choice import Finalist
from search.dataset import Rows
from search.exam import Exam, outputs
from search.explore import Look
from search.latency import Clock
from search.space import Space, to_genome
from search.supernet import Statistics, Supernet

_FINALISTS = 5


class Final:
    """Holds one final.

    Args:
        brief: Of the search.
        space: Of all looks.
        rows: New rows of role search; some become goldens.
        net: The trained weights.
        bounds: What a winner must meet.
    """

    def __init__(self, brief: Brief, space: Space, rows: Rows, net: Supernet, bounds: Bounds) -> None:
        self._brief = brief
        self._space = space
        self._rows = rows
        self._net = net
        self._bounds = bounds

    def hold(
        self,
        exam: Exam,
        looks: list[Look],
        old_before: float | None,
        clock: Clock,
        report: Callable[[int, int, str], None],
    ) -> list[Finalist]:
        """Return the finalists, measured.

        Args:
            exam: With the calibration that ships.
            looks: All that was examined.
            old_before: Accuracy on old rows that the parent had, in [0, 1].
            clock: For timing.
            report: Told before each.
        """
        scale = max(look.latency_ms for look in looks)
        ordered = sorted(looks, key=lambda look: -choice.score(look, look.marks, old_before, scale))
        finalists = []
        for index, look in enumerate(ordered[:_FINALISTS]):
            report(index, _FINALISTS, "final: exporting and timing finalists")
            finalists.append(self._measure(exam, look, clock))
        return finalists

    def winner(self, finalists: list[Finalist], old_before: float | None) -> Finalist:
        """Return the best finalist that meets the limits.

        Raises:
            PermanentError: None does.
        """
        fit = [finalist for finalist in finalists if self._fits(finalist)]
        if not fit:
            raise PermanentError(
                f"expected a finalist within {self._brief.limits.max_size_bytes} bytes and a median of "
                f"{self._brief.limits.max_p99_ms * MEDIAN_OF_P99:.3g} ms, got "
                f"{[(len(one.bundle), round(one.measured_ms, 3)) for one in finalists]}; "
                "widen the limits, or search again on a quieter machine"
            )
        scale = max(one.look.latency_ms for one in finalists)
        return max(fit, key=lambda one: choice.score(one.look, one.marks, old_before, scale))

    def _measure(self, exam: Exam, look: Look, clock: Clock) -> Finalist:
        statistics = exam.calibrate(look.blueprint)
        bundle = self._bundle(look, statistics)
        parent = self._bounds.parent
        return Finalist(
            look=look,
            marks=exam.mark(look.blueprint, statistics),
            bundle=bundle,
            measured_ms=latency.time_bundle(bundle, self._rows.x[:1], clock),
            # As the law counts it: in all genes, also the inactive ones, which are the parent's.
            distance=0 if parent is None else int((look.genes != parent).sum()),
        )

    def _fits(self, finalist: Finalist) -> bool:
        limits = self._brief.limits
        small = len(finalist.bundle) <= limits.max_size_bytes
        # Only the hard limit is asked of a timing on a loaded machine; the table has kept the relative one.
        fast = finalist.measured_ms <= limits.max_p99_ms * MEDIAN_OF_P99
        near = self._bounds.parent is None or finalist.distance <= limits.max_edit_distance
        return small and fast and near

    def _bundle(self, look: Look, statistics: Statistics) -> bytes:
        blueprint, net = look.blueprint, self._net
        rng = np.random.default_rng([self._brief.seed, 5])
        clean = self._rows.some(export.GOLDEN_ROWS, rng).x
        probes = export.probes(blueprint.height, blueprint.width, rng)
        goldens = (
            export.golden("clean", clean, *outputs(net, blueprint, statistics, clean)),
            export.golden("probe", probes, *outputs(net, blueprint, statistics, probes)),
        )
        pairs = [net.folded(conv, statistics) for conv in blueprint.convs]
        weight, bias = net.classifier()
        weights = export.Weights(
            tuple((one.contiguous().numpy(), other.numpy()) for one, other in pairs),
            (weight.numpy(), bias.numpy()),
        )
        meta = export.bundle_meta(self._brief, to_genome(self._space, look.genes), blueprint, goldens)
        model = export.network_model(blueprint, weights, self._brief.task.input.name)
        return export.bundle_bytes(model, meta)
