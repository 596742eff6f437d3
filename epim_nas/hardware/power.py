"""Energy, power and area of the layers, by component.

Energy is counted: events times what one takes. Equations: MNSIM 2.0, commit ca39ccb;
``docs/cost_model.md`` derives what epitomes add. Arrays are (..., layers), see ``ops``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from epim_nas.hardware.buffers import Memories, table_kb, table_memory
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.components import Components
from epim_nas.hardware.geometry import LayerArrays
from epim_nas.hardware.mapping_arrays import MappingArrays
from epim_nas.hardware.ops import Array, Ops
from epim_nas.hardware.sram import CYCLE_NS
from epim_nas.hardware.timing import Timing

DIGITAL_PARTS = ("shiftreg", "iReg", "oReg", "input_demux", "output_mux", "jointmodule")
"""What MNSIM sums to ``digital`` (its adders are left out of the energy total)."""

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
"""Keys of every layer's power and energy breakdown."""

AREA_COMPONENTS = tuple(
    name for name in POWER_COMPONENTS if name not in ("accumulator", "buf_r", "buf_w")
)
"""Keys of every layer's area breakdown."""


class Consumption(NamedTuple):
    """Component -> (..., layers): energy (nJ), and power (W) while the component works."""

    energy_nj: dict[str, Array]
    power_w: dict[str, Array]


def consume_weighted(
    ops: Ops,
    chip: Chip,
    layers: LayerArrays,
    mapping: MappingArrays,
    timing: Timing,
    memories: Memories,
) -> Consumption:
    """Energy and power of layers with weights.

    A component's power is its mean over the slots in which it works. Both buffers are charged
    while either is accessed, and the adders inside of PEs are not part of the energy's
    ``digital`` and ``total``, as in MNSIM 2.0.
    """
    parts, turns = Components.of(chip), timing.turns
    assert turns is not None
    tiles, pes, groups = mapping.active_tiles, mapping.pes, mapping.groups
    rows = ops.ceil(mapping.active_rows / parts.demux_ratio)
    columns = ops.ceil(mapping.active_columns / parts.mux_ratio)
    # The last tile counts as full (MNSIM).
    elements = tiles * pes * groups

    def mean(power: Array, turns_of_a_slot: Array) -> Array:
        """Mean of a slot's power, weighted with how long the component works in it."""
        weight = mapping.slots * turns_of_a_slot
        return (weight * power).sum(0) / weight.sum(0)

    driven = mean(elements * rows, turns.activations)
    converted = mean(elements * columns, turns.activations)
    loads = turns.rows * turns.columns + turns.activations
    # Adders behind the ADCs of a tile add partial sums; those in front of the DACs of its PEs,
    # input slabs.
    partial_sums = mapping.accumulating * turns.columns
    input_sums = mapping.slots * turns.rows * (mapping.input_slabs - 1)
    adding = partial_sums * tiles * columns + input_sums * tiles * pes * rows
    added = (partial_sums + input_sums).sum(0)
    accumulating = ops.where(added > 0, added, 1.0 + 0.0 * added)
    power = {
        "xbar": mean(
            elements * chip.mapping.polarity * _array_power(mapping, parts, chip),
            turns.activations,
        ),
        "DAC": driven * parts.dac.power_w,
        "ADC": converted * parts.adc.power_w,
        "iReg": mean(elements * rows * parts.register_power_w, loads),
        "oReg": mean(elements * columns * parts.register_power_w, turns.columns),
        "shiftreg": converted * parts.shift_register_power_w,
        "input_demux": driven * parts.demux_power_w,
        "output_mux": converted * parts.mux_power_w,
        "adder": mean(tiles * pes * (groups - 1) * columns * parts.adder_power_w, turns.columns),
        "jointmodule": mean(
            tiles * (pes - 1) * columns * parts.joint_module_power_w, 1.0 + 0.0 * turns.columns
        ),
        "accumulator": (adding * parts.adder_power_w).sum(0) / accumulating,
        "index_table": mapping.tiles
        * ops.lookup(table_memory(chip), table_kb(ops, mapping)).read_w,
        "buf_r": mapping.tiles * (pes * memories.inputs.read_w + memories.outputs.read_w),
        "buf_w": mapping.tiles * (pes * memories.inputs.write_w + memories.outputs.write_w),
    }
    energy = {
        name: power[name] * timing.busy[name] for name in power if name not in ("buf_r", "buf_w")
    }
    # A slot accesses the buffers of its active tiles only.
    energy["buf_r"] = (
        timing.reads * CYCLE_NS * (pes * memories.inputs.read_w + memories.outputs.read_w)
    )
    energy["buf_w"] = (
        timing.writes * CYCLE_NS * (pes * memories.inputs.write_w + memories.outputs.write_w)
    )
    return _totals(energy, power)


def _array_power(mapping: MappingArrays, parts: Components, chip: Chip) -> Any:
    shared = parts.demux_ratio * parts.mux_ratio
    if chip.crossbar.power_model == "full_array":
        return parts.full_array_power_w / shared
    unselected = chip.crossbar.columns - mapping.active_columns
    cells = mapping.active_columns * parts.cell_power_w + unselected * parts.half_selected_power_w
    return mapping.active_rows * cells / shared


def consume_pooling(chip: Chip, timing: Timing, memories: Memories) -> Consumption:
    """Energy and power of ``pooling`` layers: one tile each."""
    busy, none = timing.busy, 0.0 * timing.sequential
    power = {
        "pooling": Components.of(chip).pooling_power_w + none,
        "buf_r": memories.outputs.read_w + none,
        "buf_w": memories.outputs.write_w + none,
    }
    energy = {
        "pooling": power["pooling"] * busy["pooling"],
        "buf_r": power["buf_r"] * busy["buffer_r"],
        "buf_w": power["buf_w"] * busy["buffer_w"],
    }
    return _totals(energy, power)


def _totals(energy: dict[str, Array], power: dict[str, Array]) -> Consumption:
    for values in (energy, power):
        values["buf"] = values["buf_r"] + values["buf_w"]
        values["digital"] = sum(values.get(name, 0.0) for name in DIGITAL_PARTS)
        values["digital"] = values["digital"] + values.get("accumulator", 0.0)
    # In the power MNSIM counts the adders among the digital parts, in the energy it does not.
    power["digital"] = power["digital"] + power.get("adder", 0.0)
    for values in (energy, power):
        values["total"] = sum(values.get(name, 0.0) for name in _SUMMED)
    return Consumption(energy, power)


def sums_inputs(mapping: MappingArrays) -> Array:
    """(..., layers) 1 where a layer sums wrapped input slabs, else 0."""
    return 1.0 * (mapping.input_slabs > 1)


def layer_area_um2(
    ops: Ops,
    chip: Chip,
    tiles: Array,
    table_kilobytes: Array,
    sums_inputs: Array,
    memories: Memories,
) -> dict[str, Array]:
    """Area of layers by component (um2): their tiles, which are all built alike.

    What only epitomes need is added to the tiles of the layers that need it.

    Args:
        ops: the array operations.
        chip: the chip.
        tiles: (..., layers) tiles.
        table_kilobytes: (..., layers) size of a tile's index table.
        sums_inputs: (..., layers) 1 where an adder in front of every DAC sums wrapped input
            slabs, else 0.
        memories: the buffers of the chip.
    """
    parts = Components.of(chip)
    area = {name: tiles * value for name, value in parts.tile_area_um2}
    area["buf"] = tiles * (parts.pes * memories.inputs.area_um2 + memories.outputs.area_um2)
    area["index_table"] = tiles * ops.lookup(table_memory(chip), table_kilobytes).area_um2
    input_adders = tiles * sums_inputs * (parts.pes * parts.dacs)
    area["adder"] = area["adder"] + input_adders * parts.adder_area_um2
    area["digital"] = sum(area[name] for name in DIGITAL_PARTS) + area["adder"]
    area["total"] = sum(area[name] for name in _SUMMED)
    return area
