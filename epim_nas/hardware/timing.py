"""Time of the output positions of the layers, by component.

Every position of a layer takes one of four times (first, first column, first row, all others):
they differ only in how much new input there is. Equations: MNSIM 2.0, commit ca39ccb, for dense
layers; ``docs/cost_model.md`` derives what epitomes add. All are written over arrays of
(..., layers), see ``ops``; slots of a position have an axis of their own before (K, ..., layers).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, log2
from typing import NamedTuple

from epim_nas.hardware.chip import Chip
from epim_nas.hardware.components import Components
from epim_nas.hardware.geometry import LayerArrays
from epim_nas.hardware.mapping_arrays import MappingArrays
from epim_nas.hardware.ops import Array, Ops
from epim_nas.hardware.sram import CYCLE_NS

POOLING_NS = 100.0
"""Time of one use of the pooling unit (fixed in MNSIM 2.0)."""
ELEMENT_SUM_NS = 10.0
"""Time of one addition in the global accumulator (fixed in MNSIM 2.0)."""

LATENCY_COMPONENTS = (
    "buffer",
    "computing",
    "DAC",
    "xbar",
    "ADC",
    "digital",
    "intra_tile",
    "inter_tile",
    "tile_merge",
    "tile_transfer",
    "iReg",
    "oReg",
    "input_demux",
    "output_mux",
    "shiftreg",
    "adder",
    "accumulator",
    "jointmodule",
    "pooling",
    "buffer_r",
    "buffer_w",
    "index_table",
)
"""Keys of every layer's latency breakdown."""

DIGITAL_STEPS = (
    "iReg",
    "shiftreg",
    "oReg",
    "adder",
    "input_demux",
    "output_mux",
    "jointmodule",
    "accumulator",
)
"""What is summed to ``digital``."""


class Hops(NamedTuple):
    """Hops of the layers' data, (..., layers), or of one layer.

    Attributes:
        inside: from a layer's tiles to the one that aggregates (``d_in``).
        outside: from that tile to the consumers (``d_out``).
    """

    inside: Array
    outside: Array


class DataBits(NamedTuple):
    """Bits of the layers' data, (..., layers): what they read and what they write."""

    inputs: Array
    outputs: Array


class Turns(NamedTuple):
    """What one slot does, (K, ..., layers).

    Attributes:
        rows: turns of the DACs over the active rows.
        columns: turns of the ADCs over the active columns.
        activations: crossbar reads: input cycles x row turns x column turns.
        partial_words: bus words of the slot's partial sums.
        input_words: bus words of the slot's input features, of one PE.
        transfer_words: bus words of finished results.
    """

    rows: Array
    columns: Array
    activations: Array
    partial_words: Array
    input_words: Array
    transfer_words: Array


@dataclass(frozen=True)
class Timing:
    """Times of layers; everything in ns.

    Attributes:
        busy: component -> (..., layers) busy time over all positions, without waiting. As in
            MNSIM, reading the output buffer is in both ``buffer`` and ``tile_merge``. Components
            that are missing take no time.
        steps: (4, ..., layers) times of the four kinds of positions.
        sequential: (..., layers) time of all positions, one after the other.
        reads: (..., layers) bus words read from the buffers of a tile's PEs and the tile, weighted
            with the tiles that read them, over all positions.
        writes: likewise written.
        counts: name -> (..., layers) events over all positions, see :data:`COUNTS`.
        turns: what one slot does; only of layers with weights.
    """

    busy: dict[str, Array]
    steps: Array
    sequential: Array
    reads: Array
    writes: Array
    counts: dict[str, Array] = field(default_factory=dict)
    turns: Turns | None = None


COUNTS = (
    "activations",
    "dac_conversions",
    "adc_conversions",
    "input_reads",
    "input_writes",
    "output_reads",
    "output_writes",
    "table_reads",
)
"""Countable events of a layer: what the functional simulator counts as well.

``activations`` are reads of a crossbar (a pair or group counts as one), conversions those of
single converters. Tiles are clocked as a whole: every PE of an active tile counts, as its energy is
charged. Reads and writes are bus words of one buffer; the buffers of a layer work in step.
"""


def time_weighted(
    ops: Ops,
    chip: Chip,
    layers: LayerArrays,
    mapping: MappingArrays,
    hops: Hops,
    bits: DataBits,
) -> Timing:
    """Times of layers with weights."""
    parts = Components.of(chip)
    cycle, bus, slots = parts.cycle_ns, chip.buffer.bus_bits, mapping.slots
    pes, tiles = mapping.pes, mapping.active_tiles
    levels = ops.log2_ceil(pes)
    sum_bits = parts.adc.bits + levels
    turns = _turns(ops, chip, mapping, bits, sum_bits)
    column_turns = (slots * turns.columns).sum(0)
    activations = (slots * turns.activations).sum(0)

    each = {
        "DAC": activations * parts.dac.latency_ns,
        "xbar": activations * parts.crossbar_read_ns,
        "ADC": activations * parts.adc.latency_ns,
        "iReg": ((slots * turns.rows * turns.columns).sum(0) + activations) * cycle,
        "shiftreg": activations * cycle,
        "oReg": column_turns * cycle,
        "adder": column_turns * ceil(log2(chip.mapping.groups)) * cycle,
        "input_demux": activations * parts.demux_ns,
        "output_mux": activations * parts.mux_ns,
        "jointmodule": mapping.slot_count * levels * cycle,
        "intra_tile": (parts.pe_levels * sum_bits - levels * (levels + 1) / 2)
        * (slots * mapping.active_columns).sum(0)
        / chip.tile.intra_bandwidth_gbps,
        # Partial sums behind the ADCs, and wrapped input slabs in front of the DACs.
        "accumulator": (
            (mapping.accumulating * turns.columns).sum(0)
            + (slots * turns.rows).sum(0) * (mapping.input_slabs - 1)
        )
        * cycle,
    }
    # With a single slot the entry is always the same: it stays in registers.
    table_bus = chip.index_table.bus_bits or bus
    several = mapping.slot_count > 1
    table_words = mapping.slot_count * ops.ceil(mapping.table_bits / table_bus)
    table_words = ops.where(several, table_words, 0.0 * table_words)
    each["index_table"] = table_words * CYCLE_NS

    replica_words = ops.ceil(mapping.replicas * bits.outputs / mapping.tiles / bus)
    written = (slots * turns.partial_words).sum(0) + replica_words
    accumulated = (mapping.accumulating * turns.partial_words).sum(0)
    transferred = (mapping.emitting * turns.transfer_words).sum(0)
    merged_bits = (mapping.emitting * mapping.active_columns).sum(0) * bits.outputs * pes
    each["tile_merge"] = transferred * CYCLE_NS + hops.inside * (
        mapping.emitting.sum(0) * cycle + merged_bits / chip.mesh.bandwidth_gbps
    )
    each["tile_transfer"] = (
        hops.outside * layers.out_channels * bits.outputs / chip.mesh.bandwidth_gbps
    )

    new_words = _new_words(ops, layers, mapping.held_channels, bits.inputs, bus)
    window = (slots * turns.input_words).sum(0)
    # The window's other columns are still in the registers if no other slot came between. MNSIM
    # also counts the columns that a stride larger than the kernel skips.
    round_channels = mapping.fetched_inputs[0] / layers.kernel_area
    column = ops.ceil(
        layers.column_stride * layers.kernel_height * round_channels * bits.inputs / bus
    )
    column = ops.where(several | layers.is_fc, window, column)
    read_words = (window, window, column, column)

    each["computing"] = each["DAC"] + each["xbar"] + each["ADC"]
    each["digital"] = sum(each[name] for name in DIGITAL_STEPS)
    fixed = (
        each["computing"]
        + each["digital"]
        + each["intra_tile"]
        + each["index_table"]
        + each["tile_merge"]
        + each["tile_transfer"]
        + (written + accumulated) * CYCLE_NS
    )
    positions = layers.positions
    # Words of all buffers: a slot reads and writes in its active tiles, inputs and replicas are
    # written in all tiles.
    tile_window = (slots * turns.input_words * tiles).sum(0)
    tile_column = ops.where(several | layers.is_fc, tile_window, column * tiles[0])
    reads = (
        _over_positions(layers, (tile_window, tile_window, tile_column, tile_column))
        + (mapping.accumulating * turns.partial_words * tiles).sum(0) * positions
        + (mapping.emitting * turns.transfer_words * tiles).sum(0) * positions
    )
    writes = (
        _over_positions(layers, new_words) * mapping.tiles
        + (slots * turns.partial_words * tiles).sum(0) * positions
        + replica_words * mapping.tiles * positions
    )
    input_reads = _over_positions(layers, read_words)
    input_writes = _over_positions(layers, new_words)
    output_reads = (accumulated + transferred) * positions
    output_writes = written * positions
    elements = tiles * pes * mapping.groups * turns.activations * slots
    counts = {
        "activations": (tiles * pes * turns.activations * slots).sum(0) * positions,
        "dac_conversions": (elements * ops.ceil(mapping.active_rows / parts.demux_ratio)).sum(0)
        * positions,
        "adc_conversions": (elements * ops.ceil(mapping.active_columns / parts.mux_ratio)).sum(0)
        * positions,
        "input_reads": input_reads,
        "input_writes": input_writes,
        "output_reads": output_reads,
        "output_writes": output_writes,
        "table_reads": table_words * positions,
    }
    busy = {name: value * positions for name, value in each.items()}
    busy["buffer_r"] = (input_reads + output_reads) * CYCLE_NS
    busy["buffer_w"] = (input_writes + output_writes) * CYCLE_NS
    steps, sequential = _steps(ops, layers, new_words, read_words, fixed)
    return Timing(_summed(busy), steps, sequential, reads, writes, counts, turns)


def _turns(ops: Ops, chip: Chip, mapping: MappingArrays, bits: DataBits, sum_bits: Array) -> Turns:
    parts, bus = Components.of(chip), chip.buffer.bus_bits
    rows = ops.ceil(mapping.active_rows / parts.dacs)
    columns = ops.ceil(mapping.active_columns / parts.adcs_per_subarray)
    held = mapping.active_columns * mapping.pes
    # The sum of k inputs of b bits has up to b + ceil(log2 k).
    driven_bits = bits.inputs + ops.log2_ceil(mapping.input_slabs)
    return Turns(
        rows=rows,
        columns=columns,
        activations=ops.ceil(driven_bits / parts.dac.bits) * rows * columns,
        partial_words=ops.ceil(sum_bits * held / bus),
        input_words=ops.ceil(mapping.fetched_inputs * bits.inputs / bus),
        transfer_words=ops.ceil(held * bits.outputs / bus),
    )


def time_pooling(ops: Ops, chip: Chip, layers: LayerArrays, hops: Hops, bits: Array) -> Timing:
    """Times of ``pooling`` layers."""
    unit, bus, channels = chip.tile.pooling, chip.buffer.bus_bits, layers.in_channels
    new_words = _new_words(ops, layers, channels, bits, bus)
    window = ops.ceil(channels * layers.kernel_area * bits / bus)
    column = ops.ceil(layers.column_stride * layers.kernel_height * channels * bits / bus)
    read_words = (window, window, column, column)
    output = ops.ceil(channels * bits / bus)
    each = {
        "pooling": POOLING_NS
        * ops.ceil(channels / unit.units)
        * ops.ceil(layers.kernel_area / (unit.shape[0] * unit.shape[1]))
        + 0.0 * bits,
        "tile_merge": output * CYCLE_NS,
        "tile_transfer": hops.outside * channels * bits / chip.mesh.bandwidth_gbps,
    }
    # MNSIM 2.0 charges the read of the output buffer twice here, and in the latency, too.
    fixed = each["pooling"] + 3 * output * CYCLE_NS + each["tile_transfer"]
    busy = {name: value * layers.positions for name, value in each.items()}
    reads = _over_positions(layers, read_words) + output * layers.positions
    writes = _over_positions(layers, new_words) + output * layers.positions
    busy["buffer_r"], busy["buffer_w"] = reads * CYCLE_NS, writes * CYCLE_NS
    steps, sequential = _steps(ops, layers, new_words, read_words, fixed)
    counts = {
        "input_reads": _over_positions(layers, read_words),
        "input_writes": _over_positions(layers, new_words),
        "output_reads": output * layers.positions,
        "output_writes": output * layers.positions,
    }
    return Timing(_summed(busy), steps, sequential, reads, writes, counts)


def time_sums(ops: Ops, chip: Chip, layers: LayerArrays, hops: Hops, bits: Array) -> Timing:
    """Times of ``element_sum`` layers, in the global accumulator."""
    words = ops.ceil(layers.inputs * bits * layers.in_channels / chip.buffer.bus_bits)
    transfer = hops.outside * layers.in_channels * bits / chip.mesh.bandwidth_gbps
    step = ELEMENT_SUM_NS + transfer + 2 * words * CYCLE_NS
    positions = layers.positions
    busy = {
        "buffer_r": words * CYCLE_NS * positions,
        "buffer_w": words * CYCLE_NS * positions,
        "digital": ELEMENT_SUM_NS * positions + 0.0 * bits,
        "tile_transfer": transfer * positions,
    }
    none = 0.0 * words
    return Timing(_summed(busy), ops.stack([step] * 4), step * positions, none, none)


def _new_words(
    ops: Ops, layers: LayerArrays, channels: Array, bits: Array, bus: int
) -> tuple[Array, Array, Array, Array]:
    """Bus words that are written into a PE's input buffer, of the four kinds of positions."""
    first, first_column, first_row, other = (
        ops.ceil(channels * new * bits / bus) for new in layers.new_inputs
    )
    return first, first_column, first_row, other


def _over_positions(layers: LayerArrays, words: tuple[Array, Array, Array, Array]) -> Array:
    return sum(count * value for count, value in zip(layers.counts, words, strict=True))


def _steps(
    ops: Ops,
    layers: LayerArrays,
    new_words: tuple[Array, Array, Array, Array],
    read_words: tuple[Array, Array, Array, Array],
    fixed: Array,
) -> tuple[Array, Array]:
    """Times of the four kinds of positions, and their sum over all positions."""
    traffic = [(new + read) * CYCLE_NS for new, read in zip(new_words, read_words, strict=True)]
    steps = ops.stack([time + fixed for time in traffic])
    moved = sum(count * time for count, time in zip(layers.counts, traffic, strict=True))
    return steps, moved + fixed * layers.positions


def _summed(busy: dict[str, Array]) -> dict[str, Array]:
    busy["buffer"] = busy["buffer_r"] + busy["buffer_w"]
    busy["inter_tile"] = busy.get("tile_merge", 0.0) + busy["tile_transfer"]
    return busy
