"""Figures with matplotlib: the front, and the layers of one design.

Drawn on their own canvas, without ``pyplot``: no global state and no display, so a search can
draw from any process. Colours are Okabe and Ito's palette, which colour-blind readers can tell
apart; every group also has its own marker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from epim_nas.errors import missing_extra
from epim_nas.files import atomic_path
from epim_nas.records import Finalist, RunResult, TrialRecord
from epim_nas.report.escape import figure_text
from epim_nas.report.layers import LayerRow
from epim_nas.report.tables import own_objectives
from epim_nas.solver.metrics import METRICS, metric_of
from epim_nas.solver.pareto import non_dominated

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
GREY, INK = "#9A9A9A", "#222222"

AXES: dict[str, tuple[str, float]] = {
    "compression": ("crossbar compression (×, dense 32 bit = 1)", 1.0),
    "crossbars": ("crossbars", 1.0),
    "latency_ns": ("latency of one inference (ms)", 1e-6),
    "energy_nj": ("energy of one inference (mJ)", 1e-6),
}
"""Metric -> (axis label, factor from the metric to the axis' unit)."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
"""The first bytes of a PNG file."""

LOG_RATIO = 4.0
"""An axis whose largest value is this many times its smallest is logarithmic."""

MOST_LABELLED = 80
"""A heat map of more layers has no numbers in its cells."""

DRAWN_BARS: tuple[tuple[str, str, str, Callable[[LayerRow], float | None]], ...] = (
    ("epitome size", "% of the weight", GREEN, lambda row: _scaled(row.size_fraction, 100)),
    ("weight bits", "bits", ORANGE, lambda row: _scaled(row.weight_bits, 1)),
    ("crossbars", "crossbars", BLUE, lambda row: _scaled(row.crossbars, 1)),
    ("latency", "busy time (µs)", RED, lambda row: _scaled(row.latency_ns, 1e-3)),
    ("energy", "energy (µJ)", PURPLE, lambda row: _scaled(row.energy_nj, 1e-3)),
)
"""(name, axis label, colour, value of a layer) of the per-layer charts."""


def front_figure(result: RunResult, axes: Sequence[str] | None = None, title: str = "") -> Figure:
    """Top-1 accuracy against costs, one panel each.

    Shown are trials that break a budget (grey), exact seeds, proposals of the search, the front of
    each panel as a staircase, finalists at their fine-tuned accuracy (a line leads from what the
    supernet said), the baseline, the budget and the knee. Trials far below the front are left out
    and counted in the panel's corner.

    Args:
        result: the run, finished or under way.
        axes: metrics of the panels, keys of :data:`AXES`; by default the first two costs that
            were searched for (crossbars as compression), since only they spread the front.
        title: above the figure; the run's name by default.

    Raises:
        InputError: matplotlib is not installed.
    """
    axes = axes or _searched_axes(result)
    figure = new_figure(5.2 * len(axes), 4.6)
    panels = [figure.add_subplot(1, len(axes), column + 1) for column in range(len(axes))]
    low = _lowest_accuracy(result)
    for panel, metric in zip(panels, axes, strict=True):
        _draw_panel(panel, result, metric, low)
    panels[0].set_ylabel("top-1 accuracy (%)")
    handles, labels = _merged_legend(panels)
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(4 if len(axes) > 1 else 3, len(labels)),
        fontsize=None if len(axes) > 1 else 8,
        frameon=False,
    )
    title = title or f"{result.name}: accuracy against cost"
    figure.suptitle(figure_text(title), fontsize=12, color=INK)
    return figure


def _searched_axes(result: RunResult) -> list[str]:
    metrics = map(metric_of, result.objectives)
    named = ["compression" if name == "crossbars" else name for name in metrics]
    own = own_objectives(result)
    return [name for name in named if name in AXES or name in own][:2] or ["compression"]


def _axis(metric: str) -> tuple[str, float]:
    """Label and factor of an axis; of a metric that the user registered, its text."""
    return AXES.get(metric) or (METRICS[metric].text, 1.0)


def layers_figure(rows: Sequence[LayerRow], title: str) -> Figure:
    """Bars per layer: epitome size, weight bits, crossbars, latency, energy; unknown ones left out.

    Args:
        rows: the layers of one design.
        title: above the figure.

    Raises:
        InputError: matplotlib is not installed.
    """
    charts = _known_charts(rows)
    figure = new_figure(max(6.0, 2.0 + 0.28 * len(rows)), 1.0 + 1.35 * max(1, len(charts)))
    axes = figure.subplots(max(1, len(charts)), 1, sharex=True, squeeze=False)[:, 0]
    places = list(range(len(rows)))
    for panel, (_name, label, colour, values) in zip(axes, charts, strict=False):
        hatch = ["//" if row.wrap else "" for row in rows]
        heights = [value or 0.0 for value in values]
        panel.bar(places, heights, color=colour, width=0.75, hatch=hatch, edgecolor="white")
        panel.set_ylabel(label, fontsize=8)
        style_panel(panel)
        panel.grid(axis="x", visible=False)
    axes[-1].set_xticks(places, [figure_text(row.name) for row in rows], rotation=90, fontsize=7)
    wrapped = any(row.wrap for row in rows)
    title += "  (hatched: wrapped)" if wrapped else ""
    figure.suptitle(figure_text(title), fontsize=11, color=INK)
    return figure


def heat_map_figure(rows: Sequence[LayerRow], title: str) -> Figure:
    """A heat map of a design: layers across, what each is and costs down.

    Every line has its own scale, from its smallest to its largest value; unknown lines are left
    out.

    Args:
        rows: the layers of one design.
        title: above the figure.

    Raises:
        InputError: matplotlib is not installed.
    """
    charts = [(_heading(name, label), values) for name, label, _, values in _known_charts(rows)]
    figure = new_figure(max(7.0, 3.2 + 0.34 * len(rows)), 1.6 + 0.52 * max(1, len(charts)))
    panel = figure.add_subplot()
    shares = [_shares(values) for _, values in charts] or [[0.0] * len(rows)]
    panel.imshow(shares, cmap="cividis", aspect="auto", vmin=0.0, vmax=1.0)
    for line, (_, values) in enumerate(charts):
        for place, value in enumerate(values):
            if value is not None and len(rows) <= MOST_LABELLED:
                ink = "white" if shares[line][place] < 0.55 else INK
                panel.text(
                    place, line, _short(value), ha="center", va="center", color=ink, fontsize=6
                )
    panel.set_yticks(range(len(charts)), [name for name, _ in charts], fontsize=8)
    panel.set_xticks(
        range(len(rows)), [figure_text(row.name) for row in rows], rotation=90, fontsize=7
    )
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    figure.suptitle(figure_text(title), fontsize=11, color=INK)
    return figure


def _known_charts(
    rows: Sequence[LayerRow],
) -> list[tuple[str, str, str, list[float | None]]]:
    """(name, axis label, colour, values of the layers) of what is known of any layer."""
    charts = [
        (name, label, colour, [value(row) for row in rows])
        for name, label, colour, value in DRAWN_BARS
    ]
    return [chart for chart in charts if any(value is not None for value in chart[3])]


def _heading(name: str, label: str) -> str:
    """A line's heading: an axis label that says its unit, or the name with it."""
    return label if "(" in label else name if label in name else f"{name} ({label})"


def _shares(values: Sequence[float | None]) -> list[float]:
    """Values from 0 (the smallest) to 1 (the largest); unknown ones and a single value are 0."""
    known = [value for value in values if value is not None]
    low, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    return [0.0 if value is None or not span else (value - low) / span for value in values]


def _short(value: float) -> str:
    """A number in few signs."""
    return f"{value:.0f}" if value >= 100 or value == round(value) else f"{value:.2g}"


def save_front_png(result: RunResult, path: str | Path, dpi: int = 160) -> None:
    """Replace ``path`` by :func:`front_figure` as PNG.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = front_figure(result)
    with atomic_path(path) as temporary:
        temporary.write_bytes(png_bytes(figure, dpi))


def png_bytes(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as PNG, without a time stamp: equal figures give equal files."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def new_figure(width_inch: float, height_inch: float) -> Figure:
    """An empty figure on a canvas of its own.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "plot", "drawing figures") from None
    figure = Figure(figsize=(width_inch, height_inch), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style_panel(panel: Axes) -> None:
    """Give a panel the look of all figures."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color="#E6E6E6", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8)


def _draw_panel(panel: Axes, result: RunResult, metric: str, low: float) -> None:
    label, factor = _axis(metric)

    def place(item: TrialRecord | Finalist) -> float:
        return float(item.metrics[metric]) * factor

    def top1(item: TrialRecord) -> float:
        return 100 * float(item.metrics["accuracy"])

    known = [trial for trial in result.trials if metric in trial.metrics]
    shown = [trial for trial in known if top1(trial) >= low]
    groups: tuple[tuple[str, list[TrialRecord], dict[str, Any]], ...] = (
        (
            "breaks the budget",
            [trial for trial in shown if not trial.feasible],
            {"marker": "x", "c": "#BDBDBD", "s": 16, "linewidths": 0.9, "zorder": 1},
        ),
        (
            "search",
            [trial for trial in shown if trial.feasible and trial.origin == "search"],
            {"marker": "o", "c": BLUE, "s": 18, "alpha": 0.65, "linewidths": 0, "zorder": 3},
        ),
        (
            "exact seed",
            [trial for trial in shown if trial.feasible and trial.origin == "seed"],
            {"marker": "^", "c": ORANGE, "s": 34, "edgecolors": "white", "zorder": 4},
        ),
    )
    for name, members, look in groups:
        if members:
            xs, ys = [place(trial) for trial in members], [top1(trial) for trial in members]
            panel.scatter(xs, ys, label=name, **look)
    _draw_staircase(panel, [trial for trial in known if trial.feasible], metric, place, top1)
    _draw_finalists(panel, result, metric, place, low)
    _draw_marks(panel, result, metric, factor)
    knee = next((t for t in known if t.number == result.selected.get("knee")), None)
    if knee is not None and top1(knee) >= low:
        panel.scatter(
            [place(knee)], [top1(knee)], s=130, facecolors="none", edgecolors=INK,
            linewidths=1.4, zorder=6, label="knee",
        )  # fmt: skip
    hidden = len(known) - len(shown)
    if hidden:
        panel.text(
            0.99, 0.01, f"{hidden} trials below {low:.0f} %", transform=panel.transAxes,
            ha="right", va="bottom", fontsize=7, color="#666666",
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    panel.set_xlabel(figure_text(label), fontsize=9)
    style_panel(panel)
    _scale_axes(panel, low)


def _draw_staircase(
    panel: Axes,
    trials: list[TrialRecord],
    metric: str,
    place: Callable[[TrialRecord], float],
    top1: Callable[[TrialRecord], float],
) -> None:
    """The two-dimensional front of a panel: what is reachable at each cost."""
    if not trials:
        return
    points = [(place(trial), top1(trial)) for trial in trials]
    maximise = [metric == "compression", True]
    mask = non_dominated(points, maximise)
    front = sorted({point for point, keep in zip(points, mask, strict=True) if keep})
    where: Literal["pre", "post"] = "pre" if maximise[0] else "post"
    panel.step(
        [x for x, _ in front], [y for _, y in front], where=where, color=BLUE, linewidth=1.3,
        zorder=2, label="front (supernet)",
    )  # fmt: skip


def _draw_finalists(
    panel: Axes, result: RunResult, metric: str, place: Callable[[Finalist], float], low: float
) -> None:
    finalists = [item for item in result.finalists if metric in item.metrics]
    for item in finalists:
        start = max(low, 100 * float(item.metrics.get("accuracy", item.validation_accuracy)))
        end = 100 * item.validation_accuracy
        panel.plot([place(item)] * 2, [start, end], color=GREEN, linewidth=1.0, zorder=3)
    if finalists:
        panel.scatter(
            [place(item) for item in finalists],
            [100 * item.validation_accuracy for item in finalists],
            marker="*", s=110, c=GREEN, edgecolors="white", linewidths=0.6, zorder=5,
            label="finalist, fine-tuned",
        )  # fmt: skip


def _draw_marks(panel: Axes, result: RunResult, metric: str, factor: float) -> None:
    """The baseline (line and, where it has this cost, point) and the budget."""
    accuracy = 100 * result.baseline.validation_accuracy
    panel.axhline(accuracy, color=INK, linestyle="--", linewidth=1.0, label="baseline (dense)")
    totals = {**result.baseline.totals, "compression": 1.0}
    if metric in totals:
        panel.scatter([totals[metric] * factor], [accuracy], marker="D", s=34, c=INK, zorder=5)
    limit = result.budget.get(metric)
    if metric == "compression" and limit is None and "crossbars" in result.budget:
        limit = float(totals["crossbars"]) / float(result.budget["crossbars"])
    if limit is not None:
        panel.axvline(
            limit * factor, color=RED, linestyle=":", linewidth=1.4, label="budget", zorder=1
        )


def _lowest_accuracy(result: RunResult) -> float:
    """Where the accuracy axis begins (%): a little below the worst design worth looking at."""
    worth = [item.validation_accuracy for item in result.finalists]
    worth += [
        float(trial.metrics["accuracy"]) for trial in result.trials if trial.number in result.front
    ]
    if not worth:
        worth = [float(trial.metrics["accuracy"]) for trial in result.trials] or [0.0]
    top = max([result.baseline.validation_accuracy, *worth])
    margin = 0.3 * max(top - min(worth), 0.02)
    return 100 * max(0.0, min(worth) - margin)


def _scale_axes(panel: Axes, low: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    left, right = panel.dataLim.x0, panel.dataLim.x1
    if left > 0 and right / left > LOG_RATIO:
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
    top = panel.dataLim.y1
    panel.set_ylim(low, min(100.5, top + 0.06 * max(top - low, 1.0)))


def _merged_legend(panels: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Handles and labels of all panels, each label once."""
    merged: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            merged.setdefault(label, handle)
    return list(merged.values()), list(merged)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
