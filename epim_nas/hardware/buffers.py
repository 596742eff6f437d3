"""Sizes of the buffers and of the index tables, and the SRAM arrays that hold them.

The buffers of all PEs and all tiles are as large as the most demanding layer needs. Equations:
MNSIM 2.0, commit ca39ccb; index tables and epitomes: ``docs/cost_model.md``, sections 5 and 8.
"""

from __future__ import annotations

from typing import NamedTuple

from epim_nas.hardware.chip import Chip
from epim_nas.hardware.geometry import LayerArrays
from epim_nas.hardware.mapping_arrays import MappingArrays
from epim_nas.hardware.ops import Array, Ops
from epim_nas.hardware.sram import Sram, SramTable
from epim_nas.hardware.timing import DataBits


class BufferSizes(NamedTuple):
    """KB of the input buffer of every PE and of the output buffer of every tile."""

    pe_input_kb: Array
    tile_output_kb: Array


class Memories(NamedTuple):
    """The buffers of a chip that is sized for one design; (..., 1) for a batch of designs."""

    inputs: Sram
    outputs: Sram


def needed_sizes(
    ops: Ops, layers: LayerArrays, mapping: MappingArrays, bits: DataBits
) -> BufferSizes:
    """What every layer with weights needs, (..., layers): its lines of input, its outputs twice.

    The lines of all input channels are spread over the crossbars; with an epitome of fewer
    crossbars each holds more of them, and channels that several row groups see are stored several
    times. Outputs are buffered twice (ping-pong).
    """
    inputs = layers.line_inputs * mapping.stored_channels * bits.inputs / 8
    outputs = layers.out_channels * bits.outputs / 8
    return BufferSizes(
        ops.power_of_two(inputs / mapping.crossbars) / 1024,
        ops.power_of_two(2 * outputs / mapping.tiles) / 1024,
    )


def memories_of(ops: Ops, chip: Chip, sizes: BufferSizes) -> Memories:
    """The arrays; sizes given in the chip description replace the computed ones."""
    buffer = chip.buffer
    table = SramTable.of(buffer.technology_nm, buffer.bus_bits)
    inputs, outputs = sizes
    if buffer.pe_input_kb:
        inputs = 0.0 * inputs + buffer.pe_input_kb
    if buffer.tile_output_kb:
        outputs = 0.0 * outputs + buffer.tile_output_kb
    return Memories(ops.lookup(table, inputs), ops.lookup(table, outputs))


def table_memory(chip: Chip) -> SramTable:
    """The SRAM of the index tables."""
    table = chip.index_table
    return SramTable.of(
        table.technology_nm or chip.buffer.technology_nm,
        table.bus_bits or chip.buffer.bus_bits,
        "index_table",
    )


def table_kb(ops: Ops, mapping: MappingArrays) -> Array:
    """Size of a tile's index table: the entries of all slots of a position."""
    return ops.power_of_two(mapping.slot_count * mapping.table_bits / 8) / 1024
