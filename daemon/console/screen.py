"""What the terminal shows: terms made into text that rich renders; one function a screen.

* Colour only repeats what a word already says: NO_COLOR and a colour-blind reader lose nothing.
* Text from elsewhere (reasons, names) is never read as markup.

Pure but for the caller's ``now``; it prints nothing itself.
"""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from daemon.console import words
from daemon.console.client import EntryView
from daemon.console.health import Diagnosis, Health, diagnose
from daemon.console.lint import Report
from policies.status import CandidateView, Status
from policies.terms import Finding, Level, Signal, Subject, Verdict

_DOT = {Health.OK: "green", Health.ATTENTION: "yellow", Health.DEGRADED: "red"}
_LEVEL = {Level.QUIET: "green", Level.WARNING: "yellow", Level.ALARM: "bold red", Level.UNKNOWN: "magenta"}
_FINDING = {Finding.PASS: "green", Finding.FAIL: "bold red", Finding.INCONCLUSIVE: "magenta"}
_LABEL_WIDTH = 10


def status(view: Status) -> RenderableType:
    """Return the one screen of ``instar status``."""
    found = diagnose(view)
    parts: list[RenderableType] = []
    if view.demo_key:
        parts.append(demo_banner(view.trust))
    parts.append(_headline(view, found))
    rows = _rows()
    rows.add_row("Serving", _serving(view))
    if view.frozen is not None:
        held = f"since {words.since(view.frozen.at, view.at)} by {view.frozen.by}: {view.frozen.reason}"
        rows.add_row("Frozen", Text(held, style="yellow"))
    rows.add_row("Monitors", _monitors(view))
    if view.open_candidate is not None:
        rows.add_row("Open", _open(view.open_candidate, view.at))
    for blocked in view.blocked:
        line = Text.assemble((blocked.what, "yellow"), f" — {blocked.why}\n→ {blocked.remedy}")
        rows.add_row("Blocked", line)
    rows.add_row("Budget", _budget(view))
    rows.add_row("Journal", _journal(view))
    rows.add_row("Policy", _policy(view))
    parts.append(rows)
    return Group(*parts)


def demo_banner(trust: str) -> RenderableType:
    """Return the banner that no screen of a demo goes without."""
    text = Text(f"DEMO KEY: anyone at this machine can approve. Trust: {trust}. Not for production.")
    return Panel(text, style="bold red", expand=False)


def _headline(view: Status, found: Diagnosis) -> Text:
    line = Text.assemble(
        ("● ", _DOT[found.health]),
        (view.task, "bold"),
        f" · {view.phase} · ",
        (found.health.value, _DOT[found.health]),
        (f"   instar {view.version}, pid {view.pid}, {words.moment(view.at)}", "dim"),
    )
    for reason in found.reasons:
        line.append(f"\n  {reason}", style=_DOT[found.health])
    return line


def _rows() -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", style="bold", min_width=_LABEL_WIDTH, no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _serving(view: Status) -> Text:
    if view.generation is None:
        return Text(f"nothing yet · {view.serving}", style="red" if view.serving != "ok" else "")
    swap = view.last_swap
    line = Text(f"generation {view.generation} of {view.model} ({words.short(view.bundle)})")
    if swap is not None:
        line.append(f", {swap.kind} by {swap.candidate}\nsince {words.since(swap.at, view.at)}")
    line.append(" · ")
    line.append(view.serving, style="green" if view.serving == "ok" else "bold red")
    if view.newcomer_share > 0:
        line.append(f" · newcomer gets {view.newcomer_share:.0%} of the traffic")
    return line


def _monitors(view: Status) -> RenderableType:
    head = Text(view.drift.value, style=_LEVEL[view.drift])
    if view.reference_rows < view.reference_needed:
        head.append(
            f" · reference {view.reference_rows:,} of {view.reference_needed:,} rows", style="default"
        )
    return Group(head, signals(view.signals, view.at)) if view.signals else head


def signals(found: Iterable[Signal], now: float) -> RenderableType:
    """Return monitors with their scores as bars; the threshold stands in the middle of a bar."""
    table = Table.grid(padding=(0, 1))
    for signal in found:
        style = _LEVEL[signal.level]
        table.add_row(
            Text(signal.monitor),
            Text(words.bar(signal.score), style=style),
            Text(words.score(signal.score)),
            Text(signal.level.value, style=style),
            Text(words.basis(signal, now), style="dim"),
            Text(signal.reason),
        )
    return table


def _open(view: CandidateView, now: float) -> Text:
    line = Text.assemble(
        (view.id, "bold"), f" {view.stage}, since {words.since(view.since, now)}\n{view.reason}"
    )
    if view.expires_at is not None:
        left = words.span(view.expires_at - now)
        line.append(f"\nsignatures {words.signatures(view)} · {left} left to approve or decline")
    if view.shadow is not None:
        line.append(f"\nbeside the traffic: {view.shadow.finding.value}, {view.shadow.reason}")
    if view.step is not None:
        line.append(f"\n{words.step(view)} since {words.since(view.step.since, now)}")
    if view.report is not None:
        line.append(f"\nreport {view.report}")
    return line


def _budget(view: Status) -> Text:
    spent, allowed = view.search_cpu_s_today, view.search_cpu_s_budget
    return Text(
        f"search {words.number(round(spent))} of {words.number(round(allowed))} CPU-s today"
        f" · swaps {view.swaps_today} of {view.swaps_allowed} today"
    )


def _journal(view: Status) -> Text:
    known = {
        True: ("chain verified", "green"),
        False: ("CHAIN BROKEN", "bold red"),
        None: ("not verified", "magenta"),
    }
    return Text.assemble(f"{view.journal_entries:,} entries · ", known[view.journal_valid])


def _policy(view: Status) -> Text:
    line = Text(f"version {view.policy_version} ({words.short(view.policy)}) · trust {view.trust}")
    if view.policy_problem is not None:
        line.append(f"\nthe file on disk is not in force: {view.policy_problem}", style="red")
    return line


def candidates(found: Sequence[CandidateView], now: float) -> RenderableType:
    """Return all candidates, one a line."""
    if not found:
        return Text("no candidate yet")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("candidate", "stage", "gen.", "since", "why", "guards", "reason"):
        table.add_column(name, overflow="fold", no_wrap=name in {"candidate", "stage", "since"})
    for view in found:
        table.add_row(
            Text(view.id),
            Text(view.stage),
            words.UNKNOWN if view.generation is None else str(view.generation),
            f"{words.span(now - view.since)} ago",
            view.trigger.kind.value,
            _tally(view.verdicts),
            Text(view.reason),
        )
    return table


def _tally(verdicts: Sequence[Verdict]) -> Text:
    if not verdicts:
        return Text(words.UNKNOWN)
    passed = sum(v.finding is Finding.PASS for v in verdicts)
    return Text(f"{passed}/{len(verdicts)} pass", style="green" if passed == len(verdicts) else "red")


def candidate(view: CandidateView, subject: Subject | None, now: float) -> RenderableType:
    """Return one candidate, whole."""
    rows = _rows()
    rows.add_row("Candidate", Text(view.id, style="bold"))
    rows.add_row("Stage", Text(f"{view.stage}, since {words.since(view.since, now)}\n{view.reason}"))
    trigger = view.trigger
    rows.add_row("Why", Text(f"{trigger.kind.value} ({trigger.clause}): {trigger.reason}"))
    if trigger.signals:
        rows.add_row("", signals(trigger.signals, trigger.at))
    if view.genome is not None:
        genes = " ".join(map(str, view.genome.genes))
        rows.add_row("Genome", Text(f"{view.genome.space}: {genes}"))
    if view.generation is not None:
        rows.add_row("Generation", str(view.generation))
    if view.shadow is not None:
        found = view.shadow.finding
        told = Text.assemble((found.value, _FINDING[found]), f": {view.shadow.reason}")
        rows.add_row("Shadow", told)
    if view.step is not None:
        rows.add_row("Probation", Text(f"{words.step(view)}, since {words.since(view.step.since, now)}"))
    rows.add_row("Signatures", Text(words.signatures(view)))
    if view.expires_at is not None:
        rows.add_row(
            "Expires", Text(f"{words.moment(view.expires_at)}, {words.span(view.expires_at - now)} left")
        )
    digests = {"bundle": view.bundle, "dossier": view.dossier}
    if subject is not None:
        digests |= {"incumbent": subject.incumbent, "policy": subject.policy, "report": subject.report}
    rows.add_row("Digests", Text("\n".join(f"{k:<9} {v or words.UNKNOWN}" for k, v in digests.items())))
    rows.add_row("Report", Text(view.report or words.UNKNOWN))
    parts: list[RenderableType] = [rows]
    if view.verdicts:
        parts.append(Padding(verdicts(view.verdicts), (1, 0, 0, 0)))
    return Group(*parts)


def verdicts(found: Sequence[Verdict]) -> RenderableType:
    """Return what the guards say, one a line, the evidence below each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("guard", "clause", "finding", "reason and evidence"):
        table.add_column(name, overflow="fold")
    for verdict in found:
        told = Text(verdict.reason)
        for item in verdict.evidence:
            told.append(f"\n{words.evidence(item)}", style="dim")
        if verdict.attempts > 1:
            told.append(f"\n{verdict.attempts} attempts", style="dim")
        table.add_row(
            Text(verdict.guard),
            Text(verdict.clause),
            Text(verdict.finding.value, style=_FINDING[verdict.finding]),
            told,
        )
    return table


def history(found: Sequence[EntryView]) -> RenderableType:
    """Return journal entries, one a line."""
    if not found:
        return Text("no entry")
    table = Table.grid(padding=(0, 1))
    for entry in found:
        table.add_row(
            Text(str(entry.seq), style="dim", justify="right"),
            Text(words.moment(entry.at), style="dim", no_wrap=True),
            Text(entry.kind, style="bold", no_wrap=True),
            Text(words.body(entry.body)),
        )
    return table


def lint(report: Report) -> RenderableType:
    """Return what the check of a policy found."""
    lines: list[RenderableType] = [Text(f"✗ {fault}", style="red") for fault in report.faults]
    if report.policy is not None:
        policy = report.policy
        lines.append(Text(f"policy {policy.id} version {policy.version} for task {policy.task}"))
        lines.append(Text(str(report.digest), style="dim"))
        gate = policy.modification_protocol.data
        lines.append(Text(f"gate rows: at least {gate.min_gate_rows:,} ({gate.clause})"))
        lines += [
            Text(
                f"  {m.key} ({m.clause}): a margin of {m.margin:g} at alpha {m.alpha:g} "
                f"and power {m.power:g} needs {m.rows:,} rows"
            )
            for m in report.margins
        ]
    lines += [Text(f"! {note}", style="yellow") for note in report.notes]
    if not report.faults:
        lines.append(Text("✓ no fault found", style="green"))
    return Group(*lines)
