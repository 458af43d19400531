"""What both halves of monitoring are held against: the metrics that the processes really export."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon.ops.metrics import ControlMetrics
from daemon.serving.metrics import ServeMetrics

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def exported() -> frozenset[str]:
    """Every series name that serving and control export, before anything has happened."""
    texts = (ServeMetrics("m", "1").text(), ControlMetrics("m").exposition()[0])
    names: set[str] = set()
    for text in texts:
        for family in text_string_to_metric_families(text.decode()):
            names |= {sample.name for sample in family.samples}
            # A family without children yet has no samples; these are the names that they will have.
            names.add(family.name)
            if family.type == "counter":
                names.add(f"{family.name}_total")
            if family.type == "histogram":
                names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    return frozenset(name for name in names if name.startswith("instar_"))


@pytest.fixture
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run promtool in the folder of the rules."""

    def run(*arguments: str, folder: Path = ROOT / "monitoring") -> subprocess.CompletedProcess[str]:
        command = ["promtool", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, cwd=folder, errors="replace"
        )

    return run
