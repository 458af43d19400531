"""The whole loop with MLServer in instar-serve's place, and telemetry that a client brings."""

import http.client
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.store.journal import verify
from guards.signing import sign
from instar_client import Client, Record, Reporter
from tests.simulator import site as site_module
from tests.simulator.mlserver import MlServer
from tests.simulator.site import Camera, Site

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(1500)]

MODEL = "meter-reader"
UNHURRIED = {"max_p99_ms": "5000.0", "objective_ms": "5000.0"}
"""The client's own clock, on a machine that does other things: not what this story is about."""


class ReportingCamera(Camera):
    """A camera that asks MLServer, and tells instard what it was answered."""

    def __init__(self, port: int, labels_port: int, reporter: Reporter) -> None:
        super().__init__(port, labels_port)
        self._reporter = reporter

    def _ask(self, connection: http.client.HTTPConnection, name: str, place: int) -> None:
        x = self._picture(place)
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": x.ravel().tolist()}
        begun = time.monotonic()
        try:
            connection.request(
                "POST",
                f"/v2/models/{MODEL}/infer",
                json.dumps({"id": name, "inputs": [tensor]}),
                {"content-type": "application/json"},
            )
            answer = connection.getresponse()
            raw = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.failed.append(repr(error))
            connection.close()
            return
        if answer.status != 200:
            self.failed.append(f"{answer.status} {raw[:200]!r}")
            return
        self._report(name, place, x, json.loads(raw), (time.monotonic() - begun) * 1e3)

    def _report(
        self, name: str, place: int, x: np.ndarray, answer: dict[str, Any], latency_ms: float
    ) -> None:
        outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        version = answer["model_version"]
        self.versions.append(version)
        self._reporter.add(
            Record.answered(
                name,
                int(version),
                latency_ms,
                outputs["logits"],
                outputs["embedding"],
                input=x.tobytes(),
                group=f"meter-{place}",
            )
        )


class OutsideSite(Site):
    """A site whose data plane is somebody else's."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, **UNHURRIED)
        text = (self.law / "policy.toml").read_text().replace("confidence = 0.98", 'confidence = "off"')
        (self.law / "policy.toml").write_text(text)
        (self.law / "policy.toml.sig").write_text(sign(self.key, text.encode(), "instar-policy@v1"))
        self.server = MlServer(folder / "models", MODEL)
        self.repository = folder / "models"

    def start_serve(self) -> None:
        self.server.start()
        self.serve = self.server.process

    def control_args(self) -> tuple[str, ...]:
        return (*super().control_args(), "--target", f"v2:{self.repository},{self.server.url}")


def test_a_drift_is_answered_by_a_new_model_in_a_real_mlserver_and_no_request_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_module, "DEADLINE_S", 600.0)
    with OutsideSite(tmp_path) as site:
        site.wait(lambda s: s["serving"] == "ok", "the first generation is served by MLServer")
        with (
            Client(f"http://127.0.0.1:{site.ports['control']}", MODEL) as client,
            Reporter(client, every_s=0.2) as reporter,
        ):
            camera = site.camera = ReportingCamera(site.server.ports[0], site.ports["control"], reporter)
            camera.start()
            site.wait(lambda s: s["phase"] == "watching", "the monitors are calibrated")
            camera.drifted = True
            site.wait(lambda s: (s["generation"] or 0) >= 2, "a new generation is live")
            served = site.wait(lambda s: s["open_candidate"] is None, "nothing is open any more")
            camera.stop()
        assert camera.failed == []
        assert set(camera.versions) == {"1", str(served["generation"])}
        assert (reporter.dropped, reporter.problem) == (0, None)
        assert reporter.sent == len(camera.versions)
        steps = [e.body for e in site.entries() if e.kind == "probation.step"]
        assert {step["share"] for step in steps} == {1.0}
        assert verify(site.state / "journal.db").valid
        print(f"{len(camera.versions)} answers, all right, generations {sorted(set(camera.versions))}")
