"""Placement of layers on the tile mesh, and the hops that their data travel.

Tiles are numbered layer after layer and laid on the mesh in a fixed order. Distances are
Manhattan hops; the equations are those of MNSIM 2.0 (commit ca39ccb).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import isqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from epim_nas.errors import InputError
from epim_nas.hardware.chip import Chip, Mesh
from epim_nas.hardware.ragged_reduce import Segments
from epim_nas.hardware.timing import Hops

IntArray = npt.NDArray[np.int64]


@lru_cache(maxsize=16)
def mesh_order(mesh: Mesh) -> tuple[IntArray, IntArray]:
    """(row, column) of every tile number, as far as the order stays on the mesh."""
    rows, columns = mesh.size
    if mesh.order == "shells":
        # Square shells only fill a square.
        side = min(rows, columns)
        spots = [_shell(tile) for tile in range(side * side)]
    elif mesh.order == "diagonal":
        spots = _diagonals(rows, columns)
    else:
        spots = [divmod(tile, columns) for tile in range(rows * columns)]
        if mesh.order == "serpentine":
            spots = [(r, c if r % 2 == 0 else columns - 1 - c) for r, c in spots]
    array = np.array(spots, dtype=np.int64)
    return array[:, 0].copy(), array[:, 1].copy()


def _shell(tile: int) -> tuple[int, int]:
    shell = isqrt(tile)
    rest = tile - shell * shell
    inner, outer = (rest, shell) if rest <= shell else (shell, 2 * shell - rest)
    return (inner, outer) if shell % 2 else (outer, inner)


def _diagonals(rows: int, columns: int) -> list[tuple[int, int]]:
    spots = []
    for diagonal in range(rows + columns - 1):
        line = [
            (row, diagonal - row)
            for row in range(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        ]
        spots += line if diagonal % 2 else line[::-1]
    return spots


class Placement:
    """Hop distances of a network's layers, for any number of tiles per layer.

    Args:
        chip: the chip.
        tiled: per layer, whether it occupies tiles.
        consumers: per layer, the indices of the layers that read its output.
    """

    def __init__(
        self, chip: Chip, tiled: Sequence[bool], consumers: Sequence[Sequence[int]]
    ) -> None:
        self._chip = chip
        readers = [[reader for reader in found if tiled[reader]] for found in consumers]
        self._readers = Segments(readers)
        self._has_readers = np.array([bool(found) for found in readers])
        # All consumers are sums: the results go to the accumulator.
        self._to_accumulator = np.array([bool(found) for found in consumers]) & ~self._has_readers
        # Sums have no tiles: their results come from the accumulator.
        self._sums = Segments(
            [[] if there else found for there, found in zip(tiled, readers, strict=True)]
        )
        self._middle = chip.mesh.size[0] / 2

    def hops(self, tiles: npt.NDArray[np.int64]) -> Hops:
        """Hops of every layer of every design.

        Args:
            tiles: (designs, layers) tiles, 0 for layers without.

        Returns:
            Hops of (designs, layers).

        Raises:
            InputError: the mesh is too small.
        """
        designs, layers = tiles.shape
        all_rows, all_columns = mesh_order(self._chip.mesh)
        self._check_room(tiles, len(all_rows))
        inside, outside = np.zeros(tiles.shape), np.zeros(tiles.shape)
        counts = tiles.ravel()
        occupied = np.flatnonzero(counts)
        if layers == 1 or not len(occupied):
            return Hops(inside, outside)  # MNSIM leaves a one-layer network unplaced.

        # All tiles of all designs in one row; a segment is the tiles of one layer of one design.
        segment = np.repeat(np.arange(len(counts)), counts)
        begin = np.cumsum(counts) - counts
        design_begin = np.repeat(begin.reshape(designs, layers)[:, 0], tiles.sum(1))
        spot = np.arange(len(segment)) - design_begin
        rows, columns = all_rows[spot], all_columns[spot]
        starts = begin[occupied]

        # The farthest of a set of tiles, in Manhattan distance, is found from the extremes of
        # row + column and row - column.
        diagonals = (rows + columns, rows - columns)
        own = _Extremes.empty(tiles.shape)
        for axis, values in enumerate(diagonals):
            own.low[axis].flat[occupied] = np.minimum.reduceat(values, starts)
            own.high[axis].flat[occupied] = np.maximum.reduceat(values, starts)
        readers = _Extremes.empty(tiles.shape)
        readers.low[:, :, self._readers.layers] = self._readers.smallest(own.low)
        readers.high[:, :, self._readers.layers] = self._readers.largest(own.high)
        from_accumulator = np.abs(rows - self._middle) + columns

        near = own.farthest(diagonals, segment)
        far = readers.farthest(diagonals, segment)
        layer_of = segment % layers
        distance = np.where(
            self._has_readers[layer_of],
            far,
            np.where(self._to_accumulator[layer_of], from_accumulator, 0.0),
        )
        # The first minimum in row-major order wins: distances are multiples of 1/2.
        rank = rows * self._chip.mesh.size[1] + columns
        spots = self._chip.mesh.size[0] * self._chip.mesh.size[1]
        key = (2 * (near + distance)).astype(np.int64) * spots + rank
        best = np.full(len(counts), -1)
        best[occupied] = np.minimum.reduceat(key, starts) % spots
        # The winner is found again by its place.
        winner = np.flatnonzero(rank == best[segment])
        inside.flat[segment[winner]] = near[winner]
        outside.flat[segment[winner]] = distance[winner]

        first = np.zeros(len(counts), dtype=np.int64)
        first[occupied] = np.minimum.reduceat(rank, starts)
        first_rows, first_columns = np.divmod(first, self._chip.mesh.size[1])
        reach = (np.abs(first_rows - self._middle) + first_columns).reshape(tiles.shape)
        outside[:, self._sums.layers] = self._sums.largest(reach)
        return Hops(inside, outside)

    def _check_room(self, tiles: npt.NDArray[np.int64], room: int) -> None:
        total = int(tiles.sum(1).max(initial=0))
        if total > room:
            mesh = self._chip.mesh
            side = isqrt(total - 1) + 1
            raise InputError(
                f"chip {self._chip.name}: mesh.size",
                f"{list(mesh.size)} in the order `{mesh.order}` has room for {room} "
                f"tiles, the design needs {total}",
                f"at least {total} tiles",
                f"Enlarge it, e.g. `--set mesh.size=[{side},{side}]` (in a run file "
                "`hardware.set`), or take larger or fewer crossbars.",
            )


class _Extremes(NamedTuple):
    """Smallest and largest row + column and row - column of tiles, (2, designs, layers)."""

    low: IntArray
    high: IntArray

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> _Extremes:
        return cls(np.zeros((2, *shape), dtype=np.int64), np.zeros((2, *shape), dtype=np.int64))

    def farthest(self, diagonals: tuple[IntArray, IntArray], segment: IntArray) -> IntArray:
        """Per tile, the distance to the farthest tile of the set that belongs to its segment."""
        result = np.zeros(len(segment), dtype=np.int64)
        for axis, values in enumerate(diagonals):
            low, high = self.low[axis].ravel()[segment], self.high[axis].ravel()[segment]
            np.maximum(result, values - low, out=result)
            np.maximum(result, high - values, out=result)
        return result
