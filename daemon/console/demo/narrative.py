"""The story as people read it: a line for everything that changed, and one live line for what is under way.

* Times are minutes and seconds since the story began.
* Colour only repeats what a word already says.
* Where there is no terminal, the live line is printed now and then, so that a log shows progress, too.

It tells; it asks nobody anything and decides nothing.
"""

from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType
from rich.status import Status as Spinner
from rich.text import Text

from daemon.console import words
from daemon.console.client import EntryView

_EVERY_S = 10.0
_LEVELS = {"quiet": "green", "warning": "yellow", "alarm": "bold red", "unknown": "magenta"}
_STAGES = {
    "CLEARED": "green",
    "LIVE": "bold green",
    "REJECTED": "bold red",
    "ROLLED_BACK": "bold red",
    "ABANDONED": "bold red",
    "EXPIRED": "yellow",
}


class Narrative:
    """Prints; ``clock`` gives seconds since the story began."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._spinner: Spinner | None = None
        self._live_at = -_EVERY_S
        self._live_text = ""

    def act(self, title: str) -> None:
        """Begin a new part of the story."""
        self._print(Text(f"\n{self._stamp()}  {title}", style="bold"))

    def say(self, text: str, style: str = "") -> None:
        """Tell one thing."""
        self._print(Text(f"{self._stamp()}    {text}", style=style))

    def show(self, what: RenderableType) -> None:
        """Print something larger, outside the story's lines."""
        self.still()
        self._console.print(what)

    def entry(self, entry: EntryView, began: float) -> None:
        """Tell a journal entry, if people want to hear of its kind."""
        tell = _TELLERS.get(entry.kind)
        if tell is not None:
            line = tell(entry.body)
            if line is not None:
                stamp = Text(f"{_minutes(entry.at - began)}    ")
                self._print(stamp.append_text(line))

    def live(self, text: str) -> None:
        """Replace the live line."""
        if self._console.is_terminal:
            if self._spinner is None:
                self._spinner = self._console.status(Text(text), spinner="line", speed=0.5)
                self._spinner.start()
            self._spinner.update(Text(text))
            return
        now = self._clock()
        if text != self._live_text and now - self._live_at >= _EVERY_S:
            self._live_at, self._live_text = now, text
            self._print(Text(f"{self._stamp()}    … {text}", style="dim"))

    def still(self) -> None:
        """Take the live line away."""
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def _stamp(self) -> str:
        return _minutes(self._clock())

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def _minutes(seconds: float) -> str:
    """Return minutes and seconds, right-aligned.

    >>> _minutes(83.4)
    ' 1:23'
    """
    whole = max(0, int(seconds))
    return f"{whole // 60:2d}:{whole % 60:02d}"


def _policy(body: dict[str, Any]) -> Text:
    return Text(f"policy version {body['version']} is in force, {words.short(body['digest'])}")


def _trigger(body: dict[str, Any]) -> Text:
    return Text(f"trigger {body['id']} ({body['clause']}): {body['reason']}", style="bold yellow")


def _search_started(body: dict[str, Any]) -> Text:
    again = "" if body.get("attempt", 1) == 1 else f", attempt {body['attempt']}"
    return Text(f"{body['id']} begins, budget {body['budget_cpu_s']:.0f} CPU-s{again}")


def _search_ended(body: dict[str, Any]) -> Text:
    text = f"{body['id']} ended: {body['outcome']}, {body['cpu_s']:.1f} CPU-s in {body['wall_s']:.0f} s"
    text += ", without a cage" if body.get("caged") is False else ""
    return Text(text if body["outcome"] == "done" else f"{text}: {body['reason']}")


def _moved(body: dict[str, Any]) -> Text:
    to = body["to"]
    which = f" as generation {body['generation']}" if body.get("generation") else ""
    return Text.assemble(
        f"candidate {body['candidate']} ", (to, _STAGES.get(to, "cyan")), f"{which}: {body['reason']}"
    )


def _sealed(body: dict[str, Any]) -> Text:
    findings = body["findings"]
    told = ", ".join(name if said == "pass" else f"{name} {said.upper()}" for name, said in findings.items())
    passed = sum(said == "pass" for said in findings.values())
    return Text(
        f"dossier sealed: {passed} of {len(findings)} guards pass ({told}); {words.short(body['digest'])}"
    )


def _approval(body: dict[str, Any]) -> Text:
    demo = " (DEMO KEY)" if words.is_demo(body["principal"]) else ""
    return Text(f"{body['principal']}{demo}: {body['decision']}", style="bold")


def _shadow(body: dict[str, Any]) -> Text:
    style = "green" if body["finding"] == "pass" else "bold red"
    return Text.assemble("beside the traffic: ", (body["finding"], style), f", {body['reason']}")


def _step(body: dict[str, Any]) -> Text:
    return Text(f"step {body['step']} of {body['of']}: {body['share']:.0%} of the traffic; {body['reason']}")


def _signal(body: dict[str, Any]) -> Text | None:
    if body["level"] == "unknown":
        return None
    style = _LEVELS.get(body["level"], "")
    return Text.assemble(f"monitor {body['monitor']}: ", (body["level"], style), f", {body['reason']}")


def _reference(body: dict[str, Any]) -> Text:
    arl0 = body.get("arl0")
    every = "" if arl0 is None else f", a false alarm in {words.number(arl0)} requests"
    return Text(f"reference of generation {body['generation']} sealed: {body['rows']} rows{every}")


def _bad(what: str) -> Callable[[dict[str, Any]], Text]:
    return lambda body: Text(f"{what}: {words.body(body)}", style="bold red")


_TELLERS: dict[str, Callable[[dict[str, Any]], Text | None]] = {
    "policy.loaded": _policy,
    "policy.refused": _bad("policy refused"),
    "trigger": _trigger,
    "trigger.lapsed": lambda body: Text(f"trigger {body['id']} lapsed: {body['reason']}", style="yellow"),
    "search.started": _search_started,
    "search.ended": _search_ended,
    "candidate.moved": _moved,
    "dossier.sealed": _sealed,
    "judge.failed": _bad("the guard worker failed"),
    "stage.failed": _bad("not staged"),
    "shadow.judged": _shadow,
    "shadow.failed": _bad("the shadow worker failed"),
    "probation.step": _step,
    "approval.received": _approval,
    "approval.refused": _bad("approval refused"),
    "reference.sealed": _reference,
    "signal": _signal,
    "freeze": lambda body: Text(f"frozen by {body['by']}: {body['reason']}", style="bold yellow"),
    "thaw": lambda body: Text(f"thawed by {body['by']}: {body['reason']}", style="yellow"),
    "rollback.requested": lambda body: Text(f"rollback asked for by {body['by']}: {body['reason']}"),
    "page": lambda body: Text(f"PAGE: {body['what']}: {body['why']}", style="bold red"),
}
