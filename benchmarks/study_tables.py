"""The tables of docs/results.md, as Markdown, from the CSV files that ``study.py`` writes."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

Row = dict[str, str]
OBJECTIVES = ("latency_ns", "energy_nj", "edp_nj_ns")
UNIFORM = "uniform 1024x256"


def rows_of(path: Path) -> list[Row]:
    """The lines of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def cost_tables(folder: Path, network: str) -> list[str]:
    """The designs, how far they are from the best, and the comparison with evolution."""
    designs = rows_of(folder / f"{network}_designs.csv")
    races = rows_of(folder / f"{network}_race.csv")
    return [designs_table(designs), gaps_table(designs), race_table(races)]


def designs_table(rows: Sequence[Row]) -> str:
    """Designs by bits: dense, uniform, and those searched for the energy-delay product."""
    headings = ["design", "bits", "budget", "crossbars", "compr. (shape x bits)", "ms", "mJ", "EDP",
                "cells", "against dense"]  # fmt: skip
    order = ("dense", UNIFORM, "evolved", "searched")
    kept = [row for row in rows if row["objective"] in ("", "edp_nj_ns")]
    kept.sort(
        key=lambda row: (
            -int(row["bits"]),
            row["budget"] != "",
            # Of the searched designs, those with wrapping come first.
            row["budget"] != "" and row["wrapping"] == "False",
            order.index(row["design"]),
            row["wrapping"] == "True",
        )
    )
    lines = []
    for row in kept:
        name, bold = row["design"], ""
        if row["design"] == UNIFORM and row["wrapping"] == "True":
            name += ", wrapped"
        elif row["budget"] and row["wrapping"] == "False":
            name += ", no wrapping"
        elif row["design"] == "searched":
            bold = "**"
        values = [f"{float(row['latency_ms']):.1f}", _significant(row["energy_mj"]),
                  f"{float(row['edp']):.0f}"]  # fmt: skip
        parts = f"({float(row['shape']):.2f} x {float(row['fewer_bits']):.2f})"
        ratios = f"{float(row['latency_vs_dense']):.2f}, {float(row['energy_vs_dense']):.2f}"
        lines.append([
            f"{bold}{name}{bold}", row["bits"], row["budget"], row["crossbars"],
            f"{float(row['compression']):.1f} {parts}",
            *(f"{bold}{value}{bold}" for value in values),
            f"{100 * float(row['utilization']):.0f} %",
            f"{bold}{ratios}{bold}",
        ])  # fmt: skip
    return _markdown(headings, lines)


def gaps_table(rows: Sequence[Row]) -> str:
    """Designs searched for each objective, and how far above the lower bound each is."""
    headings = ["crossbars, bits", "dense: ms, mJ"]
    for name in ("latency", "energy", "EDP"):
        headings += [f"for {name}: ms, mJ", "above the bound"]
    lines = []
    for place in _places(rows):
        found = {
            row["objective"]: row
            for row in rows
            if row["design"] == "searched" and _place(row) == place
        }
        dense = next(row for row in rows if row["design"] == "dense" and row["bits"] == place[1])
        cells = [_named(place), _both(dense)]
        for objective in OBJECTIVES:
            cells += [_both(found[objective]), _per_cent([found[objective]["gap"]], " %")]
        lines.append(cells)
    return _markdown(headings, lines)


def race_table(rows: Sequence[Row]) -> str:
    """Evolution's least value over the default's, and the default's distance from the bound."""
    headings = ["crossbars, bits", "latency", "energy", "EDP", "designs", "gap: latency", "energy",
                "EDP"]  # fmt: skip
    lines = []
    for place in _places(rows):
        found = {row["objective"]: row for row in rows if _place(row) == place}
        ordered = [found[objective] for objective in OBJECTIVES]
        ratios = [_span((row["least_ratio"], row["most_ratio"]), "{:.2f}") for row in ordered]
        designs = {int(n) for row in ordered for n in row["designs"].split()}
        gaps = [_per_cent((row["least_gap"], row["most_gap"])) for row in ordered]
        lines.append([_named(place), *ratios, " or ".join(map(str, sorted(designs))), *gaps])
    return _markdown(headings, lines)


def stages_table(folder: Path) -> str:
    """What wrapping saves, by stage."""
    headings, *lines = csv.reader((folder / "wrapping_stages.csv").read_text().splitlines())
    return _markdown(headings, lines)


def _places(rows: Iterable[Row]) -> list[tuple[str, str, str]]:
    """Budget, bits and whether wrapping is allowed, of all searches, in their order."""
    return list(dict.fromkeys(_place(row) for row in rows if row["budget"]))


def _place(row: Row) -> tuple[str, str, str]:
    return row["budget"], row["bits"], row["wrapping"]


def _named(place: tuple[str, str, str]) -> str:
    budget, bits, wrapping = place
    return f"{budget}, {bits}{'' if wrapping == 'True' else ', no wrapping'}"


def _both(row: Row) -> str:
    return f"{float(row['latency_ms']):.1f}, {_significant(row['energy_mj'])}"


def _significant(value: str) -> str:
    """Three digits, and all of those before the point."""
    number = float(value)
    return f"{number:.0f}" if number >= 100 else f"{number:#.3g}"


def _per_cent(values: Iterable[str], unit: str = "") -> str:
    return _span([str(100 * abs(float(value))) for value in values], "{:.1f}") + unit


def _span(values: Iterable[str], form: str) -> str:
    """One number, or from the least to the greatest, where they are not written alike."""
    return " to ".join(dict.fromkeys(form.format(v) for v in sorted(map(float, values))))


def _markdown(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = "|---|" + "---:|" * (len(headings) - 1)
    return "\n".join([_line(headings), rule, *map(_line, lines)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
