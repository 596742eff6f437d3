"""What ``epim-nas cost --compare`` prints: candidates side by side, in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from epim_nas.cli.cost_tables import ENERGY_UNITS, TIME_UNITS, Unit, number_table, show

if TYPE_CHECKING:
    from rich.table import Table

    from epim_nas.cli.comparison import Comparison, Metric

_AREA_UNITS = (("mm2", 1e6),)
_EDP_UNITS = (("fJ s", 1e3), ("pJ s", 1e6), ("nJ s", 1e9), ("uJ s", 1e12), ("mJ s", 1e15))
_LETTERS = ("A", "B", "C", "D")


def print_comparison(comparison: Comparison) -> None:
    """Print the layers side by side, then the totals with their ratios to the first."""
    for table in _layer_tables(comparison):
        show(table, "")
    network = comparison.costs[0].network
    names = zip(_letters(comparison), comparison.names, strict=True)
    show(
        _totals_table(comparison),
        "",
        *(f"{letter}  {network}, {name}" for letter, name in names),
    )


def _letters(comparison: Comparison) -> tuple[str, ...]:
    return _LETTERS[: len(comparison.costs)]


def _layer_tables(comparison: Comparison) -> list[Table]:
    """One table of two candidates; one a quantity where more would not fit."""
    rows = list(zip(*(cost.layers for cost in comparison.costs), strict=True))
    times = [[layer.sequential_latency_ns for layer in row] for row in rows]
    energies = [[layer.energy_nj["total"] for layer in row] for row in rows]
    time = Unit.of(TIME_UNITS, [value for row in times for value in row])
    energy = Unit.of(ENERGY_UNITS, [value for row in energies for value in row])
    quantities = {
        "cross-\nbars": [[str(layer.crossbars or "") for layer in row] for row in rows],
        f"latency\n{time.name}": [[time.show(value) for value in row] for row in times],
        f"energy\n{energy.name}": [[energy.show(value) for value in row] for row in energies],
    }
    groups = [[name] for name in quantities] if len(comparison.costs) > 2 else [list(quantities)]
    tables = []
    for group in groups:
        columns = [f"{name}\n{letter}" for name in group for letter in _letters(comparison)]
        table = number_table("layer", *columns)
        for index, row in enumerate(rows):
            cells = [cell for name in group for cell in quantities[name][index]]
            table.add_row(row[0].name, *cells)
        tables.append(table)
    return tables


def _totals_table(comparison: Comparison) -> Table:
    first, *others = _letters(comparison)
    table = number_table(
        "", first, *(column for other in others for column in (other, f"{other} / {first}"))
    )

    def add(name: str, shown: Sequence[str], ratios: Sequence[float | None]) -> None:
        cells = [shown[0]]
        for value, ratio in zip(shown[1:], ratios[1:], strict=True):
            cells += [value, "" if ratio is None else f"{ratio:.3f}"]
        table.add_row(name, *cells)

    def count(metric: Metric) -> None:
        values = [f"{value:.0f}" for value in comparison.totals(metric)]
        add(metric, values, comparison.ratios(metric))

    def measure(name: str, metric: Metric, units: Sequence[tuple[str, float]]) -> None:
        values = comparison.totals(metric)
        unit = Unit.of(units, values)
        shown = [unit.show(value) for value in values]
        add(f"{name}, {unit.name}", shown, comparison.ratios(metric))

    count("crossbars")
    count("tiles")
    used = comparison.totals("utilization")
    add("cells used", [f"{value:.1%}" for value in used], comparison.ratios("utilization"))
    count("rounds")
    measure("latency, pipelined", "latency_ns", TIME_UNITS)
    measure("latency, sequential", "sequential_latency_ns", TIME_UNITS)
    measure("energy", "energy_nj", ENERGY_UNITS)
    measure("energy x pipelined", "edp_nj_ns", _EDP_UNITS)
    measure("area", "area_um2", _AREA_UNITS)
    # Relative to the dense network on the candidate's own chip, hence without a ratio.
    for name, part in (("compression", "total"), ("  by shape", "shape"), ("  by bits", "bits")):
        factors = [f"{getattr(value, part):.2f}x" for value in comparison.compressions]
        add(name, factors, [None] * len(factors))
    return table
