"""The conductances of a layer's cells, in units of one level, imperfections included."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from epim_nas.datapath.cells import SliceRule, program
from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.simulator.options import Devices
from epim_nas.datapath.tables import IntArray
from epim_nas.hardware.chip import Chip


def conductances(
    weights: IntArray,
    layer: LayerTables,
    rule: SliceRule,
    chip: Chip,
    devices: Devices,
    generator: torch.Generator,
) -> Tensor:
    """What every cell conducts above the state of highest resistance, in units of one level.

    Every physical cell of the layer's crossbars is programmed, aged and disturbed; then those that
    hold weights are read off.

    Args:
        weights: (Oe, Ie, He, We) integers.
        layer: the layer's tables.
        rule: how a weight becomes cells.
        chip: the chip.
        devices: the imperfections.
        generator: of the random numbers.

    Returns:
        (polarity, row groups * X, Oe, slices) float32: word line, output channel, bit slice. With
        ideal cells these are the integers that were programmed.
    """
    cells = torch.from_numpy(
        program(weights, layer.grid, layer.crossbar_rows, rule, layer.layer)
    ).float()
    if not devices.ideal_cells:
        cells = _disturbed(cells, rule, chip, devices, generator)
    return _by_output(cells, layer, rule)


def _disturbed(
    levels: Tensor, rule: SliceRule, chip: Chip, devices: Devices, generator: torch.Generator
) -> Tensor:
    top = float((1 << rule.cell_bits) - 1)
    high_ohm, low_ohm = chip.crossbar.resistances_ohm
    off = top / (high_ohm / low_ohm - 1)  # conductance of level 0 in units of a level
    if devices.stuck_off or devices.stuck_on:
        draw = torch.rand(levels.shape, generator=generator)
        levels = torch.where(draw < devices.stuck_off, 0.0, levels)
        levels = torch.where(draw >= 1 - devices.stuck_on, top, levels)
    conductance = levels + off
    if devices.variation:
        noise = torch.randn(levels.shape, generator=generator)
        conductance = conductance * torch.exp(devices.variation * noise)
    if devices.drift_time > 1:
        spread = devices.drift_spread * torch.randn(levels.shape, generator=generator)
        exponent = (devices.drift_exponent + spread).clamp(min=0)
        conductance = conductance * devices.drift_time**-exponent
    # A pair cancels the current of level 0; single crossbars have a column that measures it.
    return conductance - off


def _by_output(cells: Tensor, layer: LayerTables, rule: SliceRule) -> Tensor:
    grid, rows = layer.grid, layer.crossbar_rows
    per_group = -(-rule.slices // rule.groups)
    outputs = np.arange(layer.epitome[0])[:, None]
    group, place = np.divmod(np.arange(rule.slices), per_group)
    blocks = grid.column_groups // grid.layers
    if grid.layers == 1 and grid.columns_per_output == per_group:
        column_group, column = np.divmod(outputs * per_group + place, grid.columns)
    else:
        block, column = np.divmod(outputs + 0 * place, grid.columns)
        column_group = place * blocks + block
    group = np.broadcast_to(group, column.shape)
    row_group = np.arange(grid.row_groups)[:, None, None]
    crossbar = torch.from_numpy(column_group * grid.row_groups + row_group)
    # (row groups, Oe, slices, polarity, X)
    chosen = cells.permute(0, 1, 4, 2, 3)[
        crossbar, torch.from_numpy(group.copy()), torch.from_numpy(column)
    ]
    return chosen.permute(3, 0, 4, 1, 2).reshape(
        chosen.shape[3], grid.row_groups * rows, layer.epitome[0], rule.slices
    )
