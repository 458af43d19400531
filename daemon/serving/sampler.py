"""The sampler: which rows' raw inputs are kept, within bytes a second.

* While the offered bytes of the last second fit the budget, every row is kept.
* Otherwise a row is kept when its key's hash lies below budget / offered: the same row decides alike
  everywhere, whatever came before it.
* No second keeps more than the budget, so a sudden flood loses its end, once.

Called by ``recorder.py`` for rows that reached the model. Pure but for its two counters.
"""

import numpy as np


class Sampler:
    """Keeps at most ``bytes_per_s``; 0 keeps nothing."""

    def __init__(self, bytes_per_s: int) -> None:
        self._budget = bytes_per_s
        self._second = -1
        self._offered = 0
        self._kept = 0
        self._share = 1.0

    def keep(self, now: float, keys: list[bytes], row_bytes: int) -> list[int]:
        """Return the positions of the rows to keep.

        Args:
            now: Seconds since the epoch.
            keys: Row keys, uniform hashes of 16 bytes.
            row_bytes: Size of one sample record.

        >>> Sampler(100).keep(0.0, [bytes(16), bytes(16)], row_bytes=60)
        [0]
        """
        if int(now) != self._second:
            idle = int(now) != self._second + 1
            self._share = 1.0 if idle or not self._offered else min(1.0, self._budget / self._offered)
            self._second, self._offered, self._kept = int(now), 0, 0
        self._offered += row_bytes * len(keys)
        # The first half of each key, as a number.
        places = np.frombuffer(b"".join(keys), ">u8")[::2]
        low = places < int(self._share * 2**64) if self._share < 1.0 else np.ones(len(keys), bool)
        room = max(0, self._budget - self._kept) // row_bytes
        chosen: list[int] = np.flatnonzero(low)[:room].tolist()
        self._kept += row_bytes * len(chosen)
        return chosen
