"""The figures of the results page, drawn from the tables that ``study.py`` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from study_tables import UNIFORM, rows_of

from epim_nas.files import atomic_path

BITS = (32, 9, 5, 3)
COLOURS = {"dense": "#555555", UNIFORM: "#1f77b4", "evolved": "#d95f02",
           "searched": "#1b7837"}  # fmt: skip
MARKERS = {"dense": "s", UNIFORM: "D", "evolved": "^", "searched": "o"}
PANELS = (("latency_ms", "latency_ns", "latency (ms)"), ("energy_mj", "energy_nj", "energy (mJ)"))


def designs_figure(source: Path, target: Path) -> None:
    """Latency and energy of all designs over their crossbars, and what is proven of any design."""
    rows = rows_of(source)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axis, (column, objective, label) in zip(axes, PANELS, strict=True):
        for kind in COLOURS:
            found = [
                row for row in rows
                if row["design"] == kind and int(row["bits"]) in BITS
                and row["objective"] in ("", objective)
            ]  # fmt: skip
            for wrapping in ("True", "False"):
                points = [row for row in found if row["wrapping"] == wrapping]
                if not points:
                    continue
                plain = kind != "dense" and wrapping == "False"
                axis.plot(
                    [int(row["crossbars"]) for row in points],
                    [float(row[column]) for row in points],
                    MARKERS[kind], color=COLOURS[kind], markersize=7,
                    fillstyle="none" if plain else "full",
                    label=f"{kind}{', no wrapping' if plain else ''}",
                )  # fmt: skip
        for row in rows:
            if row["design"] == "dense" and int(row["bits"]) in BITS:
                axis.annotate(
                    f"{row['bits']} bits", (int(row["crossbars"]), float(row[column])),
                    (0, -13), textcoords="offset points", ha="center", fontsize=7,
                )  # fmt: skip
        proven = {
            (int(row["budget"]), row["wrapping"]): float(row["bound"])
            for row in rows
            if row["design"] == "searched" and row["objective"] == objective
        }
        for (budget, wrapping), bound in proven.items():
            axis.hlines(
                bound, budget / 1.6, budget, color="black", linewidth=1.6,
                linestyle="-" if wrapping == "True" else ":",
            )  # fmt: skip
        axis.plot([], [], "-k", label="lower bound for the budget")
        axis.plot([], [], ":k", label="the same without wrapping")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("crossbars")
        axis.set_ylabel(label)
        axis.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axis.set_xticks([428, 712, 1424, 5696, 13120])
        axis.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%d"))
        axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axis.tick_params(axis="both", which="both", labelsize=8)
        axis.grid(alpha=0.25, which="both")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    _save(figure, target)


def wrapping_figure(source: Path, target: Path, parts: Sequence[str]) -> None:
    """Busy time, energy and buffer accesses of every layer, dense, not wrapped and wrapped."""
    rows = rows_of(source)
    labels = ("busy time (ms)", "energy (mJ)", "buffer accesses\n(millions)")
    figure, axes = plt.subplots(3, 1, figsize=(11, 7.5), sharex=True, layout="constrained")
    at = np.arange(len(rows))
    for axis, part, label in zip(axes, parts, labels, strict=True):
        for which, offset, colour in (
            ("dense", -0.28, "#555555"), ("not wrapped", 0.0, "#d95f02"),
            ("wrapped", 0.28, "#1b7837"),
        ):  # fmt: skip
            values = [float(row[f"{part}: {which}"]) for row in rows]
            axis.bar(at + offset, values, 0.28, color=colour, label=which)
        axis.set_ylabel(label)
        axis.grid(alpha=0.25, axis="y")
        axis.set_axisbelow(True)
    axes[-1].set_xticks(at, [row["layer"] for row in rows], rotation=90, fontsize=7)
    axes[-1].set_xlim(-0.6, len(rows) - 0.4)
    axes[0].legend(ncols=3, fontsize=8, frameon=False)
    _save(figure, target)


def _save(figure: plt.Figure, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
