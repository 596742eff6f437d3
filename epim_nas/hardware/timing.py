"""Time of the output positions of one layer, by component.

Every position of a layer takes one of four times (first, first column, first row, all others):
they differ only in how much new input there is. Equations: MNSIM 2.0, commit ca39ccb, for dense
layers; ``docs/cost_model.md`` derives what epitomes add.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

from epim_nas.hardware.chip import Chip
from epim_nas.hardware.components import Components
from epim_nas.hardware.mapping import LayerMapping
from epim_nas.hardware.pipeline import Steps
from epim_nas.hardware.placement import Hops
from epim_nas.hardware.sram import access_ns
from epim_nas.network.spec import LayerSpec

POOLING_NS = 100.0
"""Time of one use of the pooling unit (fixed in MNSIM 2.0)."""
ELEMENT_SUM_NS = 10.0
"""Time of one addition in the global accumulator (fixed in MNSIM 2.0)."""


@dataclass(frozen=True)
class LayerTiming:
    """Times of one layer; everything in ns.

    Attributes:
        steps: times of the four kinds of positions.
        sequential: time of all positions, one after the other.
        busy: component -> busy time over all positions, without waiting. As in MNSIM, reading
            the output buffer is in both ``buffer`` and ``tile_merge``.
    """

    steps: Steps
    sequential: float
    busy: dict[str, float]


@dataclass(frozen=True)
class Traffic:
    """Input-buffer times of the four kinds of positions, and how many there are of each."""

    write: Steps
    read: Steps
    counts: tuple[int, int, int, int]


def position_counts(layer: LayerSpec) -> tuple[int, int, int, int]:
    """Positions: first, rest of the first column, rest of the first row, all others."""
    rows, columns = layer.output_size
    return (1, rows - 1, columns - 1, (rows - 1) * (columns - 1))


def _new_inputs(layer: LayerSpec, line_fill: bool) -> tuple[int, int, int, int]:
    """Inputs per channel that a position waits for to be written into the input buffer."""
    extent_h = (layer.kernel[0] - 1) * layer.dilation[0] + 1
    extent_w = (layer.kernel[1] - 1) * layer.dilation[1] + 1
    stride_h, stride_w = layer.stride
    first_h = max(extent_h - layer.padding[0], 0)
    first_w = max(extent_w - layer.padding[1], 0)
    if line_fill:
        line = layer.input_size[1]
        return (
            line * max(first_h - 1, 0) + first_w,
            line * (stride_h - 1) + first_w,
            stride_w,
            stride_w,
        )
    # MNSIM gives a pooling window's first row the traffic of all others.
    first_row = stride_w * (stride_h if layer.type == "pooling" else extent_h)
    return (first_h * first_w, stride_h * first_w, first_row, stride_h * stride_w)


def input_traffic(
    layer: LayerSpec, held: int, active_rows: int, channels: int, rounds: int, bits: int, chip: Chip
) -> Traffic:
    """Input-buffer traffic of one PE.

    Args:
        layer: the layer.
        held: channels that are written into the buffer.
        active_rows: rows that one round drives.
        channels: channels of one round.
        rounds: rounds of a position. With more than one, the input registers hold another
            round's features when the window moves on, so nothing is reused between positions.
        bits: bits of an input.
        chip: the chip.
    """
    bus = chip.buffer.bus_bits
    if layer.type == "fc":
        write = access_ns(held * bits, bus)
        read = rounds * access_ns(active_rows * bits, bus)
        return Traffic((write,) * 4, (read,) * 4, position_counts(layer))
    new = _new_inputs(layer, chip.pipeline.input_fill == "line")
    writes = [access_ns(held * count * bits, bus) for count in new]
    full = rounds * access_ns(active_rows * bits, bus)
    column = full
    if rounds == 1:
        # The window's other columns are still in the registers. MNSIM also counts the columns
        # that a stride larger than the kernel skips.
        column = access_ns(layer.stride[1] * layer.kernel[0] * channels * bits, bus)
    return Traffic(
        (writes[0], writes[1], writes[2], writes[3]),
        (full, full, column, column),
        position_counts(layer),
    )


def time_conv(
    layer: LayerSpec,
    mapping: LayerMapping,
    hops: Hops,
    input_bits: int,
    output_bits: int,
    chip: Chip,
) -> LayerTiming:
    """Times of a ``conv`` or ``fc`` layer."""
    parts = Components.of(chip)
    cycle, bus = parts.cycle_ns, chip.buffer.bus_bits
    rounds, pes = mapping.rounds, mapping.pes_per_tile
    traffic = input_traffic(
        layer,
        mapping.held_channels,
        mapping.active_rows,
        mapping.round_channels,
        rounds,
        input_bits,
        chip,
    )

    row_turns = ceil(mapping.active_rows / parts.dacs)
    column_turns = ceil(mapping.active_columns / parts.adcs_per_subarray)
    activations = ceil(input_bits / parts.dac.bits) * row_turns * column_turns
    levels = ceil(log2(pes))
    sum_bits = parts.adc.bits + levels
    per_round = {
        "DAC": activations * parts.dac.latency_ns,
        "xbar": activations * parts.crossbar_read_ns,
        "ADC": activations * parts.adc.latency_ns,
        "iReg": (row_turns * column_turns + activations) * cycle,
        "shiftreg": activations * cycle,
        "oReg": column_turns * cycle,
        "adder": column_turns * ceil(log2(chip.mapping.groups)) * cycle,
        "input_demux": activations * parts.demux_ns,
        "output_mux": activations * parts.mux_ns,
        "jointmodule": levels * cycle,
        "intra_tile": (parts.pe_levels * sum_bits - levels * (levels + 1) / 2)
        * mapping.active_columns
        / chip.tile.intra_bandwidth_gbps,
    }
    each = {name: value * rounds for name, value in per_round.items()}
    each["accumulator"] = mapping.accumulations * column_turns * cycle
    each["index_table"] = rounds * table_access_ns(mapping, chip)
    partial_sums = access_ns(sum_bits * mapping.active_columns * pes, bus)
    each["output_w"] = rounds * partial_sums
    each["output_r"] = mapping.accumulations * partial_sums
    transfer_bits = mapping.active_columns * output_bits * pes
    each["transfer_r"] = mapping.output_rounds * access_ns(transfer_bits, bus)
    each["tile_merge"] = each["transfer_r"] + hops.inside * mapping.output_rounds * (
        cycle + transfer_bits / chip.mesh.bandwidth_gbps
    )
    each["tile_transfer"] = (
        hops.outside * layer.out_channels * output_bits / chip.mesh.bandwidth_gbps
    )
    each["computing"] = each["DAC"] + each["xbar"] + each["ADC"]
    each["digital"] = sum(
        each[name]
        for name in (
            "iReg",
            "shiftreg",
            "oReg",
            "adder",
            "input_demux",
            "output_mux",
            "jointmodule",
            "accumulator",
        )
    )
    fixed = sum(
        each[name]
        for name in (
            "computing",
            "digital",
            "intra_tile",
            "index_table",
            "output_w",
            "output_r",
            "tile_merge",
            "tile_transfer",
        )
    )
    return _total(each, fixed, traffic)


def table_access_ns(mapping: LayerMapping, chip: Chip) -> float:
    """Time to read the index-table entries of one round.

    With a single round the entries are always the same: they stay in registers.
    """
    if mapping.table_bits == 0 or mapping.rounds == 1:
        return 0.0
    return access_ns(mapping.table_bits, chip.index_table.bus_bits or chip.buffer.bus_bits)


def time_pooling(layer: LayerSpec, hops: Hops, bits: int, chip: Chip) -> LayerTiming:
    """Times of a ``pooling`` layer."""
    channels = layer.in_channels
    window = layer.kernel[0] * layer.kernel[1]
    traffic = input_traffic(layer, channels, channels * window, channels, 1, bits, chip)
    unit, bus = chip.tile.pooling, chip.buffer.bus_bits
    output = access_ns(channels * bits, bus)
    each = {
        "pooling": POOLING_NS
        * ceil(channels / unit.units)
        * ceil(window / (unit.shape[0] * unit.shape[1])),
        "output_w": output,
        "output_r": 0.0,
        "transfer_r": output,
        "tile_merge": output,
        "tile_transfer": hops.outside * channels * bits / chip.mesh.bandwidth_gbps,
    }
    # MNSIM 2.0 charges the read of the output buffer twice here, and in the latency, too.
    fixed = each["pooling"] + 3 * output + each["tile_transfer"]
    return _total(each, fixed, traffic)


def time_element_sum(layer: LayerSpec, hops: Hops, bits: int, chip: Chip) -> LayerTiming:
    """Times of an ``element_sum`` layer."""
    channels = layer.in_channels
    access = access_ns(len(layer.inputs) * bits * channels, chip.buffer.bus_bits)
    transfer = hops.outside * channels * bits / chip.mesh.bandwidth_gbps
    positions = layer.positions
    busy = dict.fromkeys(LATENCY_COMPONENTS, 0.0)
    busy |= {
        "buffer": 2 * access * positions,
        "buffer_r": access * positions,
        "buffer_w": access * positions,
        "digital": ELEMENT_SUM_NS * positions,
        "inter_tile": transfer * positions,
        "tile_transfer": transfer * positions,
    }
    step = ELEMENT_SUM_NS + transfer + 2 * access
    return LayerTiming((step,) * 4, step * positions, busy)


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


def _total(each: dict[str, float], fixed: float, traffic: Traffic) -> LayerTiming:
    """Sum per-position times over the positions of a layer."""
    counts = traffic.counts
    positions = sum(counts)
    busy = dict.fromkeys(LATENCY_COMPONENTS, 0.0)
    for name, value in each.items():
        if name in busy:
            busy[name] = value * positions
    reads = sum(count * value for count, value in zip(counts, traffic.read, strict=True))
    writes = sum(count * value for count, value in zip(counts, traffic.write, strict=True))
    busy["buffer_r"] = reads + (each["output_r"] + each["transfer_r"]) * positions
    busy["buffer_w"] = writes + each["output_w"] * positions
    busy["buffer"] = busy["buffer_r"] + busy["buffer_w"]
    busy["inter_tile"] = busy["tile_merge"] + busy["tile_transfer"]
    steps = (
        traffic.write[0] + traffic.read[0] + fixed,
        traffic.write[1] + traffic.read[1] + fixed,
        traffic.write[2] + traffic.read[2] + fixed,
        traffic.write[3] + traffic.read[3] + fixed,
    )
    return LayerTiming(steps, reads + writes + fixed * positions, busy)
