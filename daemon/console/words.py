"""Numbers and moments in the words that people read; the terminal and the pages share them.

* Moments are UTC and say so; ages are rough, the exact moment stands beside them.
* ``None`` is an en dash: not known is shown as not known, never as zero.

Pure: ``now`` is an argument.
"""

from datetime import UTC, datetime
from typing import Any

from policies.status import CandidateView
from policies.terms import Evidence, Signal

UNKNOWN = "–"
FULL_SCALE = 2.0
"""The score at the end of a bar; the threshold, 1, stands in its middle."""

DEMO_PREFIX = "Unsafe"
"""What names of principals begin with whose keys lie beside the system that trusts them."""


def moment(at: float | None) -> str:
    """Return a UTC moment to the second.

    >>> moment(1_800_000_000.4)
    '2027-01-15 08:00:00 UTC'
    """
    if at is None:
        return UNKNOWN
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def span(seconds: float) -> str:
    """Return a duration in its two largest units; negative ones count as zero.

    >>> span(4.2), span(65), span(7260), span(180_000)
    ('4 s', '1 min 5 s', '2 h 1 min', '2 d 2 h')
    """
    left = max(0, int(seconds))
    told = []
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count:
            told.append(f"{count} {unit}")
    return " ".join(told[:2]) or "0 s"


def since(at: float | None, now: float) -> str:
    """Return a moment with its age.

    >>> since(1_800_000_000.0, 1_800_000_065.0)
    '2027-01-15 08:00:00 UTC, 1 min 5 s ago'
    """
    return UNKNOWN if at is None else f"{moment(at)}, {span(now - at)} ago"


def short(digest: str | None) -> str:
    """Return the first twelve digits of a digest.

    >>> short("sha256:" + "ab" * 32)
    'abababababab'
    """
    return UNKNOWN if digest is None else digest.removeprefix("sha256:")[:12]


def score(value: float | None) -> str:
    """Return a monitor's score; 1 is its threshold.

    >>> score(0.734), score(None)
    ('0.73', '–')
    """
    return UNKNOWN if value is None else f"{value:.2f}"


def bar(value: float | None, width: int = 10) -> str:
    """Return a score as a bar of ``width`` cells; a full one is ``FULL_SCALE`` or more.

    >>> bar(1.0), bar(None, 4), bar(9.0, 4)
    ('█████░░░░░', '····', '████')
    """
    if value is None:
        return "·" * width
    full = min(width, round(width * value / FULL_SCALE))
    return "█" * full + "░" * (width - full)


def share(used: float, allowed: float) -> float:
    """Return how much of a budget is used, in [0, 1]; nothing allowed is all used.

    >>> share(30.0, 120.0), share(1, 0), share(5, 4)
    (0.25, 1.0, 1.0)
    """
    return 1.0 if allowed <= 0 else min(1.0, max(0.0, used / allowed))


def number(value: float) -> str:
    """Return a number with four significant digits and thousands apart.

    >>> number(0.97312), number(48210.0), number(12.5), number(0.00004)
    ('0.9731', '48,210', '12.5', '4e-05')
    """
    if value == int(value) and abs(value) >= 1000:
        return f"{int(value):,}"
    return f"{value:.4g}"


def evidence(item: Evidence) -> str:
    """Return one measured number with its interval, limit and count.

    >>> evidence(Evidence(name="p99", value=31.2, unit="ms", n=400, limit=25.0))
    'p99 31.2 ms, limit 25 (n=400)'
    """
    low_high = "" if item.interval is None else f" [{number(item.interval[0])}, {number(item.interval[1])}]"
    limit = "" if item.limit is None else f", limit {number(item.limit)}"
    unit = f" {item.unit}" if item.unit and item.unit != "1" else ""
    return f"{item.name} {number(item.value)}{unit}{low_high}{limit} (n={item.n:,})"


def basis(signal: Signal, now: float) -> str:
    """Return how long a signal's level has stood and on how many observations it rests.

    >>> from policies.terms import Level
    >>> basis(Signal(monitor="drift", level=Level.ALARM, since=40.0, at=99.0, n=5000, reason="r"), 100.0)
    'for 1 min, n=5,000'
    """
    held = "" if signal.since is None else f"for {span(now - signal.since)}, "
    return f"{held}n={signal.n:,}"


def signatures(view: CandidateView) -> str:
    """Return how many of the people who must say yes have said it."""
    who = f": {', '.join(view.approvals)}" if view.approvals else ""
    return f"{len(view.approvals)} of {view.quorum}{who}"


def step(view: CandidateView) -> str:
    """Return where a candidate on probation stands; an en dash before it had any traffic."""
    if view.step is None:
        return UNKNOWN
    return f"step {view.step.number} of {view.step.of}, {view.step.share:.0%} of the traffic"


def is_demo(principal: str) -> bool:
    """Tell whether a principal's key guards nothing.

    >>> is_demo("UnsafeDemoApprover"), is_demo("ada@example.org")
    (True, False)
    """
    return principal.startswith(DEMO_PREFIX)


def body(facts: dict[str, Any]) -> str:
    """Return an entry's body as words: short facts first, as they stand in the journal.

    >>> body({"candidate": "c-1", "from": "CLEARED", "signals": [1, 2], "ok": True})
    'candidate=c-1 from=CLEARED signals=[2] ok=true'
    """
    return " ".join(f"{key}={_fact(value)}" for key, value in facts.items())


def _fact(value: Any) -> str:
    match value:
        case None:
            return UNKNOWN
        case bool():
            return str(value).lower()
        case float():
            return number(value)
        case str():
            # A signature, say, is many lines that nobody reads here; --json has them all.
            first, more, _ = value.partition("\n")
            return short(value) if value.startswith("sha256:") else first + ("…" if more else "")
        case list() | tuple():
            return f"[{len(value)}]"
        case dict():
            return "{…}"
        case _:
            return str(value)
