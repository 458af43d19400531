"""The report as a page: one file, no script, nothing from elsewhere, every text escaped.

It turns a ``Report`` into HTML and adds nothing to what it says. Texts come from models, policies and guards
of others, so none is trusted: autoescape is on, undefined names are errors, and the policy in the page's head
forbids whatever would slip through.

Source: W3C, Content Security Policy Level 3.
"""

from datetime import UTC, datetime

import jinja2

from guards.charts import Axis, front, span
from guards.contract import USED
from guards.report import Report, used_of
from policies.terms import Evidence, Point, Verdict

CSP = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("guards", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(report: Report) -> bytes:
    """Return the page, UTF-8."""
    text = _ENVIRONMENT.get_template("report.html").render(
        r=report,
        csp=CSP,
        forest=_forest(report),
        pareto=_pareto(report),
        front=front((p.latency_ms, p.accuracy) for p in report.points if p.measured),
        channels=max((max(row.before_channels, row.after_channels) for row in report.layers), default=1),
        used_of=used_of,
        shown=_shown,
        share=_share,
        points=_points,
        amount=_amount,
        moment=_moment,
        is_winner=lambda point: is_winner(report, point),
    )
    return text.encode()


def is_winner(report: Report, point: Point) -> bool:
    """Tell whether a point is the candidate's."""
    return point.genome == report.genome


def _shown(verdict: Verdict) -> list[Evidence]:
    """Return the evidence for the table; classes have a drawing of their own."""
    return [e for e in verdict.evidence if e.name != USED and not e.name.startswith("class ")]


def _forest(report: Report) -> Axis | None:
    if not report.slices:
        return None
    values = [report.slice_limit]
    for row in report.slices:
        values += [*(row.evidence.interval or ()), row.evidence.value]
        values += [] if row.detectable is None else [-row.detectable]
    low, high = span(values)
    if report.founding:
        high = max(high, 1.0)
    return Axis(low, high, 96.0, 840.0)


def _pareto(report: Report) -> tuple[Axis, Axis] | None:
    if not report.points:
        return None
    x = span([p.latency_ms for p in report.points], least=0.01)
    # The worst of the predicted points would squeeze the ones that matter into a corner.
    gains = sorted(p.accuracy for p in report.points)
    y = span([gains[len(gains) // 10], gains[-1]], least=0.01)
    return Axis(*x, 54.0, 470.0), Axis(*y, 236.0, 14.0)


def _share(value: float) -> str:
    """Return a share in percent.

    >>> _share(0.9731)
    '97.3 %'
    """
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    """Return a difference of shares in percentage points, with its sign.

    >>> _points(-0.0312)
    '−3.1 pp'
    """
    return f"{100 * value:+.1f} pp".replace("-", "−")


def _amount(value: float, unit: str) -> str:
    """Return a number with its unit, in three figures or whole.

    >>> _amount(41250.0, "numbers")
    '41\\xa0250'
    >>> _amount(0.2714, "ms")
    '0.271\\xa0ms'
    """
    if unit == "share":
        return _share(value)
    figure = f"{value:,.0f}".replace(",", "\u00a0") if abs(value) >= 1000 else f"{value:.3g}"
    return figure if unit in ("numbers", "") else f"{figure}\u00a0{unit}"


def _moment(at: float) -> str:
    """Return a moment for people.

    >>> _moment(0.0)
    '1970-01-01 00:00:00 UTC'
    """
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def evidence(one: Evidence) -> str:
    """Return one measured number in words.

    >>> evidence(Evidence(name="p99", value=0.5, unit="ms", n=200, limit=25.0))
    'p99 0.5\\xa0ms (limit 25\\xa0ms, n=200)'
    """
    told = f"{one.name} {_amount(one.value, one.unit)}"
    parts = [] if one.limit is None else [f"limit {_amount(one.limit, one.unit)}"]
    return f"{told} ({', '.join([*parts, f'n={one.n}'])})"


_ENVIRONMENT.filters["evidence"] = evidence
