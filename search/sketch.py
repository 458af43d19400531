"""A picture of a search: accuracy over latency, the front, the winner and the incumbent, as SVG.

Called by ``python -m search run``, after the result is written.

* The same result gives the same text; nothing is read or measured here.
* The picture brings its own background, so that it can be read on dark and on light pages.
* Round dots compute in fp32, square ones in int8. Filled ones are on the front.
* Latency is drawn on a logarithmic scale when it spans more than ``_WIDE`` times.

It does not judge: the front is that of the points which a result holds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from policies.terms import Genome, Point, Precision, SearchResult

_WIDTH, _HEIGHT = 760, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 24, 78, 62
_WIDE = 6.0
_LETTER_PX = 7.7
_PAPER, _INK, _FAINT, _GRID = "#fbfbf9", "#22252a", "#6b7078", "#e3e3de"
_BLUE, _GREEN, _RED = "#2f6db5", "#1d7f4f", "#b3402c"
_LINE = f'stroke="{_BLUE}" stroke-width="1.5" stroke-opacity=".6"'

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Mark:
    """A network that is pointed out; accuracy as a share."""

    label: str
    accuracy: float
    latency_ms: float


@dataclass(frozen=True)
class Axis:
    """One direction: values from ``low`` to ``high`` lie between two pixels."""

    low: float
    high: float
    first_px: float
    last_px: float
    log: bool = False

    def px(self, value: float) -> float:
        """Return where a value lies."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.first_px + (at - low) / (high - low) * (self.last_px - self.first_px)

    def ticks(self) -> list[float]:
        """Return round values within, at least one.

        >>> Axis(0.32, 0.62, 0, 1).ticks()
        [0.35, 0.4, 0.45, 0.5, 0.55, 0.6]
        >>> Axis(0.04, 3.0, 0, 1, log=True).ticks()
        [0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
        """
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)))
            every = [float(f"{step}e{decade}") for decade in decades for step in (1, 2, 5)]
            return [value for value in every if self.low <= value <= self.high]
        rough = (self.high - self.low) / 7
        decade = 10.0 ** math.floor(math.log10(rough))
        step = next(step * decade for step in (1, 2, 5, 10) if step * decade >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def front(points: tuple[Point, ...]) -> list[Point]:
    """Return the points that none is both faster and more accurate than, the fastest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (one.latency_ms, -one.accuracy)):
        if not found or point.accuracy > found[-1].accuracy:
            found.append(point)
    return found


def pareto_svg(
    result: SearchResult, precision: Callable[[Genome], Precision], incumbent: Mark | None, title: str
) -> str:
    """Return the picture of a result.

    Args:
        result: What a search handed back; it has at least one measured point.
        precision: Says what a genome computes in.
        incumbent: What the winner is to replace; None at founding.
        title: A line above the picture.

    Raises:
        ValueError: There is no measured point.
    """
    points = tuple(point for point in result.points if point.measured)
    if not points:
        raise ValueError(f"expected a measured point in the result of {result.brief}, got none")
    winner = next((point for point in points if point.genome == result.winner), None)
    marks = [] if winner is None else [(Mark("winner", winner.accuracy, winner.latency_ms), _GREEN)]
    marks += [] if incumbent is None else [(incumbent, _RED)]
    places = [(one.latency_ms, one.accuracy) for one in points]
    places += [(one.latency_ms, one.accuracy) for one, _ in marks]
    x, y = _axes(places)
    best = front(points)
    dots = [
        _dot(x.px(one.latency_ms), y.px(one.accuracy), precision(one.genome), filled=one in best)
        for one in points
    ]
    parts = [
        *_frame(title, f"{result.architectures} architectures looked at, {len(points)} kept"),
        *_grid(x, y),
        _steps(best, x, y),
        *dots,
        *_marks(marks, x, y, [(x.px(ms), y.px(accuracy)) for ms, accuracy in places]),
        *_legend(),
    ]
    return "\n".join([*parts, "</svg>", ""])


def _axes(places: list[tuple[float, float]]) -> tuple[Axis, Axis]:
    fast, slow = min(ms for ms, _ in places), max(ms for ms, _ in places)
    worst, best = min(share for _, share in places), max(share for _, share in places)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    height = max((best - worst) * 0.14, 0.004)
    y = Axis(max(0.0, worst - height), min(1.0 + height / 3, best + height), bottom, _TOP)
    if slow > _WIDE * fast:
        room = (slow / fast) ** 0.06
        return Axis(fast / room, slow * room, _LEFT, right, log=True), y
    width = max((slow - fast) * 0.08, fast * 0.04)
    return Axis(max(0.0, fast - width), slow + width, _LEFT, right), y


def _frame(title: str, under: str) -> list[str]:
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    letters = f'font-family="system-ui, sans-serif" font-size="13" fill="{_INK}"'
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" {letters}>',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="8" fill="{_PAPER}"/>',
        f'<text x="{_LEFT}" y="30" font-size="17" font-weight="600">{escape(title)}</text>',
        f'<text x="{_LEFT}" y="52" fill="{_FAINT}">{escape(under)}</text>',
    ]


def _grid(x: Axis, y: Axis) -> list[str]:
    bottom, right = y.first_px, x.last_px
    drawn = []
    for value in y.ticks():
        at = y.px(value)
        drawn.append(f'<path d="M{x.first_px:.1f} {at:.1f}H{right:.1f}" stroke="{_GRID}"/>')
        drawn.append(_text(x.first_px - 9, at + 4.5, f"{value:g}", "end", _FAINT))
    for value in x.ticks():
        at = x.px(value)
        drawn.append(f'<path d="M{at:.1f} {y.last_px:.1f}V{bottom:.1f}" stroke="{_GRID}"/>')
        drawn.append(_text(at, bottom + 20, f"{value:g}", "middle", _FAINT))
    scale = ", logarithmic" if x.log else ""
    middle = (y.first_px + y.last_px) / 2
    drawn.append(
        f'<path d="M{x.first_px:.1f} {y.last_px:.1f}V{bottom:.1f}H{right:.1f}" fill="none" stroke="{_INK}"/>'
    )
    drawn.append(
        _text((x.first_px + right) / 2, bottom + 44, f"latency of one request in ms{scale}", "middle", _INK)
    )
    turned = f'transform="rotate(-90 20 {middle:.1f})"'
    drawn.append(
        f'<text x="20" y="{middle:.1f}" text-anchor="middle" {turned}>accuracy on rows of role search</text>'
    )
    return drawn


def _steps(best: list[Point], x: Axis, y: Axis) -> str:
    """Return the line of what can be had at each latency."""
    path = f"M{x.px(best[0].latency_ms):.1f} {y.first_px:.1f}V{y.px(best[0].accuracy):.1f}"
    for point in best[1:]:
        path += f"H{x.px(point.latency_ms):.1f}V{y.px(point.accuracy):.1f}"
    return f'<path d="{path}H{x.last_px:.1f}" fill="none" {_LINE}/>'


def _dot(cx: float, cy: float, precision: Precision, *, filled: bool) -> str:
    look = f'fill="{_BLUE if filled else _PAPER}" stroke="{_BLUE}" stroke-width="1.4"'
    if precision is Precision.INT8:
        return f'<rect x="{cx - 4:.1f}" y="{cy - 4:.1f}" width="8" height="8" {look}/>'
    return f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4.5" {look}/>'


def _marks(marks: list[tuple[Mark, str]], x: Axis, y: Axis, dots: list[tuple[float, float]]) -> list[str]:
    taken: list[Box] = [(cx - 7, cy - 7, cx + 7, cy + 7) for cx, cy in dots]
    drawn = []
    for mark, colour in marks:
        cx, cy = x.px(mark.latency_ms), y.px(mark.accuracy)
        said = f"{mark.label}: {mark.accuracy:.4f} at {mark.latency_ms:.3g} ms"
        box = _free(cx, cy, len(said) * _LETTER_PX, taken, (x.first_px, y.last_px, x.last_px, y.first_px))
        taken.append(box)
        drawn.append(
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="9" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<path d="M{cx:.1f} {cy - 2.5:.1f}v5m-2.5 -2.5h5" stroke="{colour}" stroke-width="1.2"/>'
        )
        halo = f'stroke="{_PAPER}" stroke-width="4" stroke-linejoin="round" paint-order="stroke"'
        drawn.append(
            _text((box[0] + box[2]) / 2, box[3] - 4, said, "middle", colour, f'font-weight="600" {halo}')
        )
    return drawn


def _free(cx: float, cy: float, width: float, taken: list[Box], within: Box) -> Box:
    """Return a place for a label near a point that covers the least."""

    def covers(box: Box) -> float:
        over = sum(
            max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
            * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
            for other in taken
        )
        out = max(0.0, within[0] - box[0]) + max(0.0, box[2] - within[2])
        out += max(0.0, within[1] - box[1]) + max(0.0, box[3] - within[3])
        return over + 1000 * out

    lefts = (cx + 14, cx - 14 - width, cx - width / 2, cx - 14, cx + 14 - width)
    tops = (cy - 29, cy + 13, cy - 48, cy + 32, cy - 67, cy + 51, cy - 86, cy + 70)
    boxes = [(left, top, left + width, top + 17) for top in tops for left in lefts]
    return min(boxes, key=covers)


def _legend() -> list[str]:
    at = _WIDTH - _RIGHT - 208
    return [
        _dot(at, 48, Precision.FP32, filled=True),
        _text(at + 10, 52, "fp32", "start", _FAINT),
        _dot(at + 58, 48, Precision.INT8, filled=True),
        _text(at + 68, 52, "int8", "start", _FAINT),
        f'<path d="M{at + 108} 48h22" {_LINE}/>',
        _text(at + 136, 52, "the front", "start", _FAINT),
    ]


def _text(x: float, y: float, said: str, anchor: str, fill: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" {more}>{escape(said)}</text>'
