"""The camera's jitter and drift: what they do to a picture, and what they leave alone."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.demo.world import picture


@pytest.fixture(scope="module")
def drift() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "meter-reader" / "drift.py"
    spec = importlib.util.spec_from_file_location("meter_reader_drift", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _angle(image: np.ndarray) -> float:
    """Return the angle of the picture's long axis from upright, in degrees, anticlockwise on screen."""
    rows, columns = np.nonzero(image > 60)
    y, x = rows - rows.mean(), columns - columns.mean()
    return float(np.rad2deg(0.5 * np.arctan2(2 * (x * y).mean(), (y * y).mean() - (x * x).mean())))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(drift: ModuleType) -> None:
    x = picture(5)
    one, same, other = (drift.view(x, drift.Drift(), np.random.default_rng(s)) for s in (1, 1, 2))
    assert one.dtype == np.uint8
    assert (one == same).all()
    assert (one != other).any()


def test_inputs_are_not_changed(drift: ModuleType) -> None:
    x = picture(3)
    drift.view(x, drift.KINDS["blur"], np.random.default_rng(1))
    assert (x == picture(3)).all()


def test_tilt_turns_by_its_angle_and_jitter_only_by_a_little(drift: ModuleType) -> None:
    rng = np.random.default_rng(1)
    plain = [_angle(image) for image in drift.view(picture(40), drift.Drift(), rng)]
    tilted = [_angle(image) for image in drift.view(picture(40), drift.Drift(tilt_deg=35.0), rng)]
    assert max(abs(angle) for angle in plain) < 8.0
    assert abs(np.mean(tilted)) == pytest.approx(35.0, abs=2.0)
    assert np.ptp(tilted) < 16.0


def test_fade_halves_the_light_and_the_outside_stays_black(drift: ModuleType) -> None:
    rng = np.random.default_rng(1)
    plain = drift.view(picture(200), drift.Drift(), rng)
    faded = drift.view(picture(200), drift.Drift(fade=0.5), rng)
    ratio = faded[:, 10:18, 13:15].mean() / plain[:, 10:18, 13:15].mean()
    assert ratio == pytest.approx(0.5, abs=0.03)
    assert np.median(plain[:, :3]) <= 2


def test_a_level_of_nothing_is_no_drift_and_strength_makes_more_of_it(drift: ModuleType) -> None:
    for kind in drift.KINDS.values():
        assert kind.at(0.0) == drift.Drift()
        assert kind.at(1.0) == kind
    assert drift.KINDS["tilt-fade"].at(2.0) == drift.Drift(tilt_deg=70.0, fade=0.25)


def test_the_command_writes_copies_with_their_labels(drift: ModuleType, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    argv = ["--data", digits, "--first", 10, "--last", 30, "--copies", 2, "--seed", 3, "--out", out]
    subprocess.run([sys.executable, drift.__file__, *map(str, argv)], check=True, timeout=60)
    with np.load(out, allow_pickle=False) as file:
        assert file["x"].shape == (40, 28, 28)
        assert file["x"].dtype == np.uint8
        assert file["y"].tolist() == [*(np.arange(10, 30) // 2 % 10)] * 2
