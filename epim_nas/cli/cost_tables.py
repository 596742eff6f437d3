"""What ``epim-nas cost`` prints: tables that fit a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.table import Table

from epim_nas.cli.output import console

if TYPE_CHECKING:
    from epim_nas.hardware import NetworkCost

TIME_UNITS = (("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9))
ENERGY_UNITS = (("nJ", 1.0), ("uJ", 1e3), ("mJ", 1e6), ("J", 1e9))

# Row -> its key among the components of a layer's time, and of its energy.
_COMPONENTS = {
    "buffers": ("buffer", "buf"),
    "between tiles": ("inter_tile", None),
    "within tiles": ("intra_tile", None),
    "ADC": ("ADC", "ADC"),
    "crossbars": ("xbar", "xbar"),
    "DAC": ("DAC", "DAC"),
    "digital": ("digital", "digital"),
    "pooling": ("pooling", "pooling"),
    "index tables": ("index_table", "index_table"),
}
_TYPES = {"pooling": "pool", "element_sum": "sum"}


@dataclass(frozen=True)
class Unit:
    """How the numbers of a row or column are shown.

    Attributes:
        name: e.g. ``ms``.
        size: how many of the base unit it is.
        decimals: digits after the point; the same for all, so that their points are aligned.
    """

    name: str
    size: float
    decimals: int

    @classmethod
    def of(cls, units: Sequence[tuple[str, float]], values: Iterable[float]) -> Unit:
        """The largest unit that the largest value reaches, with four digits for that value."""
        largest = max(values, default=0.0)
        reached = [unit for unit in units if unit[1] <= largest]
        name, size = reached[-1] if reached else units[0]
        digits = floor(log10(largest / size)) + 1 if largest > 0 else 1
        return cls(name, size, min(max(4 - digits, 0), 4))

    def show(self, value: float) -> str:
        """The number, without the unit's name."""
        return f"{value / self.size:.{self.decimals}f}"


def show(*parts: Table | str) -> None:
    """Print tables and lines to stdout."""
    screen = console()
    if not screen.is_terminal:
        screen = console(width=200)  # a pipe or a file has no width to wrap at
    for part in parts:
        screen.print(part)


def number_table(*columns: str, texts: int = 1) -> Table:
    """An empty table; all but the first ``texts`` columns hold numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for name in columns[:texts]:
        table.add_column(name, overflow="fold", vertical="bottom")
    for name in columns[texts:]:
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    return table


def print_cost(result: NetworkCost) -> None:
    """Print the layers, where time and energy go, and the totals."""
    totals = result.totals
    time = Unit.of(TIME_UNITS, [totals.latency_ns])
    energy = Unit.of(ENERGY_UNITS, [totals.energy_nj])
    show(
        _layer_table(result),
        "",
        _component_table(result),
        "",
        f"{result.network} on {result.hardware}: "
        f"{totals.crossbars} crossbars in {totals.tiles} tiles",
        f"cells used {totals.utilization:.1%}, area {totals.area_um2 / 1e6:.4g} mm2, "
        f"energy {energy.show(totals.energy_nj)} {energy.name}",
        f"latency {time.show(totals.latency_ns)} {time.name} pipelined, "
        f"{time.show(totals.sequential_latency_ns)} {time.name} sequential",
    )


def _layer_table(result: NetworkCost) -> Table:
    times = [layer.sequential_latency_ns for layer in result.layers]
    energies = [layer.energy_nj["total"] for layer in result.layers]
    time, energy = Unit.of(TIME_UNITS, times), Unit.of(ENERGY_UNITS, energies)
    numbers = ("cross-\nbars", "cells\nused", "rounds")
    costs = (f"latency\n{time.name}", "share", f"energy\n{energy.name}", "share")
    table = number_table("layer", "type", *numbers, *costs, texts=2)
    for layer, time_ns, energy_nj in zip(result.layers, times, energies, strict=True):
        weighted = layer.crossbars > 0
        table.add_row(
            layer.name,
            _TYPES.get(layer.type, layer.type),
            str(layer.crossbars) if weighted else "",
            f"{layer.utilization:.1%}" if weighted else "",
            str(layer.rounds) if weighted else "",
            time.show(time_ns),
            _share(time_ns, times),
            energy.show(energy_nj),
            _share(energy_nj, energies),
        )
    return table


def _component_table(result: NetworkCost) -> Table:
    """Busy time and energy by component, the most time first.

    Busy time is summed over the layers, without waiting. As in MNSIM 2.0, reading the output
    buffer for a transfer is in two components; shares are of the sum of what is shown.
    """
    rows = [
        (name, _component(result, "latency_ns", time_key), _component(result, "energy_nj", key))
        for name, (time_key, key) in _COMPONENTS.items()
    ]
    rows = sorted((row for row in rows if row[1] or row[2]), key=lambda row: -row[1])
    times, energies = [row[1] for row in rows], [row[2] for row in rows]
    time, energy = Unit.of(TIME_UNITS, times), Unit.of(ENERGY_UNITS, energies)
    table = number_table(
        "where it goes", f"busy time\n{time.name}", "share", f"energy\n{energy.name}", "share"
    )
    for name, time_ns, energy_nj in rows:
        charged = energy_nj > 0
        table.add_row(
            name,
            time.show(time_ns),
            _share(time_ns, times),
            energy.show(energy_nj) if charged else "",
            _share(energy_nj, energies) if charged else "",
        )
    return table


def _component(
    result: NetworkCost, field: Literal["latency_ns", "energy_nj"], key: str | None
) -> float:
    if key is None:
        return 0.0
    return sum(getattr(layer, field)[key] for layer in result.layers)


def _share(value: float, values: Sequence[float]) -> str:
    whole = sum(values)
    return f"{value / whole:.1%}" if whole else ""
