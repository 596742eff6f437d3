"""MNSIM 2.0 configuration files (``SimConfig.ini``) as chip descriptions.

Semantics as in MNSIM 2.0, commit ca39ccb. Keys that have no influence on its cost (write
voltages, device variation, stuck-at faults, ...) are accepted and have none here.
"""

from __future__ import annotations

import configparser
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from epim_nas.errors import InputError, nearest
from epim_nas.files import read_text

_LOG = logging.getLogger(__name__)

SRAM_RESISTANCE_OHM = 1.6e6
"""Equivalent cell resistance by which MNSIM 2.0 models an SRAM device, in both states."""

DIGITAL_DRIVER_AREA_UM2 = 223.24
"""Driver area of a row of a digital PIM array, solved from what MNSIM 2.0 prints for 256x256."""

_KEYS = {
    "device level": (
        "device_tech device_type device_area read_level read_voltage write_level write_voltage "
        "read_latency write_latency device_level device_resistance device_variation device_saf "
        "read_energy write_energy"
    ),
    "crossbar level": (
        "xbar_size subarray_size cell_type transistor_tech wire_resistance wire_capacity "
        "load_resistance area_calculation"
    ),
    "interface level": (
        "dac_choice dac_area dac_precision dac_power dac_sample_rate adc_choice adc_area "
        "adc_precision adc_power adc_sample_rate adc_interval_thres logic_op"
    ),
    "process element level": (
        "pim_type xbar_polarity sub_position group_num dac_num adc_num pe_inbuf_size "
        "pe_inbuf_area tile_outbuf_size tile_outbuf_area dfu_buf_size dfu_buf_area"
    ),
    "digital module": (
        "digital_frequency adder_tech adder_area adder_power multiplier_tech multiplier_area "
        "multiplier_power shiftreg_tech shiftreg_area shiftreg_power reg_tech reg_area reg_power "
        "jointmodule_tech jointmodule_area jointmodule_power"
    ),
    "tile level": (
        "pe_num pooling_shape pooling_unit_num pooling_tech pooling_area tile_adder_num "
        "tile_adder_level tile_shiftreg_num tile_shiftreg_level inter_tile_bandwidth "
        "intra_tile_bandwidth tile_outbuf_size tile_outbuf_area dfu_buf_size dfu_buf_area"
    ),
    "architecture level": (
        "buffer_choice buffer_technology buffer_readpower buffer_writepower buffer_bitwidth "
        "lut_capacity lut_area lut_power lut_bandwidth tile_connection tile_num"
    ),
    "algorithm configuration": "weight_polarity simulation_level noc_enable",
}
_KNOWN = {section: tuple(keys.split()) for section, keys in _KEYS.items()}

_MOST_BYTES = 2**20
"""Largest file that is read; MNSIM's own has 8 KiB, comments included."""

_ORDERS = {0: "row_major", 1: "serpentine", 2: "shells", 3: "diagonal"}


class _Ini:
    """Typed access to the keys, with errors that name section and key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        parser = configparser.ConfigParser(interpolation=None, strict=True)
        try:
            parser.read_string(read_text(path, _MOST_BYTES), source=str(path))
        except configparser.Error as error:
            message = str(error).replace("\n", " ")
            raise InputError(str(path), f"not a valid configuration file: {message}") from None
        self.values: dict[tuple[str, str], str] = {}
        for section in parser.sections():
            known = _KNOWN.get(section.lower())
            if known is None:
                raise InputError(
                    f"{path}: [{section}]",
                    "unknown section",
                    ", ".join(f"[{name}]" for name in _KNOWN),
                    nearest(section.lower(), _KNOWN),
                )
            for key, text in parser.items(section):
                if key.lower() not in known:
                    raise InputError(
                        f"{path}: [{section}] {key}",
                        "unknown key",
                        ", ".join(f"`{name}`" for name in known),
                        nearest(key.lower(), known),
                    )
                self.values[section.lower(), key.lower()] = text.strip()
        self.missing: dict[tuple[str, str], str] = {}

    def error(self, section: str, key: str, allowed: str, hint: str = "") -> InputError:
        """The error for a value that is not allowed."""
        got = self.values.get((section, key), "")
        return InputError(f"{self.path}: [{section}] {key}", f"got `{got}`", allowed, hint)

    def text(self, section: str, key: str, default: str) -> str:
        """The text of a key, or MNSIM's default, which is noted."""
        if (section, key) not in self.values:
            self.missing[section, key] = default
        return self.values.get((section, key), default)

    def check_complete(self) -> None:
        """Say which keys that the cost depends on are missing.

        Raises:
            InputError: a whole section of them is missing.
        """
        present = {section for section, _ in self.values} | {"algorithm configuration"}
        sections = [name for name in _KNOWN if name not in present]
        if sections:
            raise InputError(
                str(self.path),
                "lacks " + ", ".join(f"[{name}]" for name in sections),
                "the sections of MNSIM 2.0's SimConfig.ini",
                "Add them: their values decide what the chip costs.",
            )
        if self.missing:
            _LOG.warning(
                "%s: not given, so MNSIM's default is taken: %s", self.path.name,
                ", ".join(f"[{s}] {key} = {value}" for (s, key), value in self.missing.items()),
            )  # fmt: skip

    def numbers(
        self, section: str, key: str, default: str, kind: Callable[[str], Any] = int
    ) -> list[Any]:
        """The comma-separated numbers of a key."""
        try:
            return [kind(part.strip()) for part in self.text(section, key, default).split(",")]
        except ValueError:
            word = "whole numbers" if kind is int else "numbers"
            raise self.error(section, key, word + " separated by commas") from None

    def number(self, section: str, key: str, default: str, kind: Callable[[str], Any] = int) -> Any:
        """The one number of a key."""
        values = self.numbers(section, key, default, kind)
        if len(values) != 1:
            raise self.error(section, key, "one number")
        return values[0]

    def pair(self, section: str, key: str, default: str) -> list[int]:
        """The two whole numbers of a key."""
        values = self.numbers(section, key, default)
        if len(values) != 2:
            raise self.error(section, key, "two numbers separated by a comma")
        return values


def read_ini(path: Path) -> dict[str, Any]:
    """The chip description (as the content of a chip YAML) of an MNSIM 2.0 configuration.

    ``Device_Level`` is ignored, as MNSIM's cost ignores it: one bit a cell.

    Raises:
        InputError: an unknown section or key, a missing section, or a value outside of what is
            modelled.
    """
    ini = _Ini(path)
    if ("device level", "device_level") in ini.values:
        _LOG.warning(
            "%s: MNSIM's cost ignores Device_Level (%d here): one bit a cell. "
            "Use --set mapping.cell_bits=N for multi-bit cells.",
            path.name,
            ini.number("device level", "device_level", "2"),
        )
    chip = {
        "schema": "epim-nas/chip@1",
        "name": ini.path.stem,
        "crossbar": _crossbar(ini),
        "mapping": _mapping(ini),
        "interface": _interface(ini),
        "digital": _digital(ini),
        "tile": _tile(ini),
        "mesh": _mesh(ini),
        "buffer": _buffer(ini),
    }
    ini.check_complete()
    return chip


def _crossbar(ini: _Ini) -> dict[str, Any]:
    rows, columns = ini.pair("crossbar level", "xbar_size", "256,256")
    device = ini.text("device level", "device_type", "NVM")
    if device == "NVM":
        found = ini.numbers("device level", "device_resistance", "1e6, 1e4", float)
        resistances = [found[0], found[-1]]
    elif device == "SRAM":
        resistances = [SRAM_RESISTANCE_OHM, SRAM_RESISTANCE_OHM]
    else:
        raise ini.error("device level", "device_type", "`NVM` or `SRAM`")
    voltages = ini.numbers("device level", "read_voltage", "0,0.15", float)
    cell_type = ini.text("crossbar level", "cell_type", "1T1R")
    area = ini.number("crossbar level", "area_calculation", "0")
    level = ini.number("algorithm configuration", "simulation_level", "0")
    if level not in (0, 1):
        raise ini.error("algorithm configuration", "simulation_level", "0 or 1")
    if ini.number("algorithm configuration", "noc_enable", "0") != 0:
        raise ini.error(
            "algorithm configuration", "noc_enable", "0", "A BookSim network is not modelled."
        )
    digital = _is_digital(ini)
    return {
        "rows": rows,
        "columns": columns,
        "subarray_rows": ini.number("crossbar level", "subarray_size", "256"),
        # MNSIM looks at the first character only.
        "cell_type": "0T1R" if cell_type.startswith("0") else "1T1R",
        "cell_area_um2": ini.number("device level", "device_area", "1.44", float),
        "area_model": "cell_area" if area == 0 else "technology",
        "device_technology_nm": ini.number("device level", "device_tech", "130", float),
        "transistor_technology_nm": ini.number("crossbar level", "transistor_tech", "130", float),
        "driver_area_um2_per_row": DIGITAL_DRIVER_AREA_UM2 if digital else 1150,
        "read_latency_ns": ini.number("device level", "read_latency", "3.16", float),
        "read_voltages_v": [voltages[0], voltages[-1]],
        "resistances_ohm": resistances,
        "power_model": "full_array" if level == 1 else "occupied_cells",
    }


def _is_digital(ini: _Ini) -> bool:
    kind = ini.number("process element level", "pim_type", "0")
    if kind not in (0, 1):
        raise ini.error("process element level", "pim_type", "0 (analog) or 1 (digital)")
    return bool(kind)


def _mapping(ini: _Ini) -> dict[str, Any]:
    section = "process element level"
    position = ini.number(section, "sub_position", "0")
    if position not in (0, 1):
        raise ini.error(section, "sub_position", "0 (analog) or 1 (digital)")
    return {
        "packing": "sliced",
        "cell_bits": 1,
        "polarity": ini.number(section, "xbar_polarity", "2"),
        "subtraction": "digital" if position else "analog",
        "groups": ini.number(section, "group_num", "1") or 1,
    }


def _interface(ini: _Ini) -> dict[str, Any]:
    section = "process element level"
    dacs = ini.number(section, "dac_num", "128")
    if dacs == 0:
        raise ini.error(section, "dac_num", "a positive number", "MNSIM 2.0 fails on 0 as well.")
    # A digital array is read by sense amplifiers, whatever ADC_Choice says.
    adc: dict[str, Any] = {"choice": 8} if _is_digital(ini) else _converter(ini, "adc")
    return {
        "dac": _converter(ini, "dac"),
        "dacs_per_subarray": dacs,
        "adc": adc,
        "adcs_per_subarray": ini.number(section, "adc_num", "128"),
    }


def _converter(ini: _Ini, kind: str) -> dict[str, Any]:
    section = "interface level"
    choice = ini.number(section, f"{kind}_choice", "1" if kind == "dac" else "6")
    if choice != -1:
        return {"choice": choice}
    return {
        "bits": ini.number(section, f"{kind}_precision", "0"),
        "area_um2": ini.number(section, f"{kind}_area", "0", float),
        "power_w": ini.number(section, f"{kind}_power", "0", float),
        "rate_gsps": ini.number(section, f"{kind}_sample_rate", "0", float),
    }


def _digital(ini: _Ini) -> dict[str, Any]:
    section = "digital module"
    blocks = (
        ("adder", "adder", "45"),
        ("shift_register", "shiftreg", "65"),
        ("register", "reg", "45"),
        ("joint_module", "jointmodule", "45"),
    )
    result: dict[str, Any] = {
        "frequency_mhz": ini.number(section, "digital_frequency", "500", float)
    }
    for name, key, technology in blocks:
        result[name] = {
            "technology_nm": ini.number(section, f"{key}_tech", technology, float),
            # 0 stands for the built-in value.
            "area_um2": ini.number(section, f"{key}_area", "0", float) or None,
            "power_w": ini.number(section, f"{key}_power", "0", float) or None,
        }
    return result


def _tile(ini: _Ini) -> dict[str, Any]:
    section = "tile level"
    pes = ini.pair(section, "pe_num", "2,2")
    return {
        "pes": [4, 4] if pes[0] == 0 else pes,
        "intra_bandwidth_gbps": ini.number(section, "intra_tile_bandwidth", "1024", float),
        "pooling": {
            "shape": ini.pair(section, "pooling_shape", "3,3"),
            "units": ini.number(section, "pooling_unit_num", "64") or 64,
            "technology_nm": ini.number(section, "pooling_tech", "65", float),
        },
    }


def _mesh(ini: _Ini) -> dict[str, Any]:
    order = ini.number("architecture level", "tile_connection", "2")
    if order not in _ORDERS:
        raise ini.error("architecture level", "tile_connection", "0, 1, 2 or 3")
    return {
        "size": ini.pair("architecture level", "tile_num", "64,64"),
        "order": _ORDERS[order],
        "bandwidth_gbps": ini.number("tile level", "inter_tile_bandwidth", "20", float),
    }


def _buffer(ini: _Ini) -> dict[str, Any]:
    section, elements = "architecture level", "process element level"
    if ini.number(section, "buffer_choice", "1") != 1:
        raise ini.error(section, "buffer_choice", "1 (SRAM)")
    # Versions of MNSIM differ in the section that has it.
    places = [p for p in ("tile level", elements) if (p, "tile_outbuf_size") in ini.values]
    sizes = [ini.number(p, "tile_outbuf_size", "0", float) for p in places or ["tile level"]]
    return {
        # 0 stands for MNSIM's own defaults: 65 nm and 256 bits.
        "technology_nm": ini.number(section, "buffer_technology", "90", float) or 65,
        "bus_bits": ini.number(section, "buffer_bitwidth", "64") or 256,
        "pe_input_kb": ini.number(elements, "pe_inbuf_size", "0", float),
        "tile_output_kb": next((size for size in sizes if size), 0.0),
    }
