"""What is programmed into the cells: an integer epitome, cut into bit slices and crossbars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from epim_nas.datapath.memory import Field, Memory
from epim_nas.datapath.tables import IntArray
from epim_nas.errors import InputError
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.mapping import bit_slices
from epim_nas.hardware.schedule import CrossbarGrid

CellArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SliceRule:
    """How an integer weight becomes cells.

    With pairs (``polarity`` 2), the positive crossbar holds the digits of positive weights and the
    negative one those of negative weights. With single crossbars, the cells hold w + 2^(b - 1), and
    2^(b - 1) times the sum of the driven inputs is subtracted digitally (as in ISAAC, Shafiee et
    al., ISCA 2016).

    Attributes:
        weight_bits: b.
        cell_bits: bits of a cell.
        polarity: 2 for positive/negative pairs, else 1.
        groups: crossbar groups of a PE; they hold neighbouring slices.
        slices: cells of a weight; slice k counts 2^(k cell_bits).
    """

    weight_bits: int
    cell_bits: int
    polarity: int
    groups: int
    slices: int

    @classmethod
    def of(cls, weight_bits: int, chip: Chip) -> SliceRule:
        """The rule of a chip."""
        mapping = chip.mapping
        slices = bit_slices(weight_bits, chip)
        return cls(weight_bits, mapping.cell_bits, mapping.polarity, mapping.groups, slices)

    @property
    def offset(self) -> int:
        """What is added to every weight: 0 with pairs."""
        return 0 if self.polarity == 2 else 1 << (self.weight_bits - 1)

    @property
    def largest(self) -> int:
        """Largest magnitude of a weight: 1 for 2 bits (ternary), 3, 7, ..."""
        return int((1 << (self.weight_bits - 1)) - 1)


def program(
    weights: IntArray, grid: CrossbarGrid, crossbar_rows: int, rule: SliceRule, layer: str = "layer"
) -> CellArray:
    """The cells of every crossbar of a layer.

    Row group g and line l hold cell (i, j) of channel g * channels + l // (He We), with
    l % (He We) = i We + j. Where slices are packed, slice k of output channel o is in column
    o * columns_per_output + k, counted over the column groups; else in column o, in the crossbars
    of layer k. Slices are counted within a crossbar group: group q holds the slices from
    q * ceil(slices / groups) on.

    Args:
        weights: (Oe, Ie, He, We) integers.
        grid: the crossbars.
        crossbar_rows: X.
        rule: how a weight becomes cells.
        layer: the layer's name, for messages.

    Returns:
        (crossbars, groups, polarity, X, Y); crossbar column_group * row_groups + row_group, the
        positive crossbar of a pair first. Cells without a weight are 0.

    Raises:
        InputError: not integers, not the epitome of the grid, or a weight out of range.
    """
    _check(weights, grid, rule, layer)
    outputs, channels, height, width = weights.shape
    stored = weights.astype(np.int64) + rule.offset
    signs = [np.maximum(stored, 0), np.maximum(-stored, 0)][: rule.polarity]
    per_group = -(-rule.slices // rule.groups)
    count = rule.groups * per_group
    shifts = np.arange(count) * rule.cell_bits
    digits = np.stack(signs)[..., None] >> shifts & ((1 << rule.cell_bits) - 1)
    digits[..., rule.slices :] = 0
    # (polarity, Oe, Ie, He We, groups, slices of a group)
    digits = digits.reshape(len(signs), outputs, channels, height * width, rule.groups, per_group)

    # Rows: channels in row groups, the cells of a channel one after the other.
    own = grid.channels_per_row_group
    rows = np.zeros((*digits.shape[:2], grid.row_groups * own, *digits.shape[3:]), dtype=np.uint8)
    rows[:, :, :channels] = digits
    rows = rows.reshape(len(signs), outputs, grid.row_groups, -1, rule.groups, per_group)

    # Columns: outputs with their packed slices, or the slices in layers one after the other.
    used = grid.columns * (grid.column_groups // grid.layers)
    columns = np.zeros((grid.layers, used, *rows.shape[:1], *rows.shape[2:5]), dtype=np.uint8)
    # (slices, Oe, polarity, row groups, rows, groups)
    sliced = rows.transpose(5, 1, 0, 2, 3, 4)
    if grid.layers == 1 and grid.columns_per_output == per_group:
        packed = sliced.transpose(1, 0, 2, 3, 4, 5).reshape(outputs * per_group, *sliced.shape[2:])
        columns[0, : len(packed)] = packed
    else:
        columns[:, :outputs] = sliced
    columns = columns.reshape(grid.column_groups, grid.columns, *columns.shape[2:])
    cells = columns.transpose(0, 3, 5, 2, 4, 1)
    cells = cells.reshape(-1, *cells.shape[2:])
    result = np.zeros((*cells.shape[:3], crossbar_rows, grid.columns), dtype=np.uint8)
    result[:, :, :, : cells.shape[3]] = cells
    return result


def cell_memory(cells: CellArray, cell_bits: int) -> Memory:
    """The cells (X, Y) of one crossbar as a memory: a word a row, column 0 lowest."""
    fields = (Field("cell", cell_bits),)
    bits = (cells[..., None] >> np.arange(cell_bits)) & 1
    packed = np.packbits(bits.reshape(len(cells), -1).astype(np.uint8), axis=1, bitorder="little")
    words = tuple(int.from_bytes(row.tobytes(), "little") for row in packed)
    return Memory(fields, cells.shape[1], words)


def _check(weights: IntArray, grid: CrossbarGrid, rule: SliceRule, layer: str) -> None:
    field = f"layer {layer}: weights"
    if not np.issubdtype(weights.dtype, np.integer):
        raise InputError(field, f"are {weights.dtype}", "integers", "Quantize the layer.")
    channels = weights.shape[1] if weights.ndim == 4 else 0
    if (
        weights.ndim != 4
        or weights.shape[0] != grid.outputs
        or -(-channels // grid.channels_per_row_group) != grid.row_groups
    ):
        raise InputError(
            field,
            f"have shape {weights.shape}",
            f"(Oe, Ie, He, We) with {grid.outputs} outputs in {grid.row_groups} row groups of "
            f"{grid.channels_per_row_group} channels",
            "Are they the weights of another design?",
        )
    slices_held = grid.layers * grid.columns_per_output
    if slices_held != -(-rule.slices // rule.groups):
        raise InputError(
            field,
            f"take {rule.slices} slices at {rule.weight_bits} bits",
            f"crossbars made for {slices_held} slices a group",
        )
    largest = int(np.abs(weights.astype(np.int64)).max())
    if largest > rule.largest:
        raise InputError(
            field,
            f"got {largest}",
            f"-{rule.largest} to {rule.largest} with {rule.weight_bits} bits",
        )
