"""Draw the pictures of docs/concepts.md, as SVG, into docs/images.

    python scripts/draw_concepts.py [FOLDER]

The layer is the page's worked example: a 3x3 convolution from 16 to 32 channels whose epitome is
16x8x4x4, on the chip `xbar_64`. Every number is read from its sampling plan and index tables.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from epim_nas import EpitomeShape, SamplingPlan, load_chip
from epim_nas.datapath.tables import IndexTables
from epim_nas.hardware.mapping import crossbar_grid

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WEIGHT, EPITOME, WEIGHT_BITS = (32, 16, 3, 3), EpitomeShape(16, 8, 4, 4), 3
CHIP = load_chip("xbar_64")
PLAN = SamplingPlan.build(WEIGHT, EPITOME)
WRAPPED = SamplingPlan.build(WEIGHT, EPITOME, wrap=True)
GRID = crossbar_grid(PLAN, WEIGHT_BITS, CHIP)
LINES = CHIP.crossbar.rows
TABLES = IndexTables.build(PLAN, GRID, LINES)

# Okabe and Ito's palette, one colour a patch; the lighter ones are for areas that carry text.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
LIGHT = ("#A9D0EA", "#F8DC9E", "#A1DBC9", "#EECBDD")
INK, GREY, PALE = "#222222", "#777777", "#E9E9E9"
SETTINGS = {
    "font.size": 10,
    "svg.hashsalt": "epim_nas",  # the same file from the same drawing
    "svg.fonttype": "path",
    "hatch.linewidth": 0.6,
    "text.color": INK,
}


def main(folder: Path) -> None:
    """Write the four pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(SETTINGS):
        for name, figure in (
            ("sampling", sampling()),
            ("rounds", rounds()),
            ("wrapping", wrapping()),
            ("index_tables", index_tables()),
        ):
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, facecolor="white")


def sampling() -> Figure:
    """A plane of the epitome, the window of each patch, and the slabs of the weight they fill."""
    figure, axes = _canvas(10.0, 4.5)
    height, width = EPITOME.height, EPITOME.width
    repeats = PLAN.repeats[0, 0]
    _text(axes, 1.3, 4.2, f"epitome {_by(EPITOME.as_tuple)}", size=12)
    _text(axes, 1.3, 3.92, f"{PLAN.repeats.size} elements, one of its planes:", colour=GREY)
    shades = {int(count): str(1 - 0.09 * count) for count in np.unique(repeats)}
    for row, column in np.ndindex(height, width):
        count = int(repeats[row, column])
        _box(axes, 0.3 + column / 2, 3.2 - row / 2, 0.5, 0.5, shades[count])
        _text(axes, 0.55 + column / 2, 3.45 - row / 2, str(count))
    _text(
        axes,
        1.3,
        1.35,
        "the numbers say how many\nelements of the weight\nan element fills",
        colour=GREY,
    )
    _arrow(axes, (2.55, 2.45), (3.15, 2.45))

    _text(axes, 4.5, 4.2, f"{len(PLAN.patches)} patches, one for each slab", size=12)
    _text(axes, 4.5, 3.92, "windows as high and wide as the kernel", colour=GREY)
    for number, patch in enumerate(PLAN.patches):
        left, bottom = 3.4 + 1.2 * (number % 2), 2.7 - 1.7 * (number // 2)
        for row, column in np.ndindex(height, width):
            inside = 0 <= row - patch.top < WEIGHT[2] and 0 <= column - patch.left < WEIGHT[3]
            cell = (left + column / 4, bottom + (height - 1 - row) / 4, 0.25, 0.25)
            _box(axes, *cell, COLOURS[number] if inside else "white", edge="#BBBBBB")
        label = f"patch {number}:\ntop {patch.top}, left {patch.left}"
        _text(axes, left + 0.5, bottom - 0.23, label, size=9)
    _arrow(axes, (5.85, 2.45), (6.45, 2.45))

    _text(axes, 8.6, 4.2, f"weight {_by(WEIGHT)}", size=12)
    _text(axes, 8.6, 3.92, f"{PLAN.weight_index.size} elements", colour=GREY)
    _slabs(axes, PLAN, 7.5, 0.75, 1.1, 1.3)
    _text(axes, 8.6, 0.2, "input channels", colour=GREY)
    _text(axes, 6.78, 2.05, "output channels", colour=GREY, rotation=90)
    return figure


def rounds() -> Figure:
    """The word lines that every round drives, on both crossbars of the epitome."""
    figure, axes = _canvas(10.0, 5.75, bottom=0.35)
    groups, held = GRID.row_groups, GRID.channels_per_row_group
    cells = EPITOME.height * EPITOME.width
    used = GRID.outputs * GRID.columns_per_output / GRID.columns
    lines = [_driven(number) for number in range(TABLES.rounds)]

    # One channel, enlarged: which of its cells the first window covers.
    _text(axes, 1.2, 5.85, "one channel, round 0", size=12)
    _text(axes, 1.2, 5.58, f"{cells} word lines", colour=GREY)
    for cell in range(cells):
        row, column = divmod(cell, EPITOME.width)
        bottom = 5.2 - 0.255 * cell
        _box(axes, 0.85, bottom, 0.85, 0.255, COLOURS[0] if cell in lines[0] else "white")
        _text(axes, 0.75, bottom + 0.12, f"({row}, {column})", size=8.5, align="right")
    _text(
        axes,
        1.25,
        0.85,
        "a line holds one cell\nof the channel's plane:\n(row, column)",
        colour=GREY,
    )

    side = 1.62
    for number in range(TABLES.rounds):
        left = 2.9 + 1.75 * number
        inputs, outputs = TABLES.ifat[number, 0], TABLES.ofat[number, 0]
        _text(axes, left + side / 2, 5.85, f"round {number}", size=12)
        _text(axes, left + side / 2, 5.58, f"inputs {_span(inputs)}", colour=GREY)
        for group in range(groups):
            bottom = 3.75 - (side + 0.35) * group
            _box(axes, left, bottom, side, side, "white")
            _box(axes, left + side * used, bottom, side * (1 - used), side, PALE, hatch="///")
            for line in lines[number]:
                if line // LINES == group:
                    place = bottom + side * (1 - (line % LINES + 1) / LINES)
                    _box(axes, left, place, side * used, side / LINES, COLOURS[number], edge="none")
            for channel in range(1, held):
                at = bottom + side * (1 - channel * cells / LINES)
                axes.plot([left, left + side * used], [at, at], color=INK, linewidth=0.6)
            _box(axes, left, bottom, side, side, "none")
            if number == 0:
                for channel in range(held):
                    at = bottom + side * (1 - (channel + 0.5) * cells / LINES)
                    label = f"channel {group * held + channel}"
                    _text(axes, left - 0.06, at, label, size=8.5, align="right")
        what = "written" if TABLES.opens[number] else "added"
        _text(axes, left + side / 2, 1.5, f"outputs {_span(outputs)}\n{what}")
    per_crossbar = sum(line < LINES for line in lines[0])
    _text(
        axes,
        6.3,
        0.85,
        f"{groups} crossbars, {held} channels of the epitome each. A round drives {per_crossbar} of"
        f" {LINES} lines in each and reads\n"
        f"{GRID.outputs * GRID.columns_per_output} columns: {GRID.outputs} outputs of"
        f" {GRID.columns_per_output} bit slices. Hatched columns are free. All rounds\n"
        "need both crossbars, so they follow one another at every output position.",
        colour=GREY,
    )
    return figure


def wrapping() -> Figure:
    """The slabs, rounds and outputs of the layer without and with output-channel wrapping."""
    figure, axes = _canvas(10.0, 4.3)
    for left, plan, title in (
        (0.0, PLAN, "without wrapping"),
        (5.1, WRAPPED, "output-channel wrapping"),
    ):
        _text(axes, left + 2.4, 4.0, f"{title}: {plan.rounds} rounds a position", size=12)
        _slabs(axes, plan, left + 0.75, 0.85, 1.0, 1.2)
        _text(axes, left + 1.75, 0.32, "input channels", colour=GREY)
        _text(axes, left + 0.15, 2.05, "output channels", colour=GREY, rotation=90)
        first = 0
        for slab in range(plan.out_slabs):
            middle = 2.65 - 1.2 * slab
            start = slab * plan.patch[0]
            label = f"outputs\n{start}-{start + plan.patch[0] - 1}"
            computed = slab == 0 or not plan.wrap
            _round_box(
                axes, left + 3.75, middle - 0.35, 0.95, 0.7, label, "white" if computed else PALE
            )
            if computed:
                numbers = range(first, first + plan.rounds_per_output)
                first = numbers.stop
                _arrow(axes, (left + 2.8, middle), (left + 3.7, middle))
                _text(
                    axes,
                    left + 3.25,
                    middle + 0.28,
                    "rounds\n" + ", ".join(map(str, numbers)),
                    size=9,
                )
        if plan.wrap:
            _arrow(axes, (left + 4.22, 2.27), (left + 4.22, 1.83))
            _text(axes, left + 4.12, 2.05, "copied", size=9, align="right")
            _text(axes, left + 3.2, 1.45, "same\npatches", size=9, colour=GREY)
    axes.plot([4.95, 4.95], [0.2, 4.1], color=PALE, linewidth=1.2)
    return figure


def index_tables() -> Figure:
    """Where the three tables act on the datapath, and their entries for the example."""
    figure, axes = _canvas(10.0, 4.9)
    stages = (
        "input\nbuffer",
        "DACs,\nword lines",
        "crossbars\n(the epitome)",
        "ADCs,\nshift and add",
        "output\nbuffer",
    )
    tables = {
        0: ("IFAT", "which inputs\na round fetches"),
        1: ("IFRT", "which word line\neach input drives"),
        4: ("OFAT", "where results are\nwritten or added"),
    }
    for number, stage in enumerate(stages):
        left = 0.2 + 2.03 * number
        _round_box(axes, left, 2.6, 1.45, 0.7, stage, "white")
        if number:
            _arrow(axes, (left - 0.55, 2.95), (left - 0.03, 2.95))
        if number in tables:
            name, what = tables[number]
            _round_box(axes, left, 3.95, 1.45, 0.75, "", PALE)
            _text(axes, left + 0.725, 4.52, name, size=11, weight="bold")
            _text(axes, left + 0.725, 4.2, what, size=9)
            _arrow(axes, (left + 0.725, 3.92), (left + 0.725, 3.33))

    columns = (0.75, 2.55, 5.35, 8.25)
    heads = ("round", "IFAT: inputs", "IFRT: first word lines", "OFAT: outputs")
    for place, head in zip(columns, heads, strict=True):
        _text(axes, place, 2.15, head, colour=GREY)
    for number in range(TABLES.rounds):
        bottom = 1.6 - 0.45 * number
        _box(axes, 0.2, bottom, 9.57, 0.4, LIGHT[number], edge="none")
        action = "write" if TABLES.opens[number] else "add"
        row = (
            str(number),
            _some(TABLES.ifat[number, 0]),
            _some(TABLES.ifrt[number], 4),
            f"{action} {_some(TABLES.ofat[number, 0])}",
        )
        for place, entry in zip(columns, row, strict=True):
            _text(axes, place, bottom + 0.2, entry)
    return figure


def _canvas(width: float, height: float, bottom: float = 0.0) -> tuple[Figure, Axes]:
    """A figure whose one axis has inches as units."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(bottom, bottom + height)
    axes.set_axis_off()
    return figure, axes


def _slabs(
    axes: Axes, plan: SamplingPlan, left: float, bottom: float, width: float, height: float
) -> None:
    """The slabs of a weight, coloured by their patch, with channel numbers at the rim."""
    known = {patch.source: number for number, patch in reversed([*enumerate(PLAN.patches)])}
    for number, patch in enumerate(plan.patches):
        row, column = divmod(number, plan.in_slabs)
        colour, repeated = known[patch.source], plan.wrap and row > 0
        x, y = left + column * width, bottom + (plan.out_slabs - 1 - row) * height
        _box(axes, x, y, width, height, LIGHT[colour], hatch="///" if repeated else None)
        if not repeated:
            _text(axes, x + width / 2, y + height / 2, f"patch {colour}")
        if column == 0:
            outs = np.arange(patch.out_channels) + patch.target_out
            _text(axes, left - 0.1, y + height / 2, _span(outs), size=9, align="right")
        if row == plan.out_slabs - 1:
            ins = np.arange(patch.in_channels) + patch.target_in
            _text(axes, x + width / 2, bottom - 0.18, _span(ins), size=9)


def _driven(number: int) -> set[int]:
    """Word lines that a round drives, counted over the crossbars."""
    _, _, kernel_h, kernel_w = WEIGHT
    return {
        int(line) + i * EPITOME.width + j
        for line in TABLES.ifrt[number]
        for i in range(kernel_h)
        for j in range(kernel_w)
    }


def _span(channels: Sequence[int] | np.ndarray) -> str:
    return f"{int(channels[0])}-{int(channels[-1])}"


def _some(numbers: Iterable[int], shown: int = 3) -> str:
    texts = [str(int(number)) for number in numbers]
    return ", ".join([*texts[:shown], "...", texts[-1]])


def _by(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def _text(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float = 10,
    colour: str = INK,
    align: str = "center",
    rotation: float = 0,
    weight: str = "normal",
) -> None:
    axes.text(
        x,
        y,
        text,
        ha=align,
        va="center",
        fontsize=size,
        color=colour,
        rotation=rotation,
        weight=weight,
    )


def _box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    colour: str,
    *,
    edge: str = INK,
    hatch: str | None = None,
) -> None:
    style = {"facecolor": colour, "edgecolor": edge, "linewidth": 0.8, "hatch": hatch}
    axes.add_patch(Rectangle((x, y), width, height, **style))


def _round_box(
    axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str
) -> None:
    style = {"boxstyle": "round,pad=0,rounding_size=0.08", "linewidth": 1}
    axes.add_patch(FancyBboxPatch((x, y), width, height, facecolor=colour, edgecolor=INK, **style))
    _text(axes, x + width / 2, y + height / 2, text)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 12, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, color=INK, linewidth=1.2, **style))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
