"""What genomes cost, a whole population at once: look-ups in tables made from a device profile.

* ``latency_ms`` is of the network alone, one row; ``overhead_ms`` is what the parent's telemetry says that
  serving adds on its device, and counts against absolute limits only.
* Memory is an estimate: the weights, and the most numbers that are alive at once in one block.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.graph import row_shape
from search.profile import Profile, entry_key, key
from search.space import Genes, Space

Values = NDArray[np.float64]

_FLOAT_BYTES = 4
_GOLDEN_ROWS = 16
_TEXT_BYTES = 1_800
"""What a bundle says of itself, but for the goldens."""

# What names and attributes take beside the numbers: fitted on written networks of all spaces, within 3 kB.
_GRAPH_BYTES = {False: 800, True: 3_300}
_LAYER_BYTES = {False: 400, True: 1_750}
_SQUEEZE_BYTES = {False: 1_050, True: 6_100}
_CHANNEL_BYTES = {False: 0, True: 19}
"""In int8, a scale, a zero point and a wide bias for each channel. The keys tell int8 from full precision."""


@dataclass(frozen=True)
class _Tables:
    """One number for each block of the space, and a zero for an empty place."""

    us: Values
    params: Values
    macs: Values
    values: Values
    layers: Values
    channels: Values
    squeezes: Values


class Costs:
    """The prices of a space on a device."""

    def __init__(self, space: Space, profile: Profile, overhead_ms: float = 0.0) -> None:
        self._space = space
        self.profile = profile
        self.overhead_ms = overhead_ms
        blocks = space.blocks()
        self._tables = _Tables(
            us=_column([profile.blocks_us[key(block)] for block in blocks]),
            params=_column([block.params for block in blocks]),
            macs=_column([block.macs for block in blocks]),
            values=_column([block.values for block in blocks]),
            layers=_column([len(block.convs) for block in blocks]),
            channels=_column([sum(conv.outputs for conv in block.convs) for block in blocks]),
            squeezes=_column([block.squeeze is not None for block in blocks]),
        )
        self._entries_us = np.array([profile.entries_us[entry_key(entry)] for entry in space.entries()])
        largest = space.blueprint(space.largest)
        # An image is made smaller by two matrices that travel in the file; a window is only cut.
        self._resizing_bytes = np.array(
            [
                0
                if entry.whole or not entry.layout.pixels
                else _FLOAT_BYTES * (entry.height * entry.to_height + entry.width * entry.to_width)
                for entry in space.entries()
            ],
            dtype=np.float64,
        )
        self._last_params = largest.classes * (largest.embedding + 1)
        self._last_macs = largest.classes * largest.embedding
        row = math.prod(row_shape(largest.entry)) * (1 if largest.entry.layout.pixels else _FLOAT_BYTES)
        answers = (largest.classes + largest.embedding) * _FLOAT_BYTES
        # Base64 makes four bytes of three.
        self._golden_bytes = _GOLDEN_ROWS * (row + answers) * 4 / 3

    def latency_ms(self, genes: Genes) -> Values:
        """Return the median milliseconds of one row; (n,)."""
        parts = self._space.parts(genes)
        sums = (self._tables.us[parts].sum(axis=1) + self._entries_us[self._space.ways_in(genes)]) / 1000
        offset, slope = self.profile.line
        full = offset + slope * sums
        int8 = self._space.quantised(genes)
        if self.profile.int8_line is None or not int8.any():
            return np.asarray(full)
        features = np.column_stack(
            [
                sums,
                self._tables.layers[parts].sum(axis=1),
                (self._tables.macs[parts].sum(axis=1) + self._last_macs) / 1e6,
                self._tables.squeezes[parts].sum(axis=1),
                np.ones(len(genes)),
            ]
        )
        return np.asarray(np.where(int8, features @ np.array(self.profile.int8_line), full))

    def cut_ms(self, genes: Genes) -> tuple[Values, Values]:
        """Return the median milliseconds of one row up to each block's end, and from there on.

        Each half is a run of its own and pays what a network pays once.

        Args:
            genes: (genes,) of one network.

        Returns:
            Both (blocks,), in the order in which blocks run.
        """
        tables, profile = self._tables, self.profile
        parts = self._space.parts(genes[None])[0]
        parts = parts[parts < len(self._space.blocks())]
        priced = (tables.us / 1000, tables.layers, tables.macs / 1e6, tables.squeezes)
        until = np.column_stack([table[parts] for table in priced]).cumsum(axis=0)
        after = until[-1] - until
        until[:, 0] += self._entries_us[self._space.ways_in(genes[None])[0]] / 1000
        after[:, 2] += self._last_macs / 1e6
        offset, slope = profile.line
        line = np.array([slope, 0.0, 0.0, 0.0, offset])
        if profile.int8_line is not None and self._space.quantised(genes[None])[0]:
            line = np.array(profile.int8_line)
        return np.asarray(until @ line[:4] + line[4]), np.asarray(after @ line[:4] + line[4])

    def params(self, genes: Genes) -> Values:
        """Return the numbers that ship; (n,)."""
        return self._summed(self._tables.params, genes) + self._last_params

    def macs(self, genes: Genes) -> Values:
        """Return multiply-accumulates for one row; (n,)."""
        return self._summed(self._tables.macs, genes) + self._last_macs

    def size_bytes(self, genes: Genes) -> Values:
        """Return about how large each bundle is; (n,)."""
        parts, int8 = self._space.parts(genes), self._space.quantised(genes)
        layers, channels, squeezes = (
            table[parts].sum(axis=1)
            for table in (self._tables.layers, self._tables.channels, self._tables.squeezes)
        )
        full, small = (
            _GRAPH_BYTES[kind]
            + _LAYER_BYTES[kind] * layers
            + _SQUEEZE_BYTES[kind] * squeezes
            + _CHANNEL_BYTES[kind] * channels
            for kind in (False, True)
        )
        numbers = self.params(genes) * np.where(int8, 1, _FLOAT_BYTES)
        resizing = self._resizing_bytes[self._space.ways_in(genes)]
        beside = np.where(int8, small, full) + resizing + _TEXT_BYTES + self._golden_bytes
        return np.asarray(numbers + beside)

    def memory_bytes(self, genes: Genes) -> Values:
        """Return about how much memory one row through each network takes at most; (n,)."""
        width = np.where(self._space.quantised(genes), 1, _FLOAT_BYTES)
        alive = self._tables.values[self._space.parts(genes)].max(axis=1)
        return np.asarray((self.params(genes) + alive) * width)

    def energy_mj(self, genes: Genes) -> Values:
        """Return about how many millijoules one row takes; (n,)."""
        return self.latency_ms(genes) * self.profile.watts

    def _summed(self, table: Values, genes: Genes) -> Values:
        return np.asarray(table[self._space.parts(genes)].sum(axis=1))


def _column(values: list[float] | list[int] | list[bool]) -> Values:
    return np.array([*values, 0], dtype=np.float64)
