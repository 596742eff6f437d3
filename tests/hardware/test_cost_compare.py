"""``epim-nas cost --compare``: chips, designs and bits side by side."""

from __future__ import annotations

import json

import pytest

from epim_nas.epitome.design import Choice, Design
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError
from epim_nas.hardware import CostModel, compression, load_chip
from epim_nas.network import save_network
from tests.hardware.nets import residual
from tests.hardware.reference import whole_ini
from tests.hardware.test_cost_command import run


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "net.yaml"
    save_network(residual(), path)
    return ("--network", path, "--hardware", "xbar_64")


@pytest.fixture
def designs(tmp_path):
    """Two designs of the network, and their files."""
    network, found = residual(), {}
    for name, channels in (("a", 16), ("b", 4)):
        choices = dict(Design.uniform(network, 3, 9).choices)
        choices["b"] = Choice(EpitomeShape(channels, 16, 3, 3), False, 3, 9)
        design, path = Design(network.name, choices), tmp_path / f"{name}.yaml"
        design.save(path)
        found[path] = design
    return found


def compare(*arguments):
    return json.loads(run(*arguments, "--json").stdout)


def as_json(cost):
    return json.loads(json.dumps(cost.to_dict()))


def test_a_second_chip(base):
    data = compare(*base, "--compare", "epim_256")
    assert data["schema"] == "epim-nas/cost-comparison@1"
    assert data["names"] == ["dense w9a9 on xbar_64", "dense w9a9 on epim_256"]
    costs = [CostModel(residual(), load_chip(name)).evaluate() for name in ("xbar_64", "epim_256")]
    assert data["costs"] == [as_json(cost) for cost in costs]
    first, second = (cost.totals for cost in costs)
    ratios = data["ratios"]
    assert ratios["crossbars"] == [1.0, second.crossbars / first.crossbars]
    assert ratios["area_um2"][1] == pytest.approx(second.area_um2 / first.area_um2)
    assert ratios["edp_nj_ns"][1] == pytest.approx(
        ratios["energy_nj"][1] * ratios["latency_ns"][1], rel=1e-12
    )
    assert set(ratios) == {*data["costs"][0]["totals"], "edp_nj_ns"}


def test_a_second_design_and_the_dense_network(base, designs):
    (a, b), network, chip = designs, residual(), load_chip("xbar_64")
    data = compare(*base, "--design", a, "--compare", b, "--compare", "w32a9")
    model = CostModel(network, chip)
    dense = model.evaluate(weight_bits=32, activation_bits=9)
    expected = [model.evaluate(designs[a]), model.evaluate(designs[b]), dense]
    assert data["costs"] == [as_json(cost) for cost in expected]
    assert data["names"] == ["a.yaml on xbar_64", "b.yaml on xbar_64", "dense w32a9 on xbar_64"]
    parts = data["compressions"]
    assert parts[0]["total"] == compression(network, chip, designs[a]).total
    assert parts[0]["shape"] > 1
    assert parts[2] == {"total": 1.0, "shape": 1.0, "bits": 1.0}


def test_the_design_stays_on_a_second_chip(base, designs):
    a = next(iter(designs))
    data = compare(*base, "--design", a, "--compare", "epim_256")
    expected = CostModel(residual(), load_chip("epim_256")).evaluate(designs[a])
    assert data["costs"][1] == as_json(expected)


def test_the_bits_stay_on_a_second_chip(base):
    data = compare(*base, "--weight-bits", 5, "--activation-bits", 4, "--compare", "epim_256")
    model = CostModel(residual(), load_chip("epim_256"))
    assert data["costs"][1] == as_json(model.evaluate(weight_bits=5, activation_bits=4))


def test_changes_are_made_to_every_chip_also_to_files(base, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("schema: epim-nas/chip@1\nname: mine\n")
    ini = tmp_path / "SimConfig.ini"
    ini.write_text(whole_ini())
    change = ("--set", "mapping.cell_bits=2")
    data = compare(*base, *change, "--compare", path, "--compare", ini)
    for cost, name in zip(data["costs"], ("xbar_64", str(path), str(ini)), strict=True):
        chip = load_chip(name, ["mapping.cell_bits=2"])
        assert cost == as_json(CostModel(residual(), chip).evaluate())


def test_the_base_object_has_not_changed(base):
    data = compare(*base)
    assert data == as_json(CostModel(residual(), load_chip("xbar_64")).evaluate())


def test_the_tables_have_both_and_fit_a_terminal(base):
    text = run(*base, "--compare", "epim_256").stdout
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    costs = [CostModel(residual(), load_chip(name)).evaluate() for name in ("xbar_64", "epim_256")]
    lines = [line.split() for line in text.splitlines()]
    for metric in ("crossbars", "tiles"):
        first, second = (getattr(cost.totals, metric) for cost in costs)
        assert [metric, str(first), str(second), f"{second / first:.3f}"] in lines
    energies = [cost.totals.energy_nj for cost in costs]
    energy = next(line for line in lines if line[:2] == ["energy,", "uJ"])
    assert [float(value) for value in energy[2:4]] == [
        pytest.approx(value / 1e3, rel=1e-3) for value in energies
    ]
    assert float(energy[4]) == pytest.approx(energies[1] / energies[0], abs=6e-4)
    pairs = [(cost.layers[1].crossbars, cost.layers[1].sequential_latency_ns) for cost in costs]
    layer = next(line for line in lines if line[0:1] == ["b"])
    assert layer[1:3] == [str(crossbars) for crossbars, _ in pairs]
    assert [float(value) for value in layer[3:5]] == [
        pytest.approx(time_ns / 1e3, abs=0.06) for _, time_ns in pairs
    ]
    for letter, chip in (("A", "xbar_64"), ("B", "epim_256")):
        assert f"{letter}  residual, dense w9a9 on {chip}" in text


def test_names_with_brackets_are_shown_as_they_are(base, designs, tmp_path):
    (a, _), path = designs, tmp_path / "[bold].yaml"
    path.write_text(a.read_text())
    assert "B  residual, [bold].yaml on xbar_64" in run(*base, "--compare", path).stdout


def test_more_than_two_candidates_fit_as_well(base, designs):
    a, b = designs
    names = ("--compare", a, "--compare", b, "--compare", "epim_256")
    text = run(*base, *names).stdout
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert text.count("layer") == 3  # a table each of crossbars, latency and energy
    for line in ("B  residual, a.yaml on xbar_64", "D  residual, dense w9a9 on epim_256"):
        assert line in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.yaml", ("--compare", "no such file")),
        ("none.ini", ("none.ini", "no such file")),
        ("folder.yaml", ("--compare", "is a folder")),
        ("epim_265", ("--compare", "not a known chip", "`w9a9`", "mean `epim_256`?")),
        ("other.yaml", ("other.yaml: layers.g", "no such layer", "`a`, `b`, `c`, `f`")),
        ("net.yaml", ("schema", "epim-nas/network@1", "epim-nas/design@1", "epim-nas/chip@1")),
        ("list.yaml", ("list.yaml", "got `[1]`")),
        ("broken.yaml", ("broken.yaml: layers.a.weight_bits", "`99`")),
        ("wrong.yaml", ("wrong.yaml", "crossbar.rows", "`0`")),
        ("w0a9", ("--compare w0a9: weight bits", "got `0`", "from 2 to 32")),
        ("w9a99", ("--compare w9a99: activation bits", "got `99`")),
    ],
)
def test_wrong_comparisons(base, designs, tmp_path, name, words):
    design = next(iter(designs)).read_text()
    (tmp_path / "other.yaml").write_text(design.replace("  f:", "  g:"))
    (tmp_path / "broken.yaml").write_text(design.replace("weight_bits: 3", "weight_bits: 99"))
    (tmp_path / "wrong.yaml").write_text("name: wrong\ncrossbar: {rows: 0}\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "folder.yaml").mkdir()
    value = tmp_path / name if "." in name else name
    with pytest.raises(InputError) as failure:
        run(*base, "--compare", value)
    for word in words:
        assert word in str(failure.value)
    assert "\n" not in str(failure.value)


def test_too_many_comparisons(base):
    with pytest.raises(InputError, match="was given 4 times"):
        run(*base, *["--compare", "epim_256"] * 4)
