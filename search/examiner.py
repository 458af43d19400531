"""Who examines: one supernet, one sheet of questions, any genome of the space in the precision it names."""

import numpy as np
from numpy.typing import NDArray

from policies.terms import Precision
from search.dataset import Rows
from search.exam import Marks, Sheet, mark
from search.export import Subnet, model_of
from search.runtime import run_bundle
from search.space import Genes, Space
from search.supernet import Supernet


class Examiner:
    """Asks the same questions of every genome.

    Args:
        space: Of the genomes.
        net: The weights as they are at each call.
        sheet: The questions.
        input_name: Of the task.
    """

    def __init__(self, space: Space, net: Supernet, sheet: Sheet, input_name: str) -> None:
        self._space = space
        self._net = net
        self.sheet = sheet
        self._input_name = input_name

    def examine(self, genes: Genes) -> Marks:
        """Calibrate a genome's subnet and examine it."""
        return self.judge(self.calibrated(genes))

    def calibrated(self, genes: Genes) -> Subnet:
        """Return a genome's subnet with the statistics that its exam uses."""
        blueprint = self._space.blueprint(genes)
        return Subnet(self._net, blueprint, self._net.calibrate(blueprint, self.sheet.calibration))

    def judge(self, subnet: Subnet) -> Marks:
        """Examine a calibrated subnet in its own precision."""
        new, old = self.sheet.new, self.sheet.old
        if subnet.blueprint.precision is Precision.FP32:
            return mark(subnet.net, subnet.blueprint, subnet.statistics, new, old)
        raw = model_of(subnet, self._input_name, self.sheet.raw).SerializeToString()
        return mark_bundle(raw, new, old)


def mark_bundle(raw: bytes, new: Rows, old: Rows) -> Marks:
    """Examine a file through the runtime."""

    def right(rows: Rows) -> NDArray[np.bool_]:
        if not len(rows):
            return np.zeros(0, dtype=np.bool_)
        return np.asarray(run_bundle(raw, rows.x)[0].argmax(axis=1) == rows.y)

    return Marks(right(new), right(old))
