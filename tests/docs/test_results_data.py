"""What the results page says of its tables holds in the tables that are committed with it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "docs" / "data"
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
