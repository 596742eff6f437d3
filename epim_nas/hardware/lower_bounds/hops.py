"""The fewest hops that a layer's data travel, in whatever design the layer is.

Tiles are numbered layer after layer, so where a layer lies depends on how many tiles all layers
before it have. With the fewest and the most that they can have, it begins at one of a few numbers,
and the least over these is a floor of its hops in every design.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from epim_nas.hardware.chip import Mesh
from epim_nas.hardware.placement import mesh_order
from epim_nas.network.spec import Network

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_CELLS = 2**18
"""Tiles that are looked at together."""


class HopFloors(NamedTuple):
    """Per layer, the fewest hops with each of its numbers of tiles: two lists of (choices,)."""

    inside: list[FloatArray]
    outside: list[FloatArray]


class _Starts(NamedTuple):
    """Numbers of a layer's first tile: the least, and the greatest with each choice."""

    least: int
    greatest: IntArray


def hop_floors(network: Network, mesh: Mesh, tiles: Sequence[IntArray], most: int) -> HopFloors:
    """The fewest hops of every layer with each of its choices (:class:`~.timing.Hops`).

    Results that go to the global accumulator have exact hops for every first tile; so have those
    of a sum for every first tile of its reader. Where results go to other tiles, the tiles of the
    reader that comes next are known as far as its smallest choice, and both distances are taken at
    the best of the layer's tiles, each by itself.

    Args:
        network: the network.
        mesh: the mesh.
        tiles: per layer of the network, the tiles of each choice; 0 for sums, [1] for pooling.
        most: most tiles that a design of interest has.
    """
    inside = [np.zeros(len(counts)) for counts in tiles]
    outside = [np.zeros(len(counts)) for counts in tiles]
    if len(tiles) == 1:
        return HopFloors(inside, outside)  # MNSIM leaves a one-layer network unplaced.
    starts = _starts(tiles, most)
    tiled = [layer.type != "element_sum" for layer in network.layers]
    readers = [
        [network.index[name] for name in network.consumers[layer.name]] for layer in network.layers
    ]
    spots = _Spots(mesh)
    for index, counts in enumerate(tiles):
        reading = [reader for reader in readers[index] if tiled[reader]]
        if not tiled[index]:
            outside[index][:] = max(
                (spots.reach(tiles[reader], starts[reader]) for reader in reading), default=0.0
            )
            continue
        following = next((j for j in range(index + 1, len(tiles)) if tiled[j]), None)
        there = int(tiles[following].min()) if following and following in reading else 0
        for choice, count in enumerate(counts.tolist()):
            begin, end = starts[index].least, int(starts[index].greatest[choice]) + 1
            if readers[index] and not reading:
                hops = spots.to_accumulator(count, begin, end)
            else:
                hops = spots.to_next(count, there, begin, end)
            inside[index][choice], outside[index][choice] = hops
    return HopFloors(inside, outside)


def _starts(tiles: Sequence[IntArray], most: int) -> list[_Starts]:
    least = np.array([counts.min() for counts in tiles])
    greatest = np.array([counts.max() for counts in tiles])
    found = []
    for index, counts in enumerate(tiles):
        low = int(least[:index].sum())
        high = np.minimum(greatest[:index].sum(), most - least[index + 1 :].sum() - counts)
        # A choice with which the design has too many tiles is in none that matters.
        found.append(_Starts(low, np.maximum(high, low)))
    return found


class _Spots:
    """Fewest hops of a layer on the mesh whose first tile has a number in a range."""

    def __init__(self, mesh: Mesh) -> None:
        self._size = mesh.size
        self._rows, self._columns = mesh_order(mesh)
        self.to_accumulator = cache(self._to_accumulator)
        self.to_next = cache(self._to_next)
        self._first_reach = cache(self._first_reaches)

    def reach(self, counts: IntArray, starts: _Starts) -> float:
        """Least distance from the accumulator to a layer's first tile (in row-major order)."""
        return min(
            self._first_reach(count, starts.least, high + 1)
            for count, high in zip(counts.tolist(), starts.greatest.tolist(), strict=True)
        )

    def _to_accumulator(self, count: int, begin: int, end: int) -> tuple[float, float]:
        least = (np.inf, np.inf)
        for start in _blocks(begin, end, count):
            rows, columns = self._tiles(start, count)
            near = _farthest(rows, columns, rows, columns)
            far = self._accumulator_distance(rows, columns)
            order = rows * self._size[1] + columns
            # The placement's choice: the least sum, of equal ones the first in row-major order.
            best = np.argmin(2 * (near + far) * self._size[0] * self._size[1] + order, axis=1)
            each = np.arange(len(rows))
            least = _less(least, (near[each, best], far[each, best]))
        return least

    def _to_next(self, count: int, there: int, begin: int, end: int) -> tuple[float, float]:
        least = (np.inf, np.inf if there else 0.0)
        for start in _blocks(begin, end, count):
            rows, columns = self._tiles(start, count)
            near = _farthest(rows, columns, rows, columns)
            far = np.zeros(1)
            if there:
                far = _farthest(rows, columns, *self._tiles(start + count, there))
            least = _less(least, (near, far))
        return least

    def _first_reaches(self, count: int, begin: int, end: int) -> float:
        least = np.inf
        for start in _blocks(begin, end, count):
            rows, columns = self._tiles(start, count)
            first = (rows * self._size[1] + columns).min(1)
            reach = self._accumulator_distance(*np.divmod(first, self._size[1]))
            least = min(least, float(reach.min()))
        return least

    def _tiles(self, start: IntArray, count: int) -> tuple[IntArray, IntArray]:
        """(starts, count) rows and columns of so many tiles from each start on."""
        number = start[:, None] + np.arange(count)
        number = np.minimum(number, len(self._rows) - 1)  # beyond the mesh: no design is there
        return self._rows[number], self._columns[number]

    def _accumulator_distance(self, rows: IntArray, columns: IntArray) -> FloatArray:
        distance: FloatArray = np.abs(rows - self._size[0] / 2) + columns
        return distance


def _blocks(begin: int, end: int, count: int) -> Iterator[IntArray]:
    """The numbers of a range, in parts that keep arrays of ``count`` columns small."""
    step = max(1, _CELLS // count)
    for first in range(begin, end, step):
        yield np.arange(first, min(first + step, end))


def _less(least: tuple[float, float], hops: tuple[FloatArray, FloatArray]) -> tuple[float, float]:
    return min(least[0], float(hops[0].min())), min(least[1], float(hops[1].min()))


def _farthest(
    rows: IntArray, columns: IntArray, other_rows: IntArray, other_columns: IntArray
) -> FloatArray:
    """(first tiles, tiles) Manhattan distance to the farthest of some other tiles.

    It is found from the extremes of row + column and row - column.
    """
    result = np.zeros(rows.shape)
    for own, other in (
        (rows + columns, other_rows + other_columns),
        (rows - columns, other_rows - other_columns),
    ):
        np.maximum(result, own - other.min(1, keepdims=True), out=result)
        np.maximum(result, other.max(1, keepdims=True) - own, out=result)
    return result
