"""Chip descriptions: presets, overrides, MNSIM files, and one clear error for each wrong one."""

from __future__ import annotations

import logging
from contextlib import suppress

import pytest
import yaml

from epim_nas import presets
from epim_nas.errors import InputError
from epim_nas.hardware import Chip, CostModel, load_chip
from epim_nas.hardware.components import Components
from epim_nas.schema import _models_in
from tests.hardware.nets import chain
from tests.hardware.reference import whole_ini

PRESETS = ("epim_256", "isaac_128", "mnsim_default", "raella_512", "xbar_64")


def test_presets_are_found_and_cost_something():
    assert set(PRESETS) <= set(presets.names("cost_models"))
    for name in presets.names("cost_models"):
        chip = load_chip(name)
        assert chip.name == name
        assert CostModel(chain(), chip).evaluate().totals.energy_nj > 0


@pytest.mark.parametrize("name", PRESETS)
def test_every_key_of_a_preset_is_explained(name):
    path = presets.find("cost_models", name, "test")
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    data = yaml.safe_load("\n".join(lines))
    assert set(data) == set(Chip(name="x").to_dict())
    body = lines[lines.index(f"name: {name}") + 1 :]
    for line in body:
        is_group = line.rstrip().endswith(":")
        assert not line.strip() or is_group or "# " in line, line


def test_the_default_preset_is_the_default_of_the_schema():
    assert load_chip("mnsim_default").digest == Chip(name="anything").digest


def test_a_chip_survives_its_file(tmp_path):
    chip = load_chip("xbar_64", ["digital.adder.power_w=1.0e-7"])
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(chip.to_dict()))
    again = load_chip(str(path))
    assert again == chip
    assert again.digest == chip.digest
    assert hash(again) == hash(chip)


def test_overrides_and_digest():
    base, sliced = load_chip("epim_256"), load_chip("epim_256", ["mapping.packing=sliced"])
    assert sliced.mapping.packing == "sliced"
    assert base.digest != sliced.digest
    assert load_chip("epim_256", ["name=other"]).digest == base.digest


def test_own_converters_win_over_the_table():
    chip = load_chip("xbar_64", ["interface.adc.bits=8", "interface.adc.power_w=0.002"])
    adc = Components.of(chip).adc
    assert (adc.bits, adc.power_w, adc.area_um2, adc.latency_ns) == (8, 0.002, 580, 10)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("crossbar.row=64", ["crossbar.row: unknown key", "Did you mean `rows`"]),
        ("crossbar.rows=0", ["crossbar.rows", "greater than or equal to 1"]),
        ("crossbar.rows=-8", ["crossbar.rows"]),
        ("crossbar.rows=64.5", ["crossbar.rows", "integer"]),
        ("crossbar.rows=many", ["crossbar.rows", "`'many'`"]),
        ("crossbar.rows=", ["crossbar.rows", "got nothing"]),
        ("crossbar.subarray_rows=48", ["crossbar", "does not divide"]),
        ("crossbar.cell_area_um2=.nan", ["crossbar.cell_area_um2", "finite"]),
        ("crossbar.read_latency_ns=.inf", ["crossbar.read_latency_ns", "finite"]),
        ("crossbar.resistances_ohm=[0,1]", ["crossbar.resistances_ohm"]),
        ("mapping.packing=dense", ["mapping.packing", "'sliced' or 'packed'"]),
        ("mapping.cell_bits=0", ["mapping.cell_bits"]),
        ("mapping.polarity=3", ["mapping.polarity", "1 or 2"]),
        ("interface.adc.choice=10", ["interface.adc", "Allowed: 1 to 9"]),
        ("interface.adc={bits: 6}", ["interface.adc", "`area_um2`", "must be given"]),
        ("interface.dacs_per_subarray=0", ["interface.dacs_per_subarray"]),
        ("digital.frequency_mhz=0", ["digital.frequency_mhz"]),
        ("tile.pes=[2]", ["tile.pes"]),
        ("tile.pooling.units=32", ["tile.pooling.units", "64"]),
        ("mesh.order=spiral", ["mesh.order", "'shells'"]),
        ("buffer.bus_bits=0", ["buffer.bus_bits"]),
        ("memory.size=1", ["memory: unknown key"]),
        ("crossbar.rows", ["--set", "key=value"]),
        ("crossbar.rows.more=1", ["--set", "is not a group of keys"]),
    ],
)
def test_wrong_values_get_one_clear_error(override, words):
    with pytest.raises(InputError) as failure:
        load_chip("xbar_64", [override])
    for word in words:
        assert word in str(failure.value)
    assert "\n" not in str(failure.value)


def test_unknown_chips_and_files(tmp_path):
    with pytest.raises(InputError, match="Did you mean `epim_256`"):
        load_chip("epim256")
    with pytest.raises(InputError, match="no such file"):
        load_chip("chips/none.yaml")
    with pytest.raises(InputError, match="no such file"):
        load_chip("none.ini")
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(InputError, match="got `\\[1\\]`"):
        load_chip(str(path))


def test_a_mesh_that_is_too_small():
    chip = load_chip("xbar_64", ["mesh.size=[2,2]"])
    with pytest.raises(InputError, match=r"room for 4 tiles, the design needs \d+"):
        CostModel(chain(), chip).evaluate()


def test_an_sram_that_does_not_exist():
    chip = load_chip("xbar_64", ["buffer.bus_bits=512"])
    with pytest.raises(InputError, match=r"buffer\.bus_bits: no .* KB SRAM with a 512-bit bus"):
        CostModel(chain(), chip).evaluate()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[Devices level]\nx=1", ["[Devices level]", "unknown section", "Did you mean"]),
        ("[Device level]\nRead_Latenci = 3", ["Read_Latenci".lower(), "Did you mean"]),
        ("[Device level]\nRead_Latency = fast", ["read_latency", "`fast`"]),
        ("[Device level]\nDevice_Type = DRAM", ["device_type", "`NVM` or `SRAM`"]),
        ("[Crossbar level]\nXbar_Size = 256", ["xbar_size", "two numbers"]),
        ("[Architecture level]\nBuffer_Choice = 2", ["buffer_choice", "1 (SRAM)"]),
        ("[Algorithm Configuration]\nNoC_enable = 1", ["noc_enable"]),
        ("no section", ["not a valid configuration file"]),
    ],
)
def test_wrong_mnsim_files(text, words, tmp_path):
    path = tmp_path / "c.ini"
    path.write_text(text)
    with pytest.raises(InputError) as failure:
        load_chip(str(path))
    for word in words:
        assert word in str(failure.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"xbar_size": "128,128"}, ["does not divide"]),
        ({"adc_choice": "-1", "adc_precision": "0"}, ["interface.adc"]),
        ({"digital_frequency": "1e-320"}, ["digital.frequency_mhz", "1e-320", "0.001"]),
        ({"tile_num": "10000,10000"}, ["mesh.size", "10000", "1024"]),
        ({"xbar_size": "9" * 5000 + ",256"}, ["xbar_size", "whole numbers"]),
    ],
)
def test_wrong_values_in_whole_mnsim_files(changes, words, tmp_path):
    path = tmp_path / "c.ini"
    path.write_text(whole_ini(**changes))
    with pytest.raises(InputError) as failure:
        load_chip(str(path))
    for word in words:
        assert word in str(failure.value)


@pytest.mark.parametrize("head", ["", "\ufeff"], ids=["plain", "BOM"])
def test_mnsims_own_file_is_its_default_and_says_what_it_ignores(head, tmp_path, caplog):
    path = tmp_path / "SimConfig.ini"
    path.write_text(head + whole_ini(device_level="4"), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        chip = load_chip(str(path))
    assert chip.digest == load_chip("mnsim_default").digest
    assert "Device_Level (4 here)" in caplog.text
    assert "one bit a cell" in caplog.text


KEYS = [line.split(" =")[0] for line in whole_ini().splitlines() if " =" in line]


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_named_or_has_no_influence(key, tmp_path, caplog):
    path, default = tmp_path / "c.ini", load_chip("mnsim_default").digest
    path.write_text("\n".join(x for x in whole_ini().splitlines() if x.split(" =")[0] != key))
    assert load_chip(str(path)).digest == default
    if f"] {key} = " in caplog.text:  # what is named matters
        path.write_text(whole_ini(**{key: "0T1R" if key == "cell_type" else "7"}))
        with suppress(InputError):
            assert load_chip(str(path)).digest != default


def test_several_missing_keys_are_named(tmp_path, caplog):
    path = tmp_path / "c.ini"
    dropped = ("xbar_size", "adc_num")
    path.write_text("\n".join(x for x in whole_ini().splitlines() if not x.startswith(dropped)))
    load_chip(str(path))
    assert (
        "[crossbar level] xbar_size = 256,256, [process element level] adc_num = 128" in caplog.text
    )


@pytest.mark.parametrize(
    "text", ["", "[Device level]\n", "[Crossbar level]\nXbar_Size = 256,256\n"]
)
def test_a_missing_section_is_refused(text, tmp_path):
    path = tmp_path / "c.ini"
    path.write_text(text)
    with pytest.raises(InputError, match=r"c\.ini: lacks .*\[tile level\]"):
        load_chip(str(path))


def test_user_defined_converters_of_an_mnsim_file(tmp_path):
    path = tmp_path / "c.ini"
    path.write_text(
        whole_ini(
            adc_choice="-1", adc_precision="5", adc_area="700", adc_power="0.001",
            adc_sample_rate="2",
        )
    )  # fmt: skip
    adc = Components.of(load_chip(str(path))).adc
    assert (adc.bits, adc.area_um2, adc.power_w, adc.latency_ns) == (5, 700, 0.001, 3.5)


# Values that no chip has: the words that the message must have besides the key.
NONSENSE = {
    "digital.frequency_mhz=1e-320": "0.001",
    "buffer.tile_output_kb=1e300": "1000000",
    "buffer.pe_input_kb=-1": "0",
    "mesh.size=[10000,10000]": "1024",
    "tile.pes=[100000,100000]": "1024",
    "crossbar.rows=1000000000": "65536",
    "crossbar.resistances_ohm=[1e-300,1e300]": "1",
    "crossbar.read_voltages_v=[0,1e200]": "100",
    "interface.adcs_per_subarray=999999999": "65536",
    "mapping.groups=1000000000": "65536",
    "buffer.bus_bits=9999999999": "65536",
    "crossbar.device_technology_nm=1e-9": "0.1",
}


@pytest.mark.parametrize("override", NONSENSE)
def test_values_that_no_chip_has(override):
    with pytest.raises(InputError) as failure:
        load_chip("xbar_64", [override])
    assert override.partition("=")[0] in str(failure.value)
    assert NONSENSE[override] in failure.value.allowed


def _numbers(model, prefix=""):
    """Dotted keys of all numbers of a chip description."""
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        models = _models_in(field.annotation)
        if models:
            yield from (found for part in models for found in _numbers(part, f"{key}."))
        elif any(kind in str(field.annotation) for kind in ("int", "float")):
            yield key, "tuple" in str(field.annotation)


@pytest.mark.parametrize(("key", "is_pair"), list(_numbers(Chip)))
@pytest.mark.parametrize("value", ["1e300", "-1e300", ".nan", ".inf", "1" + "0" * 17])
def test_no_number_of_a_chip_is_without_limits(key, is_pair, value):
    with pytest.raises(InputError):
        load_chip("xbar_64", [f"{key}=[{value}, {value}]" if is_pair else f"{key}={value}"])
