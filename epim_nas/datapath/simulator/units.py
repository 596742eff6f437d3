"""What the crossbars of a layer do for one output position, cut into pieces of equal size.

A unit is one round on one row group. Units with as many inputs and outputs are one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.simulator.packing import PackedSlices
from epim_nas.datapath.tables import NOTHING, IntArray


@dataclass
class Turn:
    """What the DACs of a subarray drive at once; its columns are converted on their own.

    Attributes:
        lines: the lines, of those of a unit.
        cells: (polarity, U, S, m, lines) conductances, 0 where a unit drives no line of the turn.
        active: (U,) whether a unit drives any.
        packed: the sides that are converted, packed; None where cells or reads are not exact.
    """

    lines: slice
    cells: Tensor
    active: Tensor
    packed: list[PackedSlices] | None = None


@dataclass
class Batch:
    """(Round, row group) units of one size: U units of n channels and m outputs.

    Attributes:
        inputs: (U, T, n) input channels; T are summed. The channel after the last is zero.
        turns: the row turns, subarray by subarray.
        targets: (U, m) output channels.
        weight_sums: (U, m) sums of the ideal integers.
        scales: (U, m) what a unit of the result counts; None where it is the same in all units.
    """

    inputs: Tensor
    turns: list[Turn]
    targets: Tensor
    weight_sums: Tensor
    scales: Tensor | None

    def to(self, device: torch.device) -> None:
        """Move everything to a device."""
        for turn in self.turns:
            turn.cells, turn.active = turn.cells.to(device), turn.active.to(device)
            for side in turn.packed or []:
                side.to(device)
        for name in ("inputs", "targets", "weight_sums", "scales"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.to(device))


def batches_of(
    layer: LayerTables,
    weights: IntArray,
    conductance: Tensor,
    subarray: tuple[int, int],
    scales: Tensor | None,
) -> list[Batch]:
    """The units of a layer.

    Args:
        layer: the layer's index tables.
        weights: (Oe, Ie, He, We) the integers that are stored.
        conductance: (polarity, lines, Oe, slices) of the cells.
        subarray: (lines that are driven at once, lines) of a subarray.
        scales: (Oe, Ie or 1, 1, 1) what an integer counts, or None.
    """
    ideal = _lines(weights, layer)
    return [
        _batch(layer, units, ideal, conductance, subarray, scales)
        for units in _units(layer).values()
    ]


def _row_group(layer: LayerTables, turn: int) -> IntArray:
    lines = layer.tables.ifrt[turn]
    return np.where(lines == NOTHING, NOTHING, lines // layer.crossbar_rows)


def _units(layer: LayerTables) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """(Round, row group) by (channels, outputs)."""
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for turn in range(layer.tables.rounds):
        outputs = int((layer.tables.columns[turn] != NOTHING).sum())
        groups, counts = np.unique(_row_group(layer, turn), return_counts=True)
        for group, count in zip(groups.tolist(), counts.tolist(), strict=True):
            if group != NOTHING:
                found.setdefault((count, outputs), []).append((turn, group))
    return found


def copies_of(layer: LayerTables) -> tuple[Tensor, Tensor]:
    """Output channels that are copied, and where to (the OFAT's replicas)."""
    ofat = layer.tables.ofat[layer.tables.closes]
    sources = np.broadcast_to(ofat[:, :1], ofat[:, 1:].shape)
    there = ofat[:, 1:] != NOTHING
    return torch.from_numpy(sources[there]), torch.from_numpy(ofat[:, 1:][there])


def _batch(
    layer: LayerTables,
    units: list[tuple[int, int]],
    ideal: Tensor,
    conductance: Tensor,
    subarray: tuple[int, int],
    scales: Tensor | None,
) -> Batch:
    tables = layer.tables
    kernel_h, kernel_w = layer.conv_shape[2:]
    steps = (np.arange(kernel_h)[:, None] * layer.epitome[3] + np.arange(kernel_w)).ravel()
    inputs, lines, columns, targets, first = [], [], [], [], []
    for turn, group in units:
        places = np.flatnonzero(_row_group(layer, turn) == group)
        chosen = np.flatnonzero(tables.columns[turn] != NOTHING)
        inputs.append(tables.ifat[turn][:, places])
        lines.append((tables.ifrt[turn, places][:, None] + steps).ravel())
        columns.append(tables.columns[turn, chosen])
        targets.append(tables.ofat[turn, 0, chosen])
        first.append(group * layer.grid.channels_per_row_group)
    line, column = (torch.from_numpy(np.array(part)) for part in (lines, columns))
    nothing = layer.conv_shape[1] * layer.groups
    channels = np.array(inputs)
    cells = conductance[:, line[:, None, :], column[:, :, None]]  # (.., U, m, lines, S)
    cells = cells.permute(0, 1, 4, 2, 3).contiguous()
    result = Batch(
        inputs=torch.from_numpy(np.where(channels == NOTHING, nothing, channels)),
        turns=_turns(cells, line % layer.crossbar_rows, layer.crossbar_rows, subarray),
        targets=torch.from_numpy(np.array(targets)),
        weight_sums=ideal[line[:, None, :], column[:, :, None]].sum(-1),
        scales=None,
    )
    if scales is not None:
        spread = scales.expand(layer.epitome[0], layer.epitome[1], 1, 1)[:, :, 0, 0]
        result.scales = spread[column, torch.tensor(first)[:, None]].double()
    return result


def _turns(
    cells: Tensor, line: Tensor, crossbar_rows: int, subarray: tuple[int, int]
) -> list[Turn]:
    """The turns of units with cells (polarity, U, S, m, lines) in lines (U, lines)."""
    at_once, rows = subarray
    count = cells.shape[-1]
    turns = []
    if rows == crossbar_rows:
        always = torch.ones(cells.shape[1], dtype=torch.bool)
        for start in range(0, count, at_once):
            lines = slice(start, min(start + at_once, count))
            turns.append((lines, cells[..., lines], always))
    else:
        for number_of_subarray in range(crossbar_rows // rows):
            inside = line // rows == number_of_subarray
            number = (inside.cumsum(1) - 1) // at_once
            for turn in range(-(-int(inside.sum(1).max()) // at_once)):
                driven = inside & (number == turn)
                part = cells * driven[:, None, None]
                turns.append((slice(None), part, driven.any(1)))
    return [Turn(*turn) for turn in turns]


def _lines(weights: IntArray, layer: LayerTables) -> Tensor:
    """(lines, Oe) the ideal integers, by word line."""
    outputs, channels, height, width = weights.shape
    own, cells = layer.grid.channels_per_row_group, height * width
    lines = np.zeros((layer.grid.row_groups, layer.crossbar_rows, outputs), dtype=np.float64)
    by_line = weights.reshape(outputs, channels * cells).T
    for group in range(layer.grid.row_groups):
        part = by_line[group * own * cells : (group + 1) * own * cells]
        lines[group, : len(part)] = part
    return torch.from_numpy(lines.reshape(-1, outputs))
