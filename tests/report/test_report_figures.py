from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from epim_nas.errors import InputError
from epim_nas.network.spec import Network
from epim_nas.records import RunResult
from epim_nas.report.figures import (
    PNG_SIGNATURE,
    front_figure,
    heat_map_figure,
    layers_figure,
    png_bytes,
    save_front_png,
)
from epim_nas.report.layers import layer_rows
from tests.report.helpers import network_cost


def test_front_figure_shows_every_group_where_it_belongs(result: RunResult) -> None:
    figure = front_figure(result, ("latency_ns", "crossbars"))
    latency, crossbars = figure.axes
    assert latency.get_xlabel() == "latency of one inference (ms)"
    assert latency.get_ylabel() == "top-1 accuracy (%)"
    groups = {item.get_label(): item for item in latency.collections}
    assert {"search", "exact seed", "finalist, fine-tuned", "knee"} <= set(groups)
    knee = result.trials[result.selected["knee"]]
    expected = [[knee.metrics["latency_ns"] / 1e6, 100 * knee.metrics["accuracy"]]]
    assert np.allclose(groups["knee"].get_offsets(), expected)
    stars = [[f.metrics["latency_ns"] / 1e6, 100 * f.validation_accuracy] for f in result.finalists]
    assert np.allclose(groups["finalist, fine-tuned"].get_offsets(), stars)
    lines = {line.get_label(): line for line in crossbars.lines}
    assert list(lines["budget"].get_xdata()) == [result.budget["crossbars"]] * 2
    baseline = 100 * result.baseline.validation_accuracy
    assert list(lines["baseline (dense)"].get_ydata()) == [baseline] * 2


def test_every_trial_is_shown_or_counted(result: RunResult) -> None:
    (panel,) = front_figure(result, ("energy_nj",)).axes
    drawn = sum(
        len(item.get_offsets()) for item in panel.collections
        if item.get_label() in ("search", "exact seed", "breaks the budget")
    )  # fmt: skip
    hidden = [int(text.get_text().split()[0]) for text in panel.texts]
    assert drawn + sum(hidden) == len(result.trials)


def test_front_figure_of_runs_with_little(make_result: Callable[..., RunResult]) -> None:
    for run in (make_result(count=0), make_result(count=1), make_result(count=6, budget=1)):
        assert png_bytes(front_figure(run)).startswith(PNG_SIGNATURE)


def test_layers_figure_has_the_layers_values(result: RunResult, network: Network) -> None:
    design = result.trials[0].design
    rows = layer_rows(design, network, network_cost(network, design))
    figure = layers_figure(rows, "trial 0")
    bars = {axes.get_ylabel(): [bar.get_height() for bar in axes.patches] for axes in figure.axes}
    assert bars["crossbars"] == [row.crossbars for row in rows]
    assert bars["bits"] == [row.weight_bits for row in rows]
    assert bars["energy (µJ)"] == pytest.approx([(row.energy_nj or 0) / 1e3 for row in rows])
    unknown = layers_figure(layer_rows(design), "no cost")
    assert [axes.get_ylabel() for axes in unknown.axes] == ["bits"]


def test_heat_map_has_a_scale_for_every_line(result: RunResult, network: Network) -> None:
    design = result.trials[0].design
    rows = layer_rows(design, network, network_cost(network, design))
    (panel,) = heat_map_figure(rows, "trial 0").axes
    (image,) = panel.images
    lines = [label.get_text() for label in panel.get_yticklabels()]
    assert lines == ["epitome size (% of the weight)", "weight bits", "crossbars",
                     "busy time (µs)", "energy (µJ)"]  # fmt: skip
    shown = image.get_array()
    assert shown is not None
    for line, values in ((2, [row.crossbars for row in rows]),
                         (4, [row.energy_nj for row in rows])):  # fmt: skip
        low, span = min(values), max(values) - min(values)
        assert list(shown[line]) == pytest.approx([(value - low) / span for value in values])
    texts = [text.get_text() for text in panel.texts]
    assert texts[2 * len(rows) : 3 * len(rows)] == [str(row.crossbars) for row in rows]
    (unknown,) = heat_map_figure(layer_rows(design), "no cost").axes
    assert [label.get_text() for label in unknown.get_yticklabels()] == ["weight bits"]


def test_png_is_reproducible_and_sharp(result: RunResult, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_front_png(result, tmp_path / name)
    content = (tmp_path / "a.png").read_bytes()
    assert content == (tmp_path / "b.png").read_bytes()
    assert int.from_bytes(content[16:20], "big") >= 1200


def test_missing_matplotlib_says_what_to_install(
    result: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'epim_nas\[plot\]'"):
        front_figure(result)
