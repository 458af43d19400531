"""Pictures made ahead of time, in a thread of their own, so that the camera's clock is never late.

* Every meter is seen once a round, all meters in a new order each round, each time with fresh jitter.
* A drift begins with the next batch that is made, and grows with the time at which pictures are due.
* The same seed and the same commands at the same frames give the same pictures.
"""

import argparse
import asyncio
import itertools
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from drift import Drift, Images, view

BATCH = 25
AHEAD = 4


@dataclass(frozen=True)
class Frame:
    """One picture that is ready to be sent."""

    number: int
    meter: int
    label: int
    level: float
    label_delay_s: float
    pixels: bytes


@dataclass(frozen=True)
class Ramp:
    """A drift that begins with the next frame and is whole after ``ramp_s``."""

    drift: Drift
    ramp_s: float


class Frames:
    """An endless row of frames; ``args`` has first, rate, seed and label_delay_s."""

    def __init__(self, x: Images, y: npt.NDArray[np.int64], args: argparse.Namespace) -> None:
        self._x, self._y, self._first, self._rate = x, y, args.first, args.rate
        self._delay_s = args.label_delay_s
        self._rng = np.random.default_rng(args.seed)
        self._ready: queue.Queue[list[Frame]] = queue.Queue(AHEAD)
        self._ramp = Ramp(Drift(), 0.0)
        self._asked: Ramp | None = None
        self._began = 0
        self.drifted_from: int | None = None
        threading.Thread(target=self._fill, daemon=True, name="frames").start()

    def drift(self, ramp: Ramp) -> None:
        """Let the drift begin with the next frame that is made."""
        self._asked = ramp

    async def __aiter__(self) -> AsyncIterator[Frame]:
        """Yield frame after frame."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                batch = self._ready.get_nowait()
            except queue.Empty:
                batch = await loop.run_in_executor(None, self._ready.get)
            for frame in batch:
                yield frame

    def _fill(self) -> None:
        meters = self._meters()
        for start in itertools.count(0, BATCH):
            if self._asked is not None:
                self._ramp, self._asked, self._began = self._asked, None, start
                self.drifted_from = start
            self._ready.put(self._batch(start, list(itertools.islice(meters, BATCH))))

    def _batch(self, start: int, meters: list[int]) -> list[Frame]:
        drifting = self._ramp.drift != Drift()
        passed_s = (start + BATCH - self._began) / self._rate
        level = min(1.0, passed_s / max(self._ramp.ramp_s, 1e-9)) if drifting else 0.0
        pictures = view(self._x[meters], self._ramp.drift.at(level), self._rng)
        delays = self._rng.uniform(*self._delay_s, len(meters))
        return [
            Frame(start + i, self._first + m, int(self._y[m]), level, float(delays[i]), pictures[i].tobytes())
            for i, m in enumerate(meters)
        ]

    def _meters(self) -> Iterator[int]:
        while True:
            yield from self._rng.permutation(len(self._x)).tolist()
