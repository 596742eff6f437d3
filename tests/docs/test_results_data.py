"""What the results page says of its tables holds in the tables that are committed with it."""

from __future__ import annotations

import csv
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs" / "data"
NETWORKS = ("resnet50", "resnet101")


def _rows(name: str) -> list[dict[str, str]]:
    with open(DATA / name, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("network", NETWORKS)
def test_nothing_is_below_its_bound_and_energy_is_on_it(network: str) -> None:
    races = _rows(f"{network}_race.csv")
    assert len(races) == 4 * 2 * 3
    for race in races:
        assert float(race["least"]) >= float(race["bound"]) * (1 - 1e-5)
        if race["objective"] == "energy_nj":
            assert float(race["least"]) == pytest.approx(float(race["bound"]), rel=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_default_is_never_behind_evolution_and_soon_ahead(network: str) -> None:
    for race in _rows(f"{network}_race.csv"):
        assert float(race["least_ratio"]) >= 1
        assert max(map(int, race["designs"].split())) <= 3  # a hundredth of 300


@pytest.mark.parametrize("network", NETWORKS)
def test_the_smallest_searched_design_is_below_dense_in_latency_and_energy(network: str) -> None:
    found = [
        row
        for row in _rows(f"{network}_designs.csv")
        if row["design"] == "searched" and row["budget"] == "428" and row["wrapping"] == "True"
    ]
    assert len(found) == 3
    for row in found:
        assert int(row["crossbars"]) <= 428
        assert float(row["latency_vs_dense"]) < 1
        assert float(row["energy_vs_dense"]) < 1


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts are importable, as they import each other."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_the_tables_of_the_page_are_those_of_the_data(benchmarks: None) -> None:
    tables = import_module("study_tables")
    page = (ROOT / "docs" / "results.md").read_text()
    for network in NETWORKS:
        for table in tables.cost_tables(DATA, network):
            assert table in page
    assert tables.stages_table(DATA) in page


def test_designs_that_are_not_searched_are_what_the_study_computes(benchmarks: None) -> None:
    study = import_module("study").Study("resnet50")
    computed = [vars(line) for line in study.fixed()]
    stored = [row for row in _rows("resnet50_designs.csv") if not row["budget"]]
    assert [line["crossbars"] for line in computed] == [int(row["crossbars"]) for row in stored]
    for line, row in zip(computed, stored, strict=True):
        for name in ("shape", "fewer_bits", "latency_ms", "energy_mj", "utilization"):
            assert line[name] == pytest.approx(float(row[name]), rel=1e-5), (row["design"], name)
    by_kind = {(row["design"], row["bits"], row["wrapping"]): row for row in stored}
    assert by_kind["dense", "32", "False"]["crossbars"] == "13120"  # EPIM's 30.65 times 428


def test_the_uniform_epitome_is_cut_to_the_layer(benchmarks: None) -> None:
    module = import_module("study")
    design = module.Study("resnet50")._uniform(3, module.UNIFORM, wrap=True)
    shapes = {n: c.shape and c.shape.as_tuple for n, c in design.choices.items()}
    assert shapes["layer4.0.conv1"] == (256, 1024, 1, 1)
    assert shapes["layer4.0.conv3"] == (256, 512, 1, 1)  # 512 inputs
    assert shapes["layer4.0.conv2"] == (256, 113, 3, 3)  # 1017 of 1024 rows
    assert shapes["layer1.0.conv1"] is None  # 64 x 64
    assert shapes["conv1"] is None
    assert shapes["fc"] is None
    assert design["layer4.0.conv3"].wrap
    assert not design["layer3.0.conv1"].wrap
