"""Placement of layers on the tile mesh, and the hops that their data travel.

Tiles are numbered layer after layer and laid on the mesh in a fixed order. Distances are
Manhattan hops; the equations are those of MNSIM 2.0 (commit ca39ccb).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

import numpy as np
import numpy.typing as npt

from epim_nas.errors import InputError
from epim_nas.hardware.chip import Chip, Mesh

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Hops:
    """Hops of one layer's data.

    Attributes:
        inside: from its tiles to the one that aggregates (``d_in``).
        outside: from that tile to the consumers (``d_out``).
        first_tile: number of its first tile.
    """

    inside: float = 0.0
    outside: float = 0.0
    first_tile: int = 0


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
        self._tiled = tuple(tiled)
        self._consumers = tuple(tuple(readers) for readers in consumers)
        self._middle = chip.mesh.size[0] / 2

    def hops(self, tiles: Sequence[int]) -> list[Hops]:
        """Hops of every layer.

        Args:
            tiles: per layer, its tiles (0 for layers without).

        Raises:
            InputError: the mesh is too small.
        """
        mesh = self._chip.mesh
        all_rows, all_columns = mesh_order(mesh)
        total = sum(tiles)
        if total > len(all_rows):
            raise InputError(
                f"chip {self._chip.name}: mesh.size",
                f"{list(mesh.size)} in the order `{mesh.order}` has room for {len(all_rows)} "
                f"tiles, the design needs {total}",
                f"at least {total} tiles",
                "Enlarge it, e.g. `--set mesh.size=[128,128]`, or use fewer crossbars.",
            )
        starts = [0] * len(tiles)
        position = 0
        for layer, count in enumerate(tiles):
            starts[layer] = position
            position += count
        if len(tiles) == 1:
            # MNSIM leaves a one-layer network unplaced.
            return [Hops()]
        # The farthest of a set of tiles, in Manhattan distance, is found from the extremes of
        # row + column and row - column.
        sums = all_rows[:total] + all_columns[:total]
        differences = all_rows[:total] - all_columns[:total]
        occupied = [layer for layer, count in enumerate(tiles) if count]
        bounds = np.array([starts[layer] for layer in occupied], dtype=np.intp)
        extremes: dict[int, tuple[int, int, int, int]] = {}
        if occupied:
            extremes = dict(
                zip(
                    occupied,
                    zip(
                        np.minimum.reduceat(sums, bounds).tolist(),
                        np.maximum.reduceat(sums, bounds).tolist(),
                        np.minimum.reduceat(differences, bounds).tolist(),
                        np.maximum.reduceat(differences, bounds).tolist(),
                        strict=True,
                    ),
                    strict=True,
                )
            )
        result = []
        for layer, count in enumerate(tiles):
            span = slice(starts[layer], starts[layer] + count)
            if count:
                inside, outside = self._aggregate(
                    layer, all_rows[span], all_columns[span], extremes
                )
            else:
                inside, outside = 0.0, self._from_accumulator(layer, tiles, starts)
            result.append(Hops(inside, outside, starts[layer]))
        return result

    def _aggregate(
        self,
        layer: int,
        rows: IntArray,
        columns: IntArray,
        extremes: dict[int, tuple[int, int, int, int]],
    ) -> tuple[float, float]:
        """Inside and outside hops from the best aggregation tile of a layer."""
        readers = self._consumers[layer]
        tiled = [reader for reader in readers if self._tiled[reader]]
        if len(rows) == 1 and not readers:
            return 0.0, 0.0
        sums, differences = rows + columns, rows - columns
        inside = _farthest(sums, differences, extremes[layer])
        if not readers:
            return float(inside.min()), 0.0
        if tiled:
            target = [extremes[reader] for reader in tiled]
            merged = (
                min(item[0] for item in target),
                max(item[1] for item in target),
                min(item[2] for item in target),
                max(item[3] for item in target),
            )
            outside = _farthest(sums, differences, merged).astype(np.float64)
        else:
            outside = np.abs(rows - self._middle) + columns
        # The first minimum in row-major order wins.
        both = inside + outside
        best = np.lexsort((columns, rows, both))[0]
        return float(inside[best]), float(outside[best])

    def _from_accumulator(self, layer: int, tiles: Sequence[int], starts: Sequence[int]) -> float:
        """Hops from the global accumulator, at the middle of the left edge, to the consumers."""
        all_rows, all_columns = mesh_order(self._chip.mesh)
        farthest = 0.0
        for reader in self._consumers[layer]:
            if not tiles[reader]:
                continue
            span = slice(starts[reader], starts[reader] + tiles[reader])
            rows, columns = all_rows[span], all_columns[span]
            first = np.lexsort((columns, rows))[0]
            distance = abs(float(rows[first]) - self._middle) + float(columns[first])
            farthest = max(farthest, distance)
        return farthest


def _farthest(
    sums: IntArray, differences: IntArray, extremes: tuple[int, int, int, int]
) -> IntArray:
    low_sum, high_sum, low_difference, high_difference = extremes
    across = np.maximum(sums - low_sum, high_sum - sums)
    along = np.maximum(differences - low_difference, high_difference - differences)
    return np.maximum(across, along)
