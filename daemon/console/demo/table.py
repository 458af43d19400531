"""The table at the end of the story, and its twin in JSON."""

import dataclasses
import json
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from daemon.console import words
from daemon.console.demo.footage import Share
from daemon.console.demo.result import Figures, faults
from policies.errors import PermanentError


def render(figures: Figures) -> RenderableType:
    """Return the table, with the verdict under it."""
    table = Table(title="The loop, once around (DEMO KEY)" if figures.demo_key else "The loop, once around")
    table.add_column("", style="bold")
    table.add_column("", justify="right")
    table.add_column("")
    for section in (_accuracy(figures), _detection(figures), _service(figures), _times(figures)):
        for row in section:
            table.add_row(*row)
        table.add_section()
    return Group(table, _paths(figures), _verdict(figures))


def _accuracy(figures: Figures) -> list[tuple[str, str, str]]:
    fall = "" if figures.fall is None else f", {100 * figures.fall:.1f} points lost"
    unseen = figures.unseen_after
    known = figures.unseen_before
    oracle = words.UNKNOWN if figures.oracle is None else f"{100 * figures.oracle:.1f} %"
    newest = words.UNKNOWN if figures.generation is None else str(figures.generation)
    return [
        ("Accuracy before drift", _percent(figures.before), f"live, n={figures.before.n:,}"),
        ("under drift", _percent(figures.under), f"live, n={figures.under.n:,}{fall}"),
        ("after adaptation", _percent(figures.after), f"live, generation {newest}, n={figures.after.n:,}"),
        ("before, on unseen digits", _percent(known), "drifted; the camera never sent them"),
        ("adapted, on unseen digits", _percent(unseen), "" if unseen is None else f"n={unseen.n:,}"),
        ("oracle, on unseen digits", oracle, f"the same genome, trained long; n={figures.oracle_n:,}"),
        (
            "regained",
            words.UNKNOWN if figures.regained is None else f"{100 * figures.regained:.1f} %",
            "of the oracle's, the worse of live and unseen",
        ),
    ]


def _detection(figures: Figures) -> list[tuple[str, str, str]]:
    told = f"in {figures.quiet_requests:,} requests of the quiet while"
    return [
        ("First alarm", _count(figures.alarm_delay_requests), "requests after the drift began"),
        (
            "Trigger",
            _count(figures.trigger_delay_requests),
            "requests after the drift began, labels being late",
        ),
        ("False alarms", str(figures.false_alarms), told),
        ("False triggers", str(figures.false_triggers), told),
        ("Founding search", f"{figures.founding_cpu_s:.1f} CPU-s", ""),
        ("Adaptation search", f"{figures.adaptation_cpu_s:.1f} CPU-s", ""),
    ]


def _service(figures: Figures) -> list[tuple[str, str, str]]:
    rows = [
        ("Requests sent", f"{figures.sent:,}", ""),
        ("Requests failed", str(figures.failed), "never sent again, so each would count"),
    ]
    names = {"steady": "steady state", "search": "during the search", "swap": "swap windows, ±3 s"}
    for name, title in names.items():
        found = figures.latency.get(name)
        if found is None:
            rows.append((f"p50 / p99, {title}", words.UNKNOWN, "fewer than 100 requests"))
        else:
            rows.append(
                (f"p50 / p99, {title}", f"{found.p50_ms:.1f} / {found.p99_ms:.1f} ms", f"n={found.n:,}")
            )
    return rows


def _times(figures: Figures) -> list[tuple[str, str, str]]:
    return [
        (f"Time: {name}", f"{seconds:.0f} s", words.span(seconds) if name == "all" else "")
        for name, seconds in figures.phases_s.items()
    ]


def _paths(figures: Figures) -> Text:
    sound = figures.journal_fault or f"{figures.journal_entries} entries, verified"
    return Text(f"Report   {figures.report or words.UNKNOWN}\nJournal  {figures.journal} ({sound})")


def _verdict(figures: Figures) -> Text:
    found = faults(figures)
    if not found:
        return Text("The loop closed.", style="bold green")
    return Text("\n".join(["The loop did not close:", *(f"  {fault}" for fault in found)]), style="bold red")


def _percent(share: Share | None) -> str:
    value = None if share is None else share.value
    return words.UNKNOWN if value is None else f"{100 * value:.1f} %"


def _count(number: int | None) -> str:
    return words.UNKNOWN if number is None else f"{number:,}"


def write(figures: Figures, path: Path) -> None:
    """Write the figures as JSON.

    Raises:
        PermanentError: The file cannot be written.
    """
    data = dataclasses.asdict(figures) | {"regained": figures.regained, "fall": figures.fall}
    try:
        path.write_text(json.dumps(data | {"faults": faults(figures)}, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise PermanentError(f"expected to write the figures to {path}, got {error}") from error
