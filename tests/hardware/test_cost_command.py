"""``epim-nas cost`` through a Typer application."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from epim_nas.cli.cost import cost
from epim_nas.epitome.design import Choice, Design
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError
from epim_nas.hardware import CostModel, load_chip
from epim_nas.network import save_network
from tests.hardware.nets import residual
from tests.hardware.reference import ini_text, load_cases

app = typer.Typer()
app.command()(cost)


def run(*arguments):
    result = CliRunner().invoke(app, [str(item) for item in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def network_file(tmp_path):
    path = tmp_path / "net.yaml"
    save_network(residual(), path)
    return path


def test_json_is_the_contract(network_file):
    result = run("--network", network_file, "--hardware", "xbar_64", "--json")
    data = json.loads(result.stdout)
    assert data["schema"] == "epim-nas/cost@1"
    assert data["hardware"] == "xbar_64"
    expected = CostModel(residual(), load_chip("xbar_64")).evaluate()
    assert data["totals"]["latency_ns"] == expected.totals.latency_ns
    assert set(data["totals"]) == {
        "crossbars",
        "tiles",
        "latency_ns",
        "sequential_latency_ns",
        "energy_nj",
        "area_um2",
        "utilization",
        "rounds",
    }
    assert [layer["type"] for layer in data["layers"]] == [
        "conv",
        "conv",
        "element_sum",
        "pooling",
        "conv",
        "fc",
    ]
    for layer in data["layers"]:
        assert {"name", "crossbars", "tiles", "rounds", "power_w", "area_um2"} <= set(layer)
        assert {"DAC", "xbar", "ADC", "buffer", "tile_merge"} <= set(layer["latency_ns"])
        assert "total" in layer["energy_nj"]


def test_bits_overrides_and_an_mnsim_chip(network_file, tmp_path):
    case = next(case for case in load_cases() if "error" not in case)
    path = tmp_path / "SimConfig.ini"
    path.write_text(ini_text(case))
    common = ("--network", network_file, "--hardware", path, "--json")
    options = ("--weight-bits", 5, "--activation-bits", 4, "--set", "mapping.packing=packed")
    data = json.loads(run(*common, *options).stdout)
    chip = load_chip(str(path), ["mapping.packing=packed"])
    expected = CostModel(residual(), chip).evaluate(weight_bits=5, activation_bits=4)
    assert data == json.loads(json.dumps(expected.to_dict()))


def test_a_design_file(network_file, tmp_path):
    network = residual()
    choices = dict(Design.uniform(network, 3, 9).choices)
    choices["b"] = Choice(EpitomeShape(16, 16, 3, 3), False, 3, 9)
    design, path = Design(network.name, choices), tmp_path / "design.yaml"
    design.save(path)
    data = json.loads(
        run("--network", network_file, "--hardware", "xbar_64", "--design", path, "--json").stdout
    )
    expected = CostModel(network, load_chip("xbar_64")).evaluate(design)
    assert data["totals"]["energy_nj"] == expected.totals.energy_nj
    assert data["layers"][1]["rounds"] == 4


def test_the_table_shows_every_layer_and_the_totals(network_file):
    text = run("--network", network_file, "--hardware", "xbar_64").stdout
    result = CostModel(residual(), load_chip("xbar_64")).evaluate()
    totals = result.totals
    assert f"{totals.crossbars} crossbars in {totals.tiles} tiles" in text
    assert f"latency {totals.latency_ns / 1e3:.1f} us pipelined" in text
    assert f"energy {totals.energy_nj / 1e3:.2f} uJ" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.split()}
    assert rows["s"][:2] == ["s", "sum"]
    assert rows["p"][:2] == ["p", "pool"]
    for layer in result.layers:
        if layer.crossbars:
            crossbars, used, rounds, time, time_share, energy, energy_share = rows[layer.name][2:]
            assert (int(crossbars), int(rounds)) == (layer.crossbars, layer.rounds)
            assert used == f"{layer.utilization:.1%}"
            assert float(time) == pytest.approx(layer.sequential_latency_ns / 1e3, abs=0.06)
            assert float(energy) == pytest.approx(layer.energy_nj["total"] / 1e3, abs=0.006)
            share = layer.sequential_latency_ns / totals.sequential_latency_ns
            assert time_share == f"{share:.1%}"
            assert energy_share == f"{layer.energy_nj['total'] / totals.energy_nj:.1%}"


def test_the_table_says_where_time_and_energy_go(network_file):
    text = run("--network", network_file, "--hardware", "xbar_64").stdout
    layers = CostModel(residual(), load_chip("xbar_64")).evaluate().layers
    adc_nj = sum(layer.energy_nj["ADC"] for layer in layers)
    all_nj = sum(layer.energy_nj["total"] for layer in layers)
    buffers_ns = sum(layer.latency_ns["buffer"] for layer in layers)
    lines = text[text.index("where it goes") :].splitlines()
    rows = {line[:13].strip(): line[13:].split() for line in lines[2:] if line.strip()}
    # Energy: the components are the total. Time: busy time, the most of it first.
    assert rows["ADC"][3] == f"{adc_nj / all_nj:.1%}"
    assert float(rows["buffers"][0]) == pytest.approx(buffers_ns / 1e3, abs=0.06)
    shares = [float(cells[1].rstrip("%")) for cells in rows.values() if len(cells) in (2, 4)]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_a_built_in_model_by_name():
    pytest.importorskip("torch")
    data = json.loads(
        run("--network", "resnet20", "--hardware", "xbar_64", "--weight-bits", 32, "--json").stdout
    )
    same = json.loads(
        run("--model", "resnet20", "--hardware", "xbar_64", "--weight-bits", 32, "--json").stdout
    )
    assert data == same
    # Stem, 6 convolutions of 16 channels, 1 of 16 to 32, 5 of 32, 1 of 32 to 64, 5 of 64, fc;
    # 7 channels of 9 rows a crossbar, 31 slices a weight.
    counts = [8, *[3 * 8] * 6, 3 * 16, *[5 * 16] * 5, 5 * 31, *[10 * 31] * 5, 5]
    assert [layer["crossbars"] for layer in data["layers"] if layer["crossbars"]] == counts


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "got neither"),
        (("--network", "a.yaml", "--model", "resnet20"), "got both"),
        (("--network", "none.yaml"), "no such file"),
        (("--model", "resnet20", "--input-shape", "3,32"), "--input-shape: got `3,32`"),
        (("--model", "resnet20", "--classes", "0"), "--classes: got 0"),
        (("--model", "resnet20", "--weight-bits", "0"), "--weight-bits: got `0`"),
        (("--model", "resnet20", "--set", "mapping.packing=no"), "mapping.packing"),
        (("--model", "resnet20", "--design", "d.yaml", "--weight-bits", "3"), "design file"),
    ],
)
def test_wrong_input_is_one_input_error(arguments, words):
    with pytest.raises(InputError) as failure:
        run(*arguments, "--hardware", "xbar_64")
    assert words in str(failure.value)
