"""Power, energy and area of one layer.

Equations: MNSIM 2.0, commit ca39ccb; ``docs/cost_model.md`` derives what epitomes add.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

from epim_nas.hardware.chip import Chip
from epim_nas.hardware.components import Components
from epim_nas.hardware.mapping import LayerMapping
from epim_nas.hardware.sram import Sram, sram
from epim_nas.network.spec import LayerSpec

DIGITAL_PARTS = ("shiftreg", "iReg", "oReg", "input_demux", "output_mux", "jointmodule")
"""What MNSIM sums to ``digital`` (its adders are left out of the energy total)."""


@dataclass(frozen=True)
class BufferSizes:
    """Sizes of the chip's buffers in KB: the largest that any layer needs.

    Attributes:
        pe_input_kb: input buffer of every PE.
        tile_output_kb: output buffer of every tile.
    """

    pe_input_kb: float
    tile_output_kb: float


def power_of_two_kb(size_bytes: float) -> float:
    """The next power of two in KB, 0 for nothing."""
    return float(2 ** ceil(log2(size_bytes))) / 1024 if size_bytes > 0 else 0.0


def layer_buffers(
    layer: LayerSpec, mapping: LayerMapping, input_bits: int, output_bits: int
) -> BufferSizes:
    """What one conv or fc layer needs: its lines of input, and its outputs twice (ping-pong)."""
    if layer.type == "fc":
        inputs = layer.in_channels * input_bits / 8
    else:
        lines = (layer.kernel[0] - 1) * layer.dilation[0] + 1
        inputs = layer.input_size[1] * lines * layer.in_channels * input_bits / 8
    outputs = layer.out_channels * output_bits / 8
    return BufferSizes(
        power_of_two_kb(inputs / mapping.crossbars), power_of_two_kb(2 * outputs / mapping.tiles)
    )


def table_kb(mapping: LayerMapping) -> float:
    """Size of a tile's index table: the entries of all rounds of a position."""
    return power_of_two_kb(mapping.rounds * mapping.table_bits / 8)


def table_sram(mapping: LayerMapping, chip: Chip) -> Sram:
    """The SRAM that holds a tile's index table."""
    table = chip.index_table
    return sram(
        table_kb(mapping),
        table.technology_nm or chip.buffer.technology_nm,
        table.bus_bits or chip.buffer.bus_bits,
        "index_table",
    )


@dataclass(frozen=True)
class Memories:
    """The buffers of a chip that is sized for one network and design."""

    pe_input: Sram
    tile_output: Sram

    @classmethod
    def of(cls, sizes: BufferSizes, chip: Chip) -> Memories:
        """The arrays; sizes given in the chip description replace the computed ones."""
        buffer = chip.buffer
        return cls(
            sram(buffer.pe_input_kb or sizes.pe_input_kb, buffer.technology_nm, buffer.bus_bits),
            sram(
                buffer.tile_output_kb or sizes.tile_output_kb,
                buffer.technology_nm,
                buffer.bus_bits,
            ),
        )


def layer_power_w(
    layer: LayerSpec, mapping: LayerMapping, memories: Memories, chip: Chip
) -> dict[str, float]:
    """Power of one layer by component (W) while the component works."""
    power = dict.fromkeys(POWER_COMPONENTS, 0.0)
    if mapping.tiles == 0:
        return power
    parts = Components.of(chip)
    output = memories.tile_output
    if layer.type == "pooling":
        power["pooling"] = parts.pooling_power_w
        power["buf_r"], power["buf_w"] = output.read_power_w, output.write_power_w
    else:
        pes, groups = mapping.pes_per_tile, mapping.groups
        rows = ceil(mapping.active_rows / parts.demux_ratio)
        columns = ceil(mapping.active_columns / parts.mux_ratio)
        # The last tile counts as full; a round activates only the crossbars of its patch.
        working = mapping.tiles * mapping.activity
        elements = working * pes * groups
        power["xbar"] = elements * chip.mapping.polarity * _array_power(mapping, parts, chip)
        power["DAC"] = elements * rows * parts.dac.power_w
        power["ADC"] = elements * columns * parts.adc.power_w
        power["iReg"] = elements * rows * parts.register_power_w
        power["oReg"] = elements * columns * parts.register_power_w
        power["shiftreg"] = elements * columns * parts.shift_register_power_w
        power["input_demux"] = elements * rows * parts.demux_power_w
        power["output_mux"] = elements * columns * parts.mux_power_w
        power["adder"] = working * pes * (groups - 1) * columns * parts.adder_power_w
        power["jointmodule"] = working * (pes - 1) * columns * parts.joint_module_power_w
        if mapping.accumulations:
            power["accumulator"] = working * columns * parts.adder_power_w
        if mapping.table_bits:
            power["index_table"] = mapping.tiles * table_sram(mapping, chip).read_power_w
        inputs = memories.pe_input
        power["buf_r"] = mapping.tiles * (pes * inputs.read_power_w + output.read_power_w)
        power["buf_w"] = mapping.tiles * (pes * inputs.write_power_w + output.write_power_w)
    power["buf"] = power["buf_r"] + power["buf_w"]
    # Here MNSIM counts the adders among the digital parts, in the energy it does not.
    power["digital"] = (
        sum(power[name] for name in DIGITAL_PARTS) + power["adder"] + power["accumulator"]
    )
    power["total"] = sum(power[name] for name in _SUMMED)
    return power


def _array_power(mapping: LayerMapping, parts: Components, chip: Chip) -> float:
    shared = parts.demux_ratio * parts.mux_ratio
    if chip.crossbar.power_model == "full_array":
        return parts.full_array_power_w / shared
    unselected = chip.crossbar.columns - mapping.active_columns
    cells = mapping.active_columns * parts.cell_power_w + unselected * parts.half_selected_power_w
    return mapping.active_rows * cells / shared


_SUMMED = ("xbar", "DAC", "ADC", "buf", "pooling", "digital", "index_table")
POWER_COMPONENTS = (
    "total",
    "xbar",
    "ADC",
    "DAC",
    "digital",
    "adder",
    "accumulator",
    "shiftreg",
    "iReg",
    "oReg",
    "input_demux",
    "output_mux",
    "jointmodule",
    "buf",
    "buf_r",
    "buf_w",
    "pooling",
    "index_table",
)
"""Keys of every layer's power, energy and (without the last three of buf) area breakdown."""


def layer_energy_nj(power_w: dict[str, float], busy_ns: dict[str, float]) -> dict[str, float]:
    """Energy of one layer by component (nJ): power times busy time.

    Both buffers are charged for the time that either is accessed, and the adders inside of PEs
    are not part of ``digital`` and ``total``, as in MNSIM 2.0.
    """
    energy = dict.fromkeys(POWER_COMPONENTS, 0.0)
    for name in ("xbar", "ADC", "DAC", "adder", "accumulator", "pooling", "index_table"):
        energy[name] = power_w[name] * busy_ns[name]
    for name in DIGITAL_PARTS:
        energy[name] = power_w[name] * busy_ns[name]
    if power_w["buf_r"]:
        energy["buf_r"] = power_w["buf_r"] * busy_ns["buffer_r"]
        energy["buf_w"] = power_w["buf_w"] * busy_ns["buffer_w"]
    energy["buf"] = energy["buf_r"] + energy["buf_w"]
    energy["digital"] = sum(energy[name] for name in DIGITAL_PARTS) + energy["accumulator"]
    energy["total"] = sum(energy[name] for name in _SUMMED)
    return energy


AREA_COMPONENTS = (
    "total",
    "xbar",
    "ADC",
    "DAC",
    "digital",
    "adder",
    "shiftreg",
    "iReg",
    "oReg",
    "input_demux",
    "output_mux",
    "jointmodule",
    "buf",
    "pooling",
    "index_table",
)
"""Keys of every layer's area breakdown."""


def layer_area_um2(mapping: LayerMapping, memories: Memories, chip: Chip) -> dict[str, float]:
    """Area of one layer by component (um2): its tiles, which are all built alike."""
    parts = Components.of(chip)
    tile = dict(parts.tile_area_um2)
    tile["buf"] = parts.pes * memories.pe_input.area_um2 + memories.tile_output.area_um2
    tile["index_table"] = table_sram(mapping, chip).area_um2 if mapping.table_bits else 0.0
    tile["digital"] = sum(tile[name] for name in DIGITAL_PARTS) + tile["adder"]
    tile["total"] = sum(tile[name] for name in _SUMMED)
    return {name: mapping.tiles * tile[name] for name in AREA_COMPONENTS}
