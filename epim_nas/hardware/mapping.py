"""Mapping of one layer's weight (dense or epitome) onto crossbars.

Equations: MNSIM 2.0, commit ca39ccb, for dense layers; ``docs/cost_model.md`` derives the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import ceil

from epim_nas.epitome.design import FLOAT_BITS, Choice
from epim_nas.epitome.plan import SamplingPlan
from epim_nas.epitome.quantization.options import CrossbarBlock, Quantization, QuantizationRule
from epim_nas.errors import InputError
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.index_table import TableEntry, needs_table
from epim_nas.hardware.schedule import CrossbarGrid, SlotClass, schedule
from epim_nas.network.spec import LayerSpec


@dataclass(frozen=True)
class LayerMapping:
    """Where the weight of one layer lies, and what one output position activates.

    A crossbar here is a processing element (PE): a positive/negative pair, or a group, counts as
    one. A position takes ``rounds`` activation rounds in ``sum(slots)`` time slots: rounds that
    share a crossbar are serial, rounds on disjoint crossbars share a slot. A dense layer has one
    round that activates everything it holds.

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
        held_channels: input channels that a crossbar needs for all rounds of a position, at most.
        stored_channels: input channels in all row groups' buffers, counted once for each group.
        rounds: activation rounds of one output position.
        replicas: output channels of a position that are copies of computed ones.
        table_bits: bits that the index tables of a tile deliver for one slot, 0 without table.
        utilization: cells that hold a weight / cells.
        slots: the time slots of one output position.
        input_slabs: input slabs that are summed before they drive the rows, 1 for none.
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
    held_channels: int
    stored_channels: int
    rounds: int
    replicas: int
    table_bits: int
    utilization: float
    slots: tuple[SlotClass, ...]
    input_slabs: int = 1

    @property
    def slot_count(self) -> int:
        """Time slots of one output position."""
        return sum(slot.count for slot in self.slots)


NO_MAPPING = LayerMapping(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, ())
"""The mapping of an ``element_sum``: it has no tile."""

POOLING_MAPPING = replace(NO_MAPPING, row_groups=1, column_groups=1, tiles=1, pes_per_tile=1)
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
    plan = mapped_plan(layer, choice, chip)
    # A grouped convolution kept dense stores the zeros outside of its blocks.
    weights = plan.shape.size if choice.shape is not None else plan.shape.size // layer.groups
    return map_plan(plan, choice.weight_bits, weights, chip)


def mapped_plan(layer: LayerSpec, choice: Choice, chip: Chip) -> SamplingPlan:
    """The plan of what is stored on the crossbars, of a layer with a weight.

    A grouped convolution kept dense is mapped as a dense one, as in MNSIM: one patch, with zeros
    outside of its blocks.

    Raises:
        InputError: the epitome does not fit the layer, or a kernel does not fit a crossbar.
    """
    if choice.shape is not None:
        plan = choice.plan(layer)
    else:
        plan = _identity((layer.out_channels, layer.in_channels, *layer.kernel))
    rows_of_a_channel = plan.shape.height * plan.shape.width
    if rows_of_a_channel > chip.crossbar.rows:
        raise InputError(
            f"layer {layer.name}",
            f"one input channel takes {rows_of_a_channel} rows, a crossbar of {chip.name} has "
            f"{chip.crossbar.rows}",
            f"at most {chip.crossbar.rows} rows a channel (kernel or epitome height * width)",
            "Use larger crossbars (`crossbar.rows`), or a smaller kernel or epitome.",
        )
    channels = plan.shape.in_channels
    row_groups = ceil(channels / (chip.crossbar.rows // rows_of_a_channel))
    if row_groups * plan.conv_shape[1] > _MOST_FETCHED:
        raise InputError(
            f"layer {layer.name}",
            f"its {plan.conv_shape[1]} input channels lie on {row_groups} crossbars along the rows",
            f"a product of both of at most {_MOST_FETCHED}",
            "Use larger crossbars (`crossbar.rows`), or fewer input channels.",
        )
    return plan


_MOST_FETCHED = 2**32
"""Input channels times row groups, whose product is the bits of a table that is made."""


@lru_cache(maxsize=1024)
def _identity(weight_shape: tuple[int, int, int, int]) -> SamplingPlan:
    return SamplingPlan.identity(weight_shape)


def crossbar_grid(plan: SamplingPlan, weight_bits: int | None, chip: Chip) -> CrossbarGrid:
    """How the epitome of a plan is cut into crossbars.

    Args:
        plan: the sampling plan; the identity plan is a dense layer.
        weight_bits: bits of a weight, None for 32-bit floating point.
        chip: the chip, with at least as many rows as one input channel takes.
    """
    shape = plan.shape
    channels = channels_filling_rows(1, shape.height, shape.width, chip)
    columns_per_output, layers = _output_columns(weight_bits, chip)
    return CrossbarGrid(
        row_groups=ceil(shape.in_channels / channels),
        channels_per_row_group=channels,
        columns=chip.crossbar.columns,
        columns_per_output=columns_per_output,
        layers=layers,
        outputs=shape.out_channels,
        pes=chip.tile.pes[0] * chip.tile.pes[1],
    )


def _output_columns(weight_bits: int | None, chip: Chip) -> tuple[int, int]:
    """Neighbouring columns of an output channel, and crossbars that hold its further slices."""
    per_group = ceil(bit_slices(weight_bits, chip) / chip.mapping.groups)
    return (per_group, 1) if chip.mapping.packing == "packed" else (1, per_group)


def channels_filling_rows(crossbars: int, height: int, width: int, chip: Chip) -> int:
    """The most input channels of an epitome that take at most so many crossbars along the rows.

    The rows of a channel lie on one crossbar, so each crossbar holds floor(rows / (He * We))
    channels; its last rows may stay empty.

    Args:
        crossbars: crossbars along the rows.
        height: height He of the epitome.
        width: width We of the epitome.
        chip: the chip.

    Returns:
        Input channels, 0 where one does not fit a crossbar.
    """
    return crossbars * (chip.crossbar.rows // (height * width))


def outputs_filling_columns(crossbars: int, weight_bits: int | None, chip: Chip) -> int:
    """The most output channels that take at most so many crossbars along the columns.

    These crossbars hold all slices of the weights, as in :attr:`CrossbarGrid.column_groups`.

    Args:
        crossbars: crossbars along the columns, for all slices.
        weight_bits: bits of a weight, None for 32-bit floating point.
        chip: the chip.

    Returns:
        Output channels, 0 where the slices of one take more crossbars.
    """
    columns_per_output, layers = _output_columns(weight_bits, chip)
    return crossbars // layers * chip.crossbar.columns // columns_per_output


@lru_cache(maxsize=65536)
def map_plan(plan: SamplingPlan, weight_bits: int | None, weights: int, chip: Chip) -> LayerMapping:
    """The mapping of a plan's epitome.

    Args:
        plan: the sampling plan; the identity plan is a dense layer.
        weight_bits: bits of a weight, None for 32-bit floating point.
        weights: cells' worth of weights that are stored, without zeros that only fill up.
        chip: the chip.
    """
    size, shape = chip.crossbar, plan.shape
    slices = bit_slices(weight_bits, chip)
    grid = crossbar_grid(plan, weight_bits, chip)
    crossbars = grid.row_groups * grid.column_groups
    pes_per_tile = min(crossbars, grid.pes)
    found = schedule(plan, grid)
    # Rounds in one slot fetch other features each: then every PE has entries of its own.
    entry = TableEntry.of(plan, grid, size.rows, found.parallel)
    cells_on_crossbars = crossbars * size.rows * size.columns * chip.mapping.groups
    return LayerMapping(
        slices=slices,
        row_groups=grid.row_groups,
        column_groups=grid.column_groups,
        crossbars=crossbars,
        groups=min(slices, chip.mapping.groups),
        tiles=-(-crossbars // grid.pes),
        pes_per_tile=pes_per_tile,
        rows=min(grid.channels_per_row_group, shape.in_channels) * shape.height * shape.width,
        columns=min(shape.out_channels * grid.columns_per_output, size.columns),
        held_channels=found.held_channels,
        stored_channels=found.stored_channels,
        rounds=plan.rounds,
        # A last, partial slab has fewer copies than the others.
        replicas=plan.conv_shape[0]
        - sum(turn.out_channels for turn in plan.round_sequence if turn.opens),
        table_bits=entry.bits if needs_table(plan) else 0,
        utilization=weights * slices / cells_on_crossbars,
        slots=found.slots,
        input_slabs=plan.summed_slabs,
    )


def crossbar_granularity(plan: SamplingPlan, weight_bits: int | None, chip: Chip) -> CrossbarBlock:
    """The epitome channels that share a crossbar, and with it a quantization step.

    Slices of an output that lie on further crossbars (``sliced``) share the step of the first.

    Args:
        plan: the layer's sampling plan.
        weight_bits: bits of a weight, None for 32-bit floating point.
        chip: the chip.

    Raises:
        InputError: one input channel of the epitome has more rows than a crossbar.
    """
    rows = plan.shape.height * plan.shape.width
    if rows > chip.crossbar.rows:
        raise InputError(
            "epitome",
            f"one input channel takes {rows} rows, a crossbar of {chip.name} has "
            f"{chip.crossbar.rows}",
            f"at most {chip.crossbar.rows} rows a channel (epitome height * width)",
        )
    grid = crossbar_grid(plan, weight_bits, chip)
    in_channels = grid.channels_per_row_group
    if plan.is_identity and plan.groups > 1:
        # Kept dense it is stored with the zeros outside of its blocks (:func:`mapped_plan`), where
        # groups begin anywhere on a crossbar: all crossbars of the same columns share a step. The
        # plan does not say whether it is, or is stored without the zeros; one rule serves both.
        in_channels = plan.shape.in_channels
    return CrossbarBlock(
        in_channels=in_channels,
        columns=grid.columns,
        columns_per_output=grid.columns_per_output,
    )


def quantized_by_crossbar(options: Quantization, chip: Chip) -> QuantizationRule:
    """``options`` with a quantization step for each crossbar of ``chip``, for every layer."""
    return partial(_on_crossbars, options, chip)


def _on_crossbars(
    options: Quantization, chip: Chip, plan: SamplingPlan, weight_bits: int | None
) -> Quantization:
    block = crossbar_granularity(plan, weight_bits, chip)
    return replace(options, granularity="crossbar", block=block)
