"""The global accumulator, which adds the inputs of ``element_sum`` layers.

It sits at the middle of the mesh's left edge. Equations: MNSIM 2.0, commit ca39ccb.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from epim_nas.hardware.chip import Chip
from epim_nas.hardware.components import adder
from epim_nas.hardware.power import BufferSizes, power_of_two_kb
from epim_nas.hardware.results import Shared
from epim_nas.hardware.sram import sram
from epim_nas.network.spec import Network

_MIN_ADDER_BITS = 8


@dataclass(frozen=True)
class AccumulatorSize:
    """Buffer (KB), adders and their width."""

    buffer_kb: float
    adders: int
    adder_bits: int


def accumulator_size(network: Network, output_bits: Sequence[int]) -> AccumulatorSize:
    """What the sums of a network need, each with a part of its own."""
    buffer_kb, adders, width = 0.0, 0, _MIN_ADDER_BITS
    for layer, bits in zip(network.layers, output_bits, strict=True):
        if layer.type == "element_sum":
            inputs = len(layer.inputs)
            buffer_kb += power_of_two_kb(layer.in_channels * bits * inputs / 8)
            adders += layer.in_channels * inputs // 2
            width = max(width, bits)
    return AccumulatorSize(buffer_kb, adders, width)


def shared_parts(size: AccumulatorSize, buffers: BufferSizes, chip: Chip) -> Shared:
    """Area and power of what belongs to no layer."""
    block = chip.digital.adder
    area, power = adder(block.technology_nm, size.adder_bits)
    # MNSIM lets a given size of the PE's input buffer replace the accumulator's as well.
    memory = sram(
        chip.buffer.pe_input_kb or size.buffer_kb,
        chip.buffer.technology_nm,
        chip.buffer.bus_bits,
    )
    return Shared(
        pe_input_kb=buffers.pe_input_kb,
        tile_output_kb=buffers.tile_output_kb,
        accumulator_kb=size.buffer_kb,
        accumulator_adders=size.adders,
        accumulator_adder_bits=size.adder_bits,
        area_um2={
            "adder": size.adders * (block.area_um2 or area),
            "buf": memory.area_um2,
        },
        power_w={
            "adder": size.adders * (block.power_w or power),
            "buf_r": memory.read_power_w,
            "buf_w": memory.write_power_w,
        },
    )
