"""Constants of a chip: what every component takes in time, power and area.

Derived once per chip. The formulas are those of MNSIM 2.0 (commit ca39ccb); they are listed in
``docs/cost_model.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log2, sqrt

from epim_nas.errors import InputError
from epim_nas.hardware.chip import Block, Chip
from epim_nas.hardware.converters import ConverterSpec, adc_spec, dac_spec

# Multiplexers n:1, by the upper limit of n: number of transistors.
_MUX_TRANSISTORS = ((2, 8), (4, 24), (8, 72), (16, 216), (32, 648))
_MUX_TRANSISTORS_LARGEST = 1944
_MUX_POWER_W = 12e-9
"""Power of one transistor of a multiplexer."""
_DEMUX_STAGE_NS = 0.27933
_MUX_STAGE_NS = 0.032744

_ADDER_BITS = 8
# Technology limit nm -> (area um2, power W) of one bit of an adder.
_ADDERS = ((28, 0.10976, 2.5e-9), (45, 0.2835, 2.5e-9), (55, 0.4235, 2.5e-9), (65, 1.42, 3e-7))
_ADDER_LARGEST = (2.366, 2.5e-9)

# (area um2, power W) at 65 nm; both scale with the square of the technology.
_SHIFT_REGISTER_65NM = (1.42, 8.1e-7)
_REGISTER_65NM = (1.4256, 18.8e-9)
_JOINT_MODULE_65NM = (353.76, 2.64e-4)
_POOLING_65NM = (91917.1562, 3.082e-3)
_POOLING_SHAPE = (3, 3)


@dataclass(frozen=True)
class Components:
    """Constants of a chip.

    Attributes:
        adc: resolved ADC.
        dac: resolved DAC.
        adcs: ADCs of one crossbar group (all its subarrays).
        dacs: DACs of one crossbar group (all its subarrays).
        adcs_per_subarray: columns that are converted at once.
        cycle_ns: digital clock period.
        crossbar_read_ns: read latency of the array with its wires.
        demux_ns: latency of the input demultiplexer.
        mux_ns: latency of the output multiplexer.
        demux_ratio: word lines that share a DAC.
        mux_ratio: bit lines that share an ADC.
        cell_power_w: power of one cell that is read.
        half_selected_power_w: power of one unselected cell in a driven row.
        full_array_power_w: power of the whole array, for the ``full_array`` power model.
        adder_power_w: one adder; likewise the further powers.
        pes: processing elements of a tile.
        tile_area_um2: component -> area of one tile, without its buffers.
    """

    adc: ConverterSpec
    dac: ConverterSpec
    adcs: int
    dacs: int
    adcs_per_subarray: int
    cycle_ns: float
    crossbar_read_ns: float
    demux_ns: float
    mux_ns: float
    demux_ratio: int
    mux_ratio: int
    cell_power_w: float
    half_selected_power_w: float
    full_array_power_w: float
    adder_power_w: float
    adder_area_um2: float
    shift_register_power_w: float
    register_power_w: float
    joint_module_power_w: float
    demux_power_w: float
    mux_power_w: float
    pooling_power_w: float
    pes: int
    pe_levels: int
    tile_area_um2: tuple[tuple[str, float], ...]

    @staticmethod
    @lru_cache(maxsize=64)
    def of(chip: Chip) -> Components:
        """The constants of ``chip``.

        Raises:
            InputError: the configuration cannot be built.
        """
        return _derive(chip)


def _derive(chip: Chip) -> Components:
    crossbar, mapping, interface = chip.crossbar, chip.mapping, chip.interface
    adc, dac = adc_spec(interface.adc), dac_spec(interface.dac)
    subarrays = crossbar.rows // crossbar.subarray_rows
    digital_subtraction = mapping.subtraction == "digital" and mapping.polarity == 2
    converters_per_column = 2 if digital_subtraction else 1
    array_area = _array_area_um2(chip)

    adcs_per_subarray = interface.adcs_per_subarray
    if adcs_per_subarray == 0:
        # As many as fit along the crossbar's edge.
        if adc.area_um2 == 0:
            raise InputError(
                f"chip {chip.name}: interface.adc.area_um2",
                "got 0 together with `adcs_per_subarray` 0 (as many as fit)",
                "a positive area",
            )
        fit = ceil(sqrt(array_area) * mapping.polarity / sqrt(adc.area_um2))
        adcs_per_subarray = min(converters_per_column * fit, crossbar.columns)
    dacs_per_subarray = interface.dacs_per_subarray
    adcs, dacs = adcs_per_subarray * subarrays, dacs_per_subarray * subarrays

    demux_ratio = ceil(crossbar.subarray_rows / dacs_per_subarray)
    mux_ratio = ceil(crossbar.columns / adcs_per_subarray * converters_per_column)
    demux_stages = _stages(ceil(crossbar.subarray_rows / dacs_per_subarray))
    mux_stages = _stages(ceil(crossbar.columns / adcs_per_subarray))

    low_v, high_v = crossbar.read_voltages_v
    high_ohm, low_ohm = crossbar.resistances_ohm
    mean_square_v = 0.9 * low_v**2 + 0.1 * high_v**2
    mean_ohm = high_ohm * low_ohm / (0.67 * low_ohm + 0.33 * high_ohm)
    size_kb = crossbar.rows * crossbar.columns / 8192
    wire_ns = 1e-3 * (2e-4 * size_kb**2 + 5e-6 * size_kb + 4e-14)

    digital, tile = chip.digital, chip.tile
    adder_area, adder_power = _adder(digital.adder)
    shift_area, shift_power = _scaled(digital.shift_register, _SHIFT_REGISTER_65NM)
    register_area, register_power = _scaled(digital.register_, _REGISTER_65NM)
    joint_area, joint_power = _scaled(digital.joint_module, _JOINT_MODULE_65NM)
    pooling_area, pooling_power = 0.0, 0.0
    pooling_scale = (tile.pooling.technology_nm / 65) ** 2
    # MNSIM has numbers for a 3x3 unit only; at another technology it scales these regardless of
    # the shape.
    if tile.pooling.shape == _POOLING_SHAPE or pooling_scale != 1:
        pooling_area, pooling_power = (value * pooling_scale for value in _POOLING_65NM)

    pes, groups = tile.pes[0] * tile.pes[1], mapping.groups
    transistor_um2 = 10 * crossbar.transistor_technology_nm**2 * 1e-6
    per_group = pes * groups
    area = {
        "xbar": per_group * mapping.polarity * array_area,
        "ADC": per_group * adcs * adc.area_um2,
        "DAC": per_group * dacs * dac.area_um2,
        "adder": pes * adcs * subarrays * _tree_adders(groups) * adder_area,
        "shiftreg": per_group * adcs * shift_area,
        "iReg": per_group * dacs * register_area,
        "oReg": per_group * adcs * register_area,
        "input_demux": per_group * dacs * _transistors(demux_ratio) * transistor_um2,
        "output_mux": per_group * adcs * _transistors(mux_ratio) * transistor_um2,
        "jointmodule": _tree_joints(pes) * groups * adcs * joint_area,
        "pooling": pooling_area,
    }
    return Components(
        adc=adc,
        dac=dac,
        adcs=adcs,
        dacs=dacs,
        adcs_per_subarray=adcs_per_subarray,
        cycle_ns=1000 / digital.frequency_mhz,
        crossbar_read_ns=crossbar.read_latency_ns + wire_ns,
        demux_ns=_DEMUX_STAGE_NS * demux_stages,
        mux_ns=_MUX_STAGE_NS * mux_stages,
        demux_ratio=demux_ratio,
        mux_ratio=mux_ratio,
        cell_power_w=mean_square_v / mean_ohm,
        half_selected_power_w=(
            0.25 * mean_square_v / high_ohm if crossbar.cell_type == "0T1R" else 0.0
        ),
        full_array_power_w=(
            crossbar.rows * crossbar.columns * (low_v**2 + high_v**2) / 2 / sqrt(high_ohm * low_ohm)
        ),
        adder_power_w=adder_power,
        adder_area_um2=adder_area,
        shift_register_power_w=shift_power,
        register_power_w=register_power,
        joint_module_power_w=joint_power,
        demux_power_w=_transistors(demux_ratio) * _MUX_POWER_W,
        mux_power_w=_transistors(mux_ratio) * _MUX_POWER_W,
        pooling_power_w=pooling_power,
        pes=pes,
        pe_levels=ceil(log2(pes)),
        tile_area_um2=tuple(area.items()),
    )


def _array_area_um2(chip: Chip) -> float:
    crossbar = chip.crossbar
    cells = crossbar.rows * crossbar.columns
    if crossbar.area_model == "cell_area":
        return cells * crossbar.cell_area_um2 + crossbar.driver_area_um2_per_row * crossbar.rows
    squares = 4 if crossbar.cell_type == "0T1R" else 12
    return squares * cells * crossbar.device_technology_nm**2 * 1e-6


def _stages(ratio: int) -> int:
    """1:8 stages of a selector, as MNSIM counts them."""
    stages = 1
    while ratio > 0:
        ratio //= 8
        stages += 1
    return stages


def _transistors(ratio: int) -> int:
    for limit, count in _MUX_TRANSISTORS:
        if ratio <= limit:
            return count
    return _MUX_TRANSISTORS_LARGEST


def adder(technology_nm: float, bits: int) -> tuple[float, float]:
    """Area (um2) and power (W) of an adder of ``bits``."""
    for limit, area, power in _ADDERS:
        if technology_nm <= limit:
            return area * bits, power * bits
    return _ADDER_LARGEST[0] * bits, _ADDER_LARGEST[1] * bits


def _adder(block: Block) -> tuple[float, float]:
    return _own(block, *adder(block.technology_nm, _ADDER_BITS))


def _scaled(block: Block, at_65nm: tuple[float, float]) -> tuple[float, float]:
    scale = (block.technology_nm / 65) ** 2
    return _own(block, at_65nm[0] * scale, at_65nm[1] * scale)


def _own(block: Block, area_um2: float, power_w: float) -> tuple[float, float]:
    return block.area_um2 or area_um2, block.power_w or power_w


def _tree_adders(leaves: int) -> int:
    """Adders of a binary tree over ``leaves``, odd ones passed on to the next level."""
    count = 0
    while leaves >= 2:
        count += leaves // 2
        leaves = leaves // 2 + leaves % 2
    return count


def _tree_joints(leaves: int) -> int:
    """Joint modules of the H-tree over the PEs of a tile, as MNSIM counts them."""
    count = 0
    while leaves >= 2:
        count += leaves // 2 + leaves % 2
        leaves //= 2
    return count
