"""Mapping of one layer's weight (dense or epitome) onto crossbars.

Equations: MNSIM 2.0, commit ca39ccb, for dense layers; ``docs/cost_model.md`` derives the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

from epim_nas.epitome.design import FLOAT_BITS, Choice
from epim_nas.epitome.plan import SamplingPlan
from epim_nas.errors import InputError
from epim_nas.hardware.chip import Chip
from epim_nas.network.spec import LayerSpec


@dataclass(frozen=True)
class LayerMapping:
    """Where the weight of one layer lies, and what one output position activates.

    A dense layer has one round that activates everything it holds. A crossbar here is a
    processing element (PE): a positive/negative pair, or a group, counts as one.

    Attributes:
        slices: bit slices of a weight.
        row_groups: crossbars along the rows.
        column_groups: crossbars along the columns, for all slices.
        crossbars: row_groups * column_groups.
        groups: crossbar groups of a PE that hold something.
        tiles: tiles occupied.
        pes_per_tile: PEs used in a tile (of the fullest).
        rows: rows of a crossbar that hold weights.
        columns: columns of a crossbar that hold weights.
        active_rows: rows of a crossbar that one round drives.
        active_columns: columns of a crossbar that one round converts.
        held_channels: input channels that a crossbar needs for all rounds of a position.
        round_channels: input channels that a crossbar needs for one round.
        rounds: activation rounds of one output position.
        output_rounds: rounds that begin a new output slab; each has its results read once.
        activity: mean part of the crossbars that a round activates.
        table_bits: bits that the index tables of a tile deliver for one round, 0 without table.
        utilization: cells that hold a weight / cells.
    """

    slices: int
    row_groups: int
    column_groups: int
    crossbars: int
    groups: int
    tiles: int
    pes_per_tile: int
    rows: int
    columns: int
    active_rows: int
    active_columns: int
    held_channels: int
    round_channels: int
    rounds: int
    output_rounds: int
    activity: float
    table_bits: int
    utilization: float

    @property
    def accumulations(self) -> int:
        """Rounds of a position that add to a partial sum already in the output buffer."""
        return self.rounds - self.output_rounds


NO_MAPPING = LayerMapping(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0, 0.0)
"""The mapping of an ``element_sum``: it has no tile."""

POOLING_MAPPING = LayerMapping(0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0, 0.0)
"""The mapping of a pooling layer: one tile, no crossbar."""


def bit_slices(weight_bits: int | None, chip: Chip) -> int:
    """Cells that one weight takes: S = ceil((b - 1) / cell_bits), or ceil(b / cell_bits).

    The sign of a weight costs no slice where a positive/negative pair carries it.

    Args:
        weight_bits: bits of a weight, None for 32-bit floating point.
        chip: the chip.
    """
    bits = FLOAT_BITS if weight_bits is None else weight_bits
    magnitude = bits - 1 if chip.mapping.polarity == 2 else bits
    return max(1, -(-magnitude // chip.mapping.cell_bits))


def map_layer(layer: LayerSpec, choice: Choice, chip: Chip) -> LayerMapping:
    """The mapping of a layer.

    Args:
        layer: any layer; those without weights have a fixed mapping.
        choice: what the layer is made of.
        chip: the chip.

    Raises:
        InputError: the epitome does not fit the layer, or a kernel does not fit a crossbar.
    """
    if layer.type == "element_sum":
        return NO_MAPPING
    if layer.type == "pooling":
        return POOLING_MAPPING
    if choice.shape is None:
        return _map_dense(layer, choice.weight_bits, chip)
    plan = choice.plan(layer)
    if plan.is_identity and layer.groups == 1:
        return _map_dense(layer, choice.weight_bits, chip)
    return _map_epitome(layer, plan, choice.weight_bits, chip)


@dataclass(frozen=True)
class _Matrix:
    """A weight tensor (outputs, channels, cells per channel) cut into crossbars."""

    channels_per_crossbar: int
    row_groups: int
    column_groups: int
    slices: int
    groups: int
    outputs_per_crossbar: int


def _cut(
    layer: LayerSpec, channels: int, cells: int, outputs: int, weight_bits: int | None, chip: Chip
) -> _Matrix:
    size, mapping = chip.crossbar, chip.mapping
    per_crossbar = size.rows // cells
    if per_crossbar == 0:
        raise InputError(
            f"layer {layer.name}",
            f"one input channel takes {cells} rows, a crossbar of {chip.name} has {size.rows}",
            f"at most {size.rows} rows a channel (kernel or epitome height * width)",
            "Use larger crossbars (`crossbar.rows`), or a smaller kernel or epitome.",
        )
    slices = bit_slices(weight_bits, chip)
    per_group = ceil(slices / mapping.groups)
    if mapping.packing == "packed":
        column_groups = ceil(outputs * per_group / size.columns)
        outputs_per_crossbar = max(1, size.columns // per_group)
    else:
        column_groups = per_group * ceil(outputs / size.columns)
        outputs_per_crossbar = size.columns
    return _Matrix(
        per_crossbar,
        ceil(channels / per_crossbar),
        column_groups,
        slices,
        min(slices, mapping.groups),
        min(outputs, outputs_per_crossbar),
    )


def _columns(outputs: int, matrix: _Matrix, chip: Chip) -> int:
    """Columns that ``outputs`` channels occupy in a crossbar."""
    packed = chip.mapping.packing == "packed"
    per_output = ceil(matrix.slices / chip.mapping.groups) if packed else 1
    return min(outputs * per_output, chip.crossbar.columns)


def _utilization(weights: int, matrix: _Matrix, chip: Chip) -> float:
    cells = matrix.row_groups * matrix.column_groups * chip.crossbar.rows * chip.crossbar.columns
    return weights * matrix.slices / (cells * chip.mapping.groups)


def _map_dense(layer: LayerSpec, weight_bits: int | None, chip: Chip) -> LayerMapping:
    # A grouped convolution is mapped as a dense one, with zeros outside of its blocks.
    if layer.type == "fc":
        # Features are single rows: a crossbar is filled to its last row.
        channels, cells = layer.in_channels, 1
    else:
        channels, cells = layer.in_channels, layer.kernel[0] * layer.kernel[1]
    matrix = _cut(layer, channels, cells, layer.out_channels, weight_bits, chip)
    crossbars = matrix.row_groups * matrix.column_groups
    held = min(matrix.channels_per_crossbar, channels)
    columns = _columns(layer.out_channels, matrix, chip)
    pes = chip.tile.pes[0] * chip.tile.pes[1]
    weights = layer.out_channels * channels * cells // layer.groups
    return LayerMapping(
        slices=matrix.slices,
        row_groups=matrix.row_groups,
        column_groups=matrix.column_groups,
        crossbars=crossbars,
        groups=matrix.groups,
        tiles=-(-crossbars // pes),
        pes_per_tile=min(crossbars, pes),
        rows=held * cells,
        columns=columns,
        active_rows=held * cells,
        active_columns=columns,
        held_channels=held,
        round_channels=held,
        rounds=1,
        output_rounds=1,
        activity=1.0,
        table_bits=0,
        utilization=_utilization(weights, matrix, chip),
    )


def _map_epitome(
    layer: LayerSpec, plan: SamplingPlan, weight_bits: int | None, chip: Chip
) -> LayerMapping:
    shape, (patch_out, patch_in) = plan.shape, plan.patch
    cells = shape.height * shape.width
    kernel = layer.kernel[0] * layer.kernel[1]
    matrix = _cut(layer, shape.in_channels, cells, shape.out_channels, weight_bits, chip)
    crossbars = matrix.row_groups * matrix.column_groups
    pes = chip.tile.pes[0] * chip.tile.pes[1]
    pes_per_tile = min(crossbars, pes)
    round_channels = min(matrix.channels_per_crossbar, patch_in)
    # Which PEs share a tile is not modelled: each may hold other rows, as far as there are any.
    row_groups_per_tile = min(pes_per_tile, matrix.row_groups)
    out_channels = min(patch_out, chip.crossbar.columns)
    table_bits = row_groups_per_tile * round_channels * (
        _address_bits(layer.in_channels) + _address_bits(chip.crossbar.rows)
    ) + out_channels * _address_bits(layer.out_channels)
    return LayerMapping(
        slices=matrix.slices,
        row_groups=matrix.row_groups,
        column_groups=matrix.column_groups,
        crossbars=crossbars,
        groups=matrix.groups,
        tiles=-(-crossbars // pes),
        pes_per_tile=pes_per_tile,
        rows=min(matrix.channels_per_crossbar, shape.in_channels) * cells,
        columns=_columns(shape.out_channels, matrix, chip),
        active_rows=round_channels * kernel,
        active_columns=_columns(patch_out, matrix, chip),
        held_channels=_held_channels(plan, round_channels),
        round_channels=round_channels,
        rounds=plan.rounds,
        output_rounds=plan.rounds // plan.in_slabs,
        activity=_activity(plan, matrix),
        table_bits=table_bits,
        utilization=_utilization(shape.size, matrix, chip),
    )


def _address_bits(count: int) -> int:
    return max(1, ceil(log2(count)))


def _held_channels(plan: SamplingPlan, round_channels: int) -> int:
    """Input channels that one crossbar sees over all rounds of a position.

    A crossbar holds ``round_channels`` of the Ip channels of a patch. With every rotation of the
    assignment other input channels fall on its rows.
    """
    rotations: dict[int, set[int]] = {}
    for patch in plan.patches:
        rotations.setdefault(patch.target_in, set()).add(patch.rotation)
    per_group = sum(min(plan.patch[1], round_channels * len(found)) for found in rotations.values())
    return min(per_group, plan.conv_shape[1]) * plan.groups


def _activity(plan: SamplingPlan, matrix: _Matrix) -> float:
    """Mean part of the crossbars that hold a patch's rows and columns."""
    patch_out, patch_in = plan.patch
    total = 0.0
    for patch in plan.patches:
        rows = _spanned(patch.source_in, patch_in, matrix.channels_per_crossbar)
        columns = _spanned(patch.source_out, patch_out, matrix.outputs_per_crossbar)
        all_columns = -(-plan.shape.out_channels // matrix.outputs_per_crossbar)
        total += rows * columns / (matrix.row_groups * all_columns)
    return total / len(plan.patches)


def _spanned(start: int, count: int, size: int) -> int:
    """Blocks of ``size`` that the range start .. start + count touches."""
    return (start + count - 1) // size - start // size + 1
