"""Alarms and triggers of the demo's quiet while, and its detection delay, without waiting for the clock.

Run ``python benchmarks/monitors/quiet.py [BUNDLE] [--seeds 20]`` after ``make run``, or with any other
``bundle.onnx`` of the meter reader; a few seconds a seed.

It feeds the monitors of the example's policy with what the camera would see, 100 rows a second and labels
15 s late: commissioning, a quiet while of 45 s, the tilt-fade drift over 20 s. Signals and rules are the
daemon's own; only time is simulated. One row a seed: alarms and triggers in the quiet while, rows from the
drift's beginning to the first alarm and to the trigger.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort

from monitors.spool import record_dtype
from monitors.watch import Watch
from policies import rules
from policies.document import load, load_task
from policies.telemetry import telemetry_fields
from policies.terms import Level, Release
from policies.world import RowCounts, World

EXAMPLE = Path(__file__).parents[2] / "examples" / "meter-reader"
RATE, QUIET_S, RAMP_S, AFTER_S, LABEL_S = 100, 45, 20, 40, 15
DIGEST = "sha256:" + "0" * 64
DEMO = Path(".instar/demo/jobs/search-1/out/bundle.onnx")


def camera() -> ModuleType:
    """Return the example's drift module, which is no package."""
    spec = importlib.util.spec_from_file_location("drift", EXAMPLE / "drift.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["drift"] = module
    spec.loader.exec_module(module)
    return module


class Feed:
    """What the data plane would have written, a second at a time."""

    def __init__(self, bundle: Path, seed: int) -> None:
        self._session = ort.InferenceSession(str(bundle))
        self._drift = camera()
        self._rng = np.random.default_rng(seed)
        with np.load(EXAMPLE / "digits.npz", allow_pickle=False) as digits:
            self._x, self._y = digits["x"][6000:], digits["y"][6000:]
        self._order = np.empty(0, np.int64)
        self._rows = 0
        width = self._session.get_outputs()[1].shape[1]
        self._dtype = record_dtype(telemetry_fields(10, width))

    def second(self, now: float, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Return one second of records and their labels."""
        if len(self._order) < RATE:
            self._order = np.concatenate([self._order, self._rng.permutation(len(self._x))])
        meters, self._order = self._order[:RATE], self._order[RATE:]
        drift = self._drift.KINDS["tilt-fade"].at(level)
        seen = self._drift.view(self._x[meters], drift, self._rng)
        logits, embedding = self._session.run(["logits", "embedding"], {"image": seen})
        block = np.zeros(RATE, self._dtype)
        keys = np.arange(self._rows, self._rows + RATE, dtype=">u8")
        block["row_key"] = np.frombuffer(b"".join(bytes(8) + k.tobytes() for k in keys), "V16")
        self._rows += RATE
        block["at"], block["generation"], block["batch"], block["latency_ms"] = now, 1, 1, 1.0
        block["logits"], block["embedding"] = logits, embedding
        flat = seen.reshape(RATE, -1).astype(np.float32)
        edges = np.abs(np.diff(seen.astype(np.float32), axis=-1)).mean(axis=(1, 2))
        block["summary"] = np.stack([flat.mean(1), flat.std(1), flat.min(1), flat.max(1), edges], axis=1)
        return block, self._y[meters].astype(np.int64)


def live_through(bundle: Path, seed: int) -> dict[str, Any]:
    """Return what one seed's commissioning, quiet while and drift came to."""
    policy, _ = load(EXAMPLE / "policy.toml")
    watch = Watch(load_task(EXAMPLE / "task.toml"), policy.modification_protocol.monitoring, 1, seed)
    feed = Feed(bundle, seed)
    late: list[tuple[float, np.ndarray, np.ndarray]] = []
    found: dict[str, Any] = {"alarms": 0, "triggers": 0, "alarm_rows": None, "trigger_rows": None}
    armed_at: float | None = None
    was: dict[str, Level] = {}
    now = 0.0
    while armed_at is None or now - armed_at < QUIET_S + AFTER_S:
        now += 1.0
        begun = None if armed_at is None else now - armed_at - QUIET_S
        level = 0.0 if begun is None else float(np.clip(begun / RAMP_S, 0.0, 1.0))
        block, labels = feed.second(now, level)
        watch.observe(block)
        late.append((now + LABEL_S, block["row_key"], labels))
        while late and late[0][0] <= now:
            _, keys, values = late.pop(0)
            watch.label(keys, values, now)
        signals = watch.assess(now)
        if armed_at is None:
            armed_at = now if watch.calibrated else None
        world = World(
            policy=DIGEST,
            frozen=None,
            live=Release(generation=1, bundle=DIGEST, candidate="c1", at=0.0),
            last_generation=1,
            candidates=(),
            trigger=None,
            search=None,
            judge=None,
            signals=signals,
            rows=RowCounts(train=0, search=0, gate=0),
            swaps=(),
            spent=(),
        )
        fired = rules.fire(world, policy, now) is not None
        begins = [s for s in signals if s.level is Level.ALARM and was.get(s.monitor) is not Level.ALARM]
        was = {s.monitor: s.level for s in signals}
        if begun is None or begun <= 0:
            found["alarms"] += len(begins)
            found["triggers"] += fired
            continue
        rows = int(begun * RATE)
        if found["alarm_rows"] is None and any(s.level is Level.ALARM for s in signals):
            found["alarm_rows"] = rows
        if found["trigger_rows"] is None and fired:
            found["trigger_rows"] = rows
    return found


def main() -> None:
    """Print one row a seed, and the sum."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?", default=DEMO, help=f"[{DEMO}]")
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    if not args.bundle.is_file():
        print(f"not measured: there is no bundle at {args.bundle}; make run leaves one, or name another")
        return
    print(f"{'seed':>4} {'alarms':>7} {'triggers':>9} {'rows to alarm':>14} {'rows to trigger':>16}")
    results = []
    for seed in range(1, args.seeds + 1):
        one = live_through(args.bundle, seed)
        results.append(one)
        told = (
            f"{one['alarms']:7d} {one['triggers']:9d} {one['alarm_rows']!s:>14} {one['trigger_rows']!s:>16}"
        )
        print(f"{seed:4d} {told}", flush=True)
    alarms, triggers = sum(r["alarms"] for r in results), sum(r["triggers"] for r in results)
    rows = args.seeds * QUIET_S * RATE
    print(f"{alarms} false alarms and {triggers} false triggers in {rows} quiet rows over {args.seeds} seeds")


if __name__ == "__main__":
    main()
