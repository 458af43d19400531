"""The space for table rows: a residual perceptron with elastic depth, width and expansion.

* A stem into ``width`` channels, up to four residual blocks of two layers, a head.
* One width holds for the whole network, since the shortcuts tie it together.
* At depth 0 there is no block between stem and head: the nearest that the space has to a linear model.
"""

from policies.errors import PermanentError
from policies.terms import Datatype, Precision, Task
from search.blueprint import Block, Conv, Entry, Layout
from search.codec import Codec, Gene, Place, Plan, Values

_MOST_FEATURES = 4096
_WIDTHS = (16, 32, 64, 96)
_DEEPEST = 4
_HALVES = (1, 2, 4)
_EMBEDDING = 48

_WIDTH, _DEPTH, _FIRST = 0, 1, 2


def table_space(task: Task, precisions: tuple[Precision, ...]) -> Codec:
    """Return the space of a table task.

    Raises:
        PermanentError: The input is not a batch of FP32 rows.
    """
    spec = task.input
    fits = len(spec.shape) == 2 and spec.shape[0] == -1 and 1 <= spec.shape[1] <= _MOST_FEATURES
    if spec.datatype is not Datatype.FP32 or not fits:
        raise PermanentError(
            f"expected an input of FP32 (-1, features), up to {_MOST_FEATURES} features, got "
            f"{spec.datatype} {spec.shape} in task {task.name}; give the task another input, or "
            "another modality"
        )
    return Codec(table_plan(spec.shape[1], len(task.classes)), precisions)


def table_plan(features: int, classes: int) -> Plan:
    """Return the declaration for rows of some features."""
    genes = [Gene("width", len(_WIDTHS)), Gene("depth", _DEEPEST + 1)]
    genes += [Gene("expansion", len(_HALVES), ((_DEPTH, index + 1),)) for index in range(_DEEPEST)]
    places = [Place((_WIDTH,), lambda values: _layer("stem", features, _WIDTHS[values[0]]))]
    places += [_place(index) for index in range(_DEEPEST)]
    places.append(Place((_WIDTH,), lambda values: _layer("head", _WIDTHS[values[0]], _EMBEDDING)))
    return Plan(
        name="table",
        genes=tuple(genes),
        places=tuple(places),
        entry_gene=None,
        entries=(Entry(Layout.F, features, 1, 1, 1, 1),),
        exit_gene=None,
        classifiers=("classifier",),
        classes=classes,
        embedding=_EMBEDDING,
    )


def _layer(slot: str, inputs: int, outputs: int) -> Block:
    return Block((_dense(slot, inputs, outputs, relu=True),), residual=False)


def _dense(slot: str, inputs: int, outputs: int, *, relu: bool) -> Conv:
    return Conv(slot, (1, 1), (1, 1), inputs, outputs, relu, 1, 1)


def _place(index: int) -> Place:
    def block(values: Values) -> Block | None:
        wide, depth, expansion = values
        if depth <= index:
            return None
        width = _WIDTHS[wide]
        hidden = width * _HALVES[expansion] // 2
        slot = f"b{index}"
        convs = (
            _dense(f"{slot}.expand", width, hidden, relu=True),
            _dense(f"{slot}.project", hidden, width, relu=False),
        )
        return Block(convs, residual=True)

    return Place((_WIDTH, _DEPTH, _FIRST + index), block)
