"""The global accumulator, which adds the inputs of ``element_sum`` layers.

It sits at the middle of the mesh's left edge. Equations: MNSIM 2.0, commit ca39ccb.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from epim_nas.hardware.chip import Chip
from epim_nas.hardware.components import adder
from epim_nas.hardware.ops import NumpyOps
from epim_nas.hardware.results import Shared
from epim_nas.hardware.sram import SramTable
from epim_nas.network.spec import Network

_MIN_ADDER_BITS = 8
OPS = NumpyOps()


@dataclass(frozen=True)
class AccumulatorSize:
    """Buffer (KB), adders and their width."""

    buffer_kb: float
    adders: int
    adder_bits: int


def accumulator_size(network: Network, output_bits: Sequence[int]) -> AccumulatorSize:
    """What the sums of a network need, each with a part of its own."""
    sums = [
        (layer.in_channels * len(layer.inputs), bits)
        for layer, bits in zip(network.layers, output_bits, strict=True)
        if layer.type == "element_sum"
    ]
    sizes = np.array([values * bits / 8 for values, bits in sums])
    return AccumulatorSize(
        float(OPS.power_of_two(sizes).sum()) / 1024,
        sum(values // 2 for values, _ in sums),
        max([_MIN_ADDER_BITS, *(int(bits) for _, bits in sums)]),
    )


def shared_parts(
    size: AccumulatorSize, pe_input_kb: float, tile_output_kb: float, chip: Chip
) -> Shared:
    """Area and power of what belongs to no layer.

    Args:
        size: the accumulator.
        pe_input_kb: needed size of every PE's input buffer.
        tile_output_kb: needed size of every tile's output buffer.
        chip: the chip.
    """
    block, buffer = chip.digital.adder, chip.buffer
    area, power = adder(block.technology_nm, size.adder_bits)
    # MNSIM lets a given size of the PE's input buffer replace the accumulator's as well.
    memory = np.array(buffer.pe_input_kb or size.buffer_kb)
    table = SramTable.of(buffer.technology_nm, buffer.bus_bits)
    area_um2, read_w, write_w = map(float, OPS.lookup(table, memory))
    return Shared(
        pe_input_kb=pe_input_kb,
        tile_output_kb=tile_output_kb,
        accumulator_kb=size.buffer_kb,
        accumulator_adders=size.adders,
        accumulator_adder_bits=size.adder_bits,
        area_um2={"adder": size.adders * (block.area_um2 or area), "buf": area_um2},
        power_w={
            "adder": size.adders * (block.power_w or power),
            "buf_r": read_w,
            "buf_w": write_w,
        },
    )
