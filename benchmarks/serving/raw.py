"""What the runtime alone gives: ``session.run``, batch 1, one thread, on the servers' core.

    python -m benchmarks.serving.raw FILE WARM_S SECONDS

A process of its own, so that it has nothing that a server has. Its last line is a JSON object: calls a
second, latencies in milliseconds, CPU time of a call in microseconds.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.serving import models
from benchmarks.serving.stage import SERVER_CORE


def measure(raw: bytes, warm_s: float, seconds: float) -> dict[str, float]:
    """Call the model over and over.

    Args:
        raw: The model's file.
        warm_s: Seconds before anything counts.
        seconds: How long.
    """
    session, feed = models.session(raw), {"image": models.digit(1)}
    until = time.perf_counter() + warm_s
    while time.perf_counter() < until:
        session.run(["logits"], feed)
    took_s, began, used = [], time.perf_counter(), time.process_time()
    now = began
    while now < began + seconds:
        session.run(["logits"], feed)
        before, now = now, time.perf_counter()
        took_s.append(now - before)
    cpu_us = (time.process_time() - used) / len(took_s) * 1e6
    p50, p99 = np.percentile(took_s, [50, 99]) * 1e3
    rate = len(took_s) / (now - began)
    return {"rate": rate, "p50_ms": float(p50), "p99_ms": float(p99), "cpu_us": cpu_us}


if __name__ == "__main__":
    os.sched_setaffinity(0, {SERVER_CORE})
    path, *lengths_s = sys.argv[1:]
    print(json.dumps(measure(Path(path).read_bytes(), *map(float, lengths_s))))
