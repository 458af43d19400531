"""What one served generation has done, counted as the protocol's statistics extension tells it.

* Counted by ``engine.py``, a few numbers a run; told by ``front.py`` and ``rpc.py``.
* Counts begin with the slot: another generation begins anew, also of the same bytes.
* Times are told in nanoseconds, as the extension has them.

Source: Triton Inference Server, statistics extension of the Open Inference Protocol.
"""

from typing import Any


class Stats:
    """Counters of one generation; written in the event loop."""

    __slots__ = (
        "executions",
        "fail",
        "infer_s",
        "input_s",
        "last_ms",
        "output_s",
        "queue_s",
        "rows",
        "sizes",
        "success",
    )

    def __init__(self) -> None:
        self.success = [0, 0.0]
        self.fail = [0, 0.0]
        self.rows = 0
        self.executions = 0
        self.queue_s = self.input_s = self.infer_s = self.output_s = 0.0
        self.last_ms = 0
        self.sizes: dict[int, list[float]] = {}

    def run(self, rows: int, input_s: float, infer_s: float) -> None:
        """Count one run of the model."""
        self.executions += 1
        self.input_s += input_s
        self.infer_s += infer_s
        size = self.sizes.setdefault(rows, [0, 0.0, 0.0])
        size[0] += 1
        size[1] += input_s
        size[2] += infer_s

    def request(self, good: bool, rows: int, whole_s: float, queue_s: float, at: float) -> None:
        """Count one request that a run answered or failed at a moment (seconds since the epoch)."""
        kind = self.success if good else self.fail
        kind[0] += 1
        kind[1] += whole_s
        self.queue_s += queue_s
        if good:
            self.rows += rows
            self.last_ms = int(at * 1000)

    def told(self, model: str, version: str) -> dict[str, Any]:
        """Return an entry of ``model_stats``."""
        asked = self.success[0] + self.fail[0]

        def duration(count: float, seconds: float) -> dict[str, int]:
            return {"count": int(count), "ns": round(seconds * 1e9)}

        return {
            "name": model,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": self.executions,
            "inference_stats": {
                "success": duration(*self.success),
                "fail": duration(*self.fail),
                "queue": duration(asked, self.queue_s),
                "compute_input": duration(self.executions, self.input_s),
                "compute_infer": duration(self.executions, self.infer_s),
                "compute_output": duration(self.executions, self.output_s),
                "cache_hit": duration(0, 0),
                "cache_miss": duration(0, 0),
            },
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": duration(runs, input_s),
                    "compute_infer": duration(runs, infer_s),
                    "compute_output": duration(runs, 0),
                }
                for size, (runs, input_s, infer_s) in sorted(self.sizes.items())
            ],
        }
