"""The description of the REST surface is true: schemathesis sends what it allows and what it forbids.

No answer of a malformed request is ours to blame (5xx), and every answer is one that the description names.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from daemon.serving import front
from daemon.serving.refusals import Malformed
from daemon.serving.settings import ServeSettings
from tests.serving.conftest import Forge, Thread, deployment

pytest.importorskip("schemathesis", reason="schemathesis is not installed (extra dev)")

ROOT = Path(__file__).parents[2]
DESCRIPTION = ROOT / "docs" / "openapi.yaml"
# Not asked: whether all that the schema allows is accepted. How much data a shape wants, no schema says.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
# What schemathesis calls coverage counts an unknown header among what is to be refused. HTTP does not.
# Its own deadline of a microsecond is a client's right; 504 is the honest answer.
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 504]
"""
PHASES = {"coverage": CHECKS, "examples,fuzzing": (*CHECKS, "negative_data_rejection")}


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """A data plane with a stable model of four pixels."""
    state = tmp_path_factory.mktemp("openapi") / "s"
    tiny = Forge(state).tiny(seed=1, side=2)
    plane = Thread(ServeSettings(state=state, model="meter-reader")).start()
    plane.admin.apply(deployment(1, stable=(1, tiny))).raise_for_status()
    yield plane
    plane.stop()


def schemathesis(plane, folder: Path, phases: str, description=DESCRIPTION, *flags: str):
    (folder / "schemathesis.toml").write_text(CONFIG)
    program = Path(sys.executable).with_name("schemathesis")
    command = [str(program), "run", str(description), "--url", plane.base, "--phases", phases]
    command += ["--checks", ",".join(PHASES[phases]), "--seed", "4", "--max-examples", "8", "--no-color"]
    command += ["--generation-database", "none", "--request-timeout", "20", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=folder)


@pytest.mark.scenario
@pytest.mark.parametrize("phases", PHASES)
def test_the_description_is_true_and_nothing_malformed_is_our_error(plane, tmp_path, phases):
    done = schemathesis(plane, tmp_path, phases)
    assert done.returncode == 0, done.stdout[-8000:]
    assert "Tested: 17" in done.stdout
    assert plane.http.get("/v2/health/ready").status_code == 200


@pytest.mark.scenario
def test_a_description_that_is_not_true_is_found(plane, tmp_path):
    twin = tmp_path / "twin.yaml"
    twin.write_text(DESCRIPTION.read_text().replace("live: { const: true }", "live: { const: false }"))
    done = schemathesis(plane, tmp_path, "examples,fuzzing", twin, "--include-path", "/v2/health/live")
    assert done.returncode == 1
    assert "/v2/health/live" in done.stdout


@pytest.mark.scenario
def test_a_refusal_that_blames_the_server_is_found(plane, tmp_path, monkeypatch):
    monkeypatch.setitem(front.CODES, Malformed, (500, "error"))
    done = schemathesis(
        plane, tmp_path, "examples,fuzzing", DESCRIPTION, "--include-path", "/v2/repository/index"
    )
    assert done.returncode == 1
    assert "500" in done.stdout
