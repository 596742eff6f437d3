"""What the crossbar simulator measured, as a figure and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from epim_nas.report.escape import figure_text
from epim_nas.report.figures import BLUE, GREEN, INK, ORANGE, PURPLE, RED, new_figure, style_panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

_COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE)
_MARKERS = "osD^v"


def simulation_figure(
    rows: Sequence[Mapping[str, Any]], torch_accuracy: float, title: str
) -> Figure:
    """Top-1 accuracy against the ADCs' resolution, a line for every variation of the cells.

    Args:
        rows: ``adc_bits``, ``variation`` and ``accuracy`` of every measurement.
        torch_accuracy: of the quantized network without the crossbars, as a dashed line.
        title: above the figure.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = new_figure(5.6, 4.2)
    panel = figure.add_subplot()
    style_panel(panel)
    panel.axhline(
        100 * torch_accuracy, color=INK, linestyle="--", linewidth=1, label="quantized network"
    )
    for index, variation in enumerate(dict.fromkeys(row["variation"] for row in rows)):
        points = sorted(
            (row["adc_bits"], 100 * row["accuracy"])
            for row in rows
            if row["variation"] == variation
        )
        panel.plot(
            *zip(*points, strict=True),
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKERS[index % len(_MARKERS)],
            label=f"variation {variation:g}",
        )
    panel.set_xticks(sorted({row["adc_bits"] for row in rows}))
    panel.set_xlabel("bits of the ADCs")
    panel.set_ylabel("top-1 accuracy (%)")
    panel.legend(frameon=False)
    panel.set_title(figure_text(f"{title} on simulated crossbars"), fontsize=11, color=INK)
    return figure


def simulation_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Top-1 accuracy, ADC bits down, variations across."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    variations = list(dict.fromkeys(row["variation"] for row in rows))
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption="top-1 in %; clip: columns whose sum can leave the ADC's range, in %",
        caption_justify="left",
    )
    table.add_column("ADC bits", justify="right")
    table.add_column("clip", justify="right")
    for variation in variations:
        table.add_column(f"variation {variation:g}", justify="right")
    for bits in sorted({row["adc_bits"] for row in rows}):
        found = {row["variation"]: row for row in rows if row["adc_bits"] == bits}
        share = found[variations[0]]["clipping_columns"]
        table.add_row(
            str(bits),
            f"{100 * share:.1f}",
            *(f"{100 * found[variation]['accuracy']:.2f}" for variation in variations),
        )
    return table
