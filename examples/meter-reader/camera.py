"""A camera that reads utility meters: an open-loop client of the Open Inference Protocol.

* Every held-out digit is a meter; all meters are read once a round, in a new order each round, with fresh
  jitter. The group parameter names the meter, so that near-duplicates can be told.
* Request ``n`` is due at ``start + n / rate``, whatever happened to those before; latency counts from then.
  A server that stalls cannot hide behind a client that waits.
* A failure is counted and never sent again.
* The true label follows by request id, 10 to 20 s late.
* With ``--commands`` it obeys JSON lines on standard input, ``{"drift": {"kind", "strength", "ramp_s"}}`` and
  ``{"stop": true}``, and ends when standard input ends. It tells nobody else that it drifts.

It writes one JSON line a request to ``--log``: ``n``, ``at`` (when due, epoch seconds), ``ms`` (from when
due), ``wire_ms`` (from when sent), ``status`` (HTTP, 0 for none), ``generation``, ``right`` and ``level`` (of
drift, 0 to 1). Standard output has events as JSON lines: started, drift, problem, summary.
"""

import argparse
import asyncio
import heapq
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from drift import KINDS, Images
from frames import Frame, Frames, Ramp
from keepalive import BrokenAnswer, Endpoint

TIMEOUT_S = 10.0
LABELS_AT_ONCE = 1000


class Log:
    """One line a request, written once a second."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._lines: list[str] = []

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record until the next ``flush``."""
        self._lines.append(json.dumps(record, separators=(",", ":")) + "\n")

    def flush(self) -> None:
        """Write what was kept."""
        lines, self._lines = self._lines, []
        self._file.writelines(lines)
        self._file.flush()


class Camera:
    """The open loop, the labels that follow, and the count of both."""

    def __init__(self, args: argparse.Namespace, x: Images, y: npt.NDArray[np.int64]) -> None:
        self._rate = args.rate
        self._name = args.name or f"cam{args.seed}"
        self._path = f"/v2/models/{args.model}/infer"
        self._labels_path = f"/api/v1/tasks/{args.task}/labels"
        self._serve, self._control = Endpoint(args.url), Endpoint(args.labels)
        self.frames = Frames(x, y, args)
        self._log = Log(args.log)
        self._late_labels: list[tuple[float, int, str, int]] = []
        self._stop = asyncio.Event()
        self._told: set[str] = set()
        self.counts = dict.fromkeys(("sent", "failed", "right", "labels", "label_retries"), 0)

    def stop(self) -> None:
        """Send nothing more; what is under way is waited for."""
        self._stop.set()

    async def run(self) -> None:
        """Run until ``stop``."""
        loop = asyncio.get_running_loop()
        start, offset = loop.time() + 0.2, time.time() - loop.time()
        _tell("started", at=start + offset, rate=self._rate)
        keeping = loop.create_task(self._housekeep())
        under_way: set[asyncio.Task[None]] = set()
        async for frame in self.frames:
            due = start + frame.number / self._rate
            # A sleep of 0 still lets the answers in: a camera that catches up must not starve them.
            await asyncio.sleep(max(0.0, due - loop.time()))
            if self._stop.is_set():
                break
            if frame.number == self.frames.drifted_from:
                _tell("drift", n=frame.number, at=due + offset)
            task = loop.create_task(self._send(frame, due, offset))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        if under_way:
            await asyncio.wait(under_way)
        await keeping
        self._log.flush()
        self._serve.close()
        self._control.close()

    async def _send(self, frame: Frame, due: float, offset: float) -> None:
        loop = asyncio.get_running_loop()
        name = f"{self._name}-{frame.number:07d}"
        header = json.dumps(
            {
                "id": name,
                "parameters": {"group": f"meter-{frame.meter}"},
                "inputs": [
                    {
                        "name": "image",
                        "shape": [1, 28, 28],
                        "datatype": "UINT8",
                        "parameters": {"binary_data_size": len(frame.pixels)},
                    }
                ],
                "outputs": [{"name": "logits"}],
            }
        ).encode()
        fields = (
            f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(header)}\r\n"
        )
        sent = loop.time()
        status, generation, right, why = 0, None, False, ""
        try:
            status, raw = await self._serve.post(self._path, fields, header + frame.pixels, TIMEOUT_S)
            if status == 200:
                generation, best = _read_answer(raw, name)
                right = best == frame.label
            else:
                why = f"HTTP {status}: {raw[:200].decode('utf-8', 'replace')}"
        except (OSError, TimeoutError, BrokenAnswer) as error:
            status, why = 0, f"{type(error).__name__}: {error}"
        ended = loop.time()
        self._count(frame, name, generation is not None, right, ended, why)
        self._log.add(
            {
                "n": frame.number,
                "at": round(due + offset, 4),
                "ms": round(1000 * (ended - due), 3),
                "wire_ms": round(1000 * (ended - sent), 3),
                "status": status,
                "generation": generation,
                "right": right,
                "level": round(frame.level, 4),
            }
        )

    def _count(self, frame: Frame, name: str, answered: bool, right: bool, ended: float, why: str) -> None:
        self.counts["sent"] += 1
        self.counts["right"] += right
        if answered:
            due = ended + frame.label_delay_s
            heapq.heappush(self._late_labels, (due, frame.number, name, frame.label))
        else:
            self.counts["failed"] += 1
            self._complain("request failed", why)

    async def _housekeep(self) -> None:
        """Once a second: write the log, and post the labels that are due."""
        while not self._stop.is_set():
            self._log.flush()
            await self._post_labels()
            try:
                async with asyncio.timeout(1.0):
                    await self._stop.wait()
            except TimeoutError:
                continue

    async def _post_labels(self) -> None:
        now = asyncio.get_running_loop().time()
        due: list[tuple[float, int, str, int]] = []
        while self._late_labels and self._late_labels[0][0] <= now and len(due) < LABELS_AT_ONCE:
            due.append(heapq.heappop(self._late_labels))
        if not due:
            return
        body = json.dumps({"labels": [{"id": name, "label": label} for _, _, name, label in due]}).encode()
        try:
            status, raw = await self._control.post(
                self._labels_path, "Content-Type: application/json\r\n", body, TIMEOUT_S
            )
            why = "" if status == 200 else f"HTTP {status}: {raw[:200].decode('utf-8', 'replace')}"
        except (OSError, TimeoutError, BrokenAnswer) as error:
            why = f"{type(error).__name__}: {error}"
        if why:
            # A second label of the same id changes nothing there: here, sending again is safe.
            self.counts["label_retries"] += len(due)
            for item in due:
                heapq.heappush(self._late_labels, item)
            self._complain("labels not taken", why)
        else:
            self.counts["labels"] += len(due)

    def _complain(self, what: str, why: str) -> None:
        """Say a problem once for each of its texts."""
        if (text := f"{what}: {why}") not in self._told and len(self._told) < 100:
            self._told.add(text)
            _tell("problem", what=what, why=why)


def _read_answer(raw: bytes, name: str) -> tuple[int, int]:
    """Return generation and class of an answer; one that is not ours is no answer."""
    try:
        answer = json.loads(raw)
        logits = answer["outputs"][0]["data"]
        generation, best = int(answer["model_version"]), max(range(len(logits)), key=logits.__getitem__)
        whose = answer["id"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise BrokenAnswer(f"expected logits and a version, got {raw[:100]!r}") from error
    if whose != name:
        raise BrokenAnswer(f"expected the answer to {name}, got the one to {whose}")
    return generation, best


def _tell(event: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


async def _obey(camera: Camera) -> None:
    """Take commands from standard input until it ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    # A file object of its own: the pipe must not close descriptor 0 twice.
    pipe = os.fdopen(os.dup(0), "rb")
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        while line := await reader.readline():
            try:
                command = json.loads(line)
                if command.get("stop"):
                    break
                asked = command["drift"]
                drift = KINDS[asked["kind"]].at(float(asked["strength"]))
                camera.frames.drift(Ramp(drift, float(asked["ramp_s"])))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                _tell("problem", what="command not understood", why=f"{line[:200]!r}: {error!r}")
    finally:
        transport.close()
        camera.stop()


async def _watch(args: argparse.Namespace) -> dict[str, Any]:
    with np.load(args.data, allow_pickle=False) as file:
        x, y = file["x"][args.first : args.last], file["y"][args.first : args.last].astype(np.int64)
    camera = Camera(args, x, y)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, camera.stop)
    obeying = loop.create_task(_obey(camera)) if args.commands else None
    if args.drift != "none" and not args.commands:
        ramp = Ramp(KINDS[args.drift].at(args.strength), args.ramp_s)
        loop.call_later(args.drift_after_s, camera.frames.drift, ramp)
    await camera.run()
    if obeying is not None:
        obeying.cancel()
        await asyncio.gather(obeying, return_exceptions=True)
    return camera.counts


def main() -> None:
    """Run the camera; prints its counts at the end."""
    parser = argparse.ArgumentParser(description="A camera that reads meters and drifts.")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the data plane")
    parser.add_argument("--labels", default="http://127.0.0.1:8090", help="where labels go")
    parser.add_argument("--model", default="meter-reader")
    parser.add_argument("--task", default="meter-reader")
    parser.add_argument("--data", type=Path, default=Path(__file__).with_name("digits.npz"))
    parser.add_argument("--first", type=int, default=6000, help="first meter, a row of the data")
    parser.add_argument("--last", type=int, default=10000, help="last meter, exclusive")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--label-delay-s", type=float, nargs=2, default=(10.0, 20.0), metavar=("MIN", "MAX"))
    parser.add_argument("--name", help="what request ids begin with; camSEED unless given")
    parser.add_argument("--log", type=Path, required=True, help="JSON lines, one a request")
    parser.add_argument("--commands", action="store_true", help="obey JSON lines on standard input")
    parser.add_argument("--drift", choices=KINDS, default="none", help="without --commands: drift by itself")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--drift-after-s", type=float, default=120.0)
    parser.add_argument("--ramp-s", type=float, default=20.0)
    args = parser.parse_args()
    counts = asyncio.run(_watch(args))
    cpu_s = round(time.process_time(), 3)
    _tell("summary", **counts, cpu_s=cpu_s)


if __name__ == "__main__":
    main()
