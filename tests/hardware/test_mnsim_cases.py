"""The model against MNSIM 2.0: every field of the sample cases, to 1e-6 relative."""

from __future__ import annotations

import pytest

from epim_nas.errors import InputError
from epim_nas.hardware import CostModel, load_chip
from tests.hardware.reference import (
    compare,
    compare_totals,
    ini_text,
    load_cases,
    load_packed_totals,
    network_of,
    overrides_of,
    relative,
)

CASES = load_cases()


def _id(case):
    changed = "-".join(f"{k}={v}" for k, v in list(case["overrides"].items())[:2])
    return f"{case.get('id', 'packed')}-{case['network']}-{changed}"


def _chip(case, folder):
    path = folder / "SimConfig.ini"
    path.write_text(ini_text(case))
    return load_chip(str(path), overrides_of(case))


@pytest.mark.parametrize("case", [case for case in CASES if "error" not in case], ids=_id)
def test_every_field_equals_the_simulator(case, tmp_path):
    cost = CostModel(network_of(case), _chip(case, tmp_path)).evaluate(
        weight_bits=case.get("Weightbit_given_to_MNSIM", case["weight_bits"]),
        activation_bits=case["act_bits"],
    )
    pairs = compare(case, cost)
    assert len(pairs) > 60
    wrong = {name: pair for name, pair in pairs.items() if relative(pair) > 1e-6}
    assert not wrong


@pytest.mark.parametrize(
    "case",
    load_packed_totals(),
    ids=lambda case: f"w{case['weight_bits']}a{case['act_bits']}-{case['device_bits']}bit",
)
def test_resnet50_with_packed_slices_and_multi_bit_cells(case, tmp_path):
    path = tmp_path / "SimConfig.ini"
    path.write_text(ini_text(case))
    overrides = [*overrides_of(case), f"mapping.cell_bits={case['device_bits']}"]
    cost = CostModel(network_of(case), load_chip(str(path), overrides)).evaluate(
        weight_bits=case["weight_bits"], activation_bits=case["act_bits"]
    )
    pairs = compare_totals(case, cost)
    wrong = {name: pair for name, pair in pairs.items() if relative(pair) > 1e-6}
    assert not wrong


def test_where_the_simulator_crashes_there_is_one_clear_error(tmp_path):
    good = next(case for case in CASES if case["network"] == "vgg8" and "error" not in case)
    fields = {
        "Buffer_Bitwidth": "buffer.bus_bits",
        "DAC_Num": "dac_num",
        "Pooling_unit_num": "tile.pooling.units",
    }
    seen = set()
    for case in CASES:
        key = next(iter(case["overrides"]), "")
        if "error" not in case or key not in fields:
            continue
        with pytest.raises(InputError) as failure:
            CostModel(network_of(good), _chip(case, tmp_path)).evaluate()
        assert fields[key] in failure.value.field
        seen.add(key)
    assert seen == set(fields)


def test_adc_num_zero_takes_as_many_as_fit_along_the_crossbar(tmp_path):
    case = next(c for c in CASES if c["overrides"].get("ADC_Num") == "0")
    chip = _chip(case, tmp_path)
    # Array: 65536 * 1.44 + 256 * 1150 um2, edge 623.5 um; ADC edge 40.62 um; times a pair of 2.
    from epim_nas.hardware.components import Components

    assert Components.of(chip).adcs_per_subarray == 31


def test_shells_on_a_mesh_that_is_not_square_fill_its_square_part(tmp_path):
    """The simulator fails on 64x48 although the network needs 18x18 tiles."""
    case = next(c for c in CASES if c["overrides"].get("Tile_Num") == "64,48")
    good = next(c for c in CASES if c["network"] == "vgg8" and "error" not in c)
    network = network_of(good)
    narrow = _chip(case, tmp_path)
    square = load_chip(str(tmp_path / "SimConfig.ini"), ["mesh.size=[64,64]"])
    totals = CostModel(network, narrow).evaluate().totals
    assert totals == CostModel(network, square).evaluate().totals
    assert totals.tiles == 322


def test_multi_bit_cells_use_fewer_slices(tmp_path):
    """2-bit cells with b bits cost what MNSIM says for ceil((b - 1) / 2) + 1 bits a weight."""
    case = next(c for c in CASES if c["network"] == "vgg8" and "error" not in c)
    path = tmp_path / "c.ini"
    path.write_text(ini_text(case))
    network = network_of(case)
    two = CostModel(network, load_chip(str(path), ["mapping.cell_bits=2"]))
    one = CostModel(network, load_chip(str(path)))
    for bits in (2, 3, 8, 9, 32):
        slices = -(-(bits - 1) // 2)
        ours = two.evaluate(weight_bits=bits).totals
        assert ours == one.evaluate(weight_bits=slices + 1).totals
