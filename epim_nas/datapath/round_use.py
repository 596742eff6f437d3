"""Which crossbars, word lines and columns the rounds of a layer use, read off its tables."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.tables import NOTHING, IntArray


class RoundUse:
    """What every round of a layer uses.

    Args:
        layer: the layer's tables.
    """

    def __init__(self, layer: LayerTables) -> None:
        self._tables, self._grid = layer.tables, layer.grid
        self._row_group = np.where(
            layer.tables.ifrt == NOTHING, NOTHING, layer.tables.ifrt // layer.crossbar_rows
        )
        self._blocks = self._grid.column_groups // self._grid.layers
        self._row_groups = [frozenset(groups.tolist()) for groups in self._row_group]
        self._column_groups = [
            frozenset(self._groups_of(columns[columns != NOTHING]).ravel().tolist())
            for columns in layer.tables.columns
        ]
        self._rounds_of_slot: list[list[int]] = [[] for _ in range(layer.tables.slots)]
        for turn, slot in enumerate(layer.tables.slot.tolist()):
            self._rounds_of_slot[slot].append(turn)
        self._outputs = lru_cache(maxsize=None)(self._find_outputs)

    def rounds(self, slot: int) -> list[int]:
        """The rounds of a slot, in the order of the plan."""
        return self._rounds_of_slot[slot]

    def uses(self, turn: int, row_group: int, column_group: int) -> bool:
        """Whether a round uses a crossbar: rows and columns of it."""
        block = column_group % self._blocks
        return row_group in self._row_groups[turn] and block in self._column_groups[turn]

    def crossbars(self, turn: int) -> list[int]:
        """Numbers of the crossbars that a round uses."""
        rows = self._grid.row_groups
        return [
            column_group * rows + row_group
            for column_group in range(self._grid.column_groups)
            for row_group in range(rows)
            if self.uses(turn, row_group, column_group)
        ]

    def converted(self, turn: int, column_group: int) -> int:
        """Columns of a column group that hold a slice of a round's outputs."""
        columns = self._tables.columns[turn]
        groups = self._groups_of(columns[columns != NOTHING])
        return int((groups == column_group % self._blocks).sum())

    def channels(self, turn: int, row_group: int) -> list[int]:
        """Channels of the patch that a round drives in a row group, as positions in the IFRT."""
        return np.flatnonzero(self._row_group[turn] == row_group).tolist()

    def outputs(self, turn: int, column_groups: Iterable[int]) -> list[int]:
        """Results of a round that have a cell in some column groups, as positions in the OFAT.

        They are in the order of the epitome's channels.
        """
        return self._outputs(turn, frozenset(group % self._blocks for group in column_groups))

    def _find_outputs(self, turn: int, blocks: frozenset[int]) -> list[int]:
        columns = self._tables.columns[turn]
        inside = np.isin(self._groups_of(columns), list(blocks)).any(axis=1)
        places = np.flatnonzero(inside & (columns != NOTHING))
        return places[np.argsort(columns[places])].tolist()

    def _groups_of(self, columns: IntArray) -> IntArray:
        """(outputs, cells) the column group of every cell of output channels."""
        width = self._grid.columns_per_output
        cells = columns[:, None] * width + np.arange(width)
        return cells // self._grid.columns
