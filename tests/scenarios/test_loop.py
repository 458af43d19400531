"""The whole loop over real processes: control killed in every stage, the search worker killed once."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.store.journal import verify
from policies.lifecycle import Stage
from tests.simulator.site import Site

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(400)]

KILL_AT = (
    Stage.PROPOSED,
    Stage.EXPORTED,
    Stage.CLEARED,
    Stage.APPROVED,
    Stage.STAGED,
    Stage.PROBATION,
    Stage.LIVE,
)


def stages_of_latest(site: Site) -> set[str]:
    """Return the stages that the second generation's candidates have come to."""
    moves = [e.body for e in site.entries() if e.kind == "candidate.moved"]
    return {m["to"] for m in moves if not m["candidate"].startswith("c1-")}


def test_control_killed_in_every_stage_comes_to_the_same_end_and_serving_does_not_notice(
    tmp_path: Path,
) -> None:
    with Site(tmp_path) as site:
        site.wait(lambda s: s["serving"] == "ok", "the first generation is served")
        site.camera.start()
        site.wait(lambda s: s["phase"] == "watching", "the monitors are calibrated")
        assert [e for e in site.entries() if e.kind == "trigger"][1:] == []
        site.camera.drifted = True

        site.wait(lambda s: s["phase"] == "searching", "a search is under way")
        site.kill_search()
        site.wait(lambda s: any(e.kind == "search.ended" for e in site.entries()[5:]), "it is charged")

        killed: list[Stage] = []

        def kill_at_the_next_stage(status: dict[str, Any]) -> bool:
            come = stages_of_latest(site)
            for stage in KILL_AT:
                if stage in come and stage not in killed:
                    killed.append(stage)
                    site.kill_control()
                    return False
            return (status["generation"] or 0) >= 2 and len(killed) == len(KILL_AT)

        status = site.wait(kill_at_the_next_stage, "generation 2 is live after a kill in every stage")
        served = site.wait(lambda s: s["open_candidate"] is None, "nothing is open any more")
        site.camera.stop()
        ended = [e.body for e in site.entries() if e.kind == "search.ended"]
        assert ended[1]["outcome"] == "failed"
        assert ended[1]["reason"] == "killed by SIGKILL"
        assert ended[1]["cpu_s"] > 0
        assert site.camera.failed == []
        assert site.camera.sent > 1500
        assert set(site.camera.versions) == {"1", str(served["generation"])}
        assert status["journal_valid"] is not False
        assert verify(site.state / "journal.db").valid
        check_console(site)


def check_console(site: Site) -> None:
    """The commands that an operator has, against the same site."""
    instar = str(Path(sys.executable).with_name("instar"))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [instar, *words, "--state", str(site.state)], capture_output=True, text=True, check=False
        )

    assert '"generation"' in run("status", "--json").stdout
    assert run("audit", "verify").returncode == 0
    second = subprocess.run(
        [str(Path(sys.executable).with_name("instard")), *site.control_args()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 78
    assert "expected to be the only instard" in second.stderr
    for name in ("metrics", "control"):
        assert httpx.get(f"http://127.0.0.1:{site.ports[name]}/metrics").status_code == 200
