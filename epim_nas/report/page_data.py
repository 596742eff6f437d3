"""What ``report.html`` shows, as plain values: the template and its script only lay it out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from epim_nas.epitome.design import Choice
from epim_nas.network.spec import Network
from epim_nas.records import Finalist, RunResult, TrialRecord
from epim_nas.report.layers import LayerRow, NetworkCostLike, layer_rows
from epim_nas.report.tables import front_rows, millis, percent
from epim_nas.solver.metrics import metric_of
from epim_nas.solver.pareto import ReferenceBox, hypervolume_over_trials

COSTS = ("compression", "crossbars", "latency_ns", "energy_nj")
"""Costs that the front can be shown against."""

LAYER_COLUMNS = (
    "layer", "weight", "epitome", "crossbar matrix", "patch", "wrap", "weight bits",
    "activation bits", "size % of weight", "rounds / position", "crossbars", "latency µs",
    "energy µJ",
)  # fmt: skip
"""Headings of the table of layers."""


def page_data(
    result: RunResult,
    reference: ReferenceBox,
    network: Network | None = None,
    costs: Mapping[int, NetworkCostLike] | None = None,
) -> dict[str, Any]:
    """The data of the page's charts, ready for JSON.

    Layers repeat from design to design, so each distinct row is stored once and designs refer to
    rows by position.

    Args:
        result: the run.
        reference: the box of the hypervolume.
        network: the network, for weight shapes, sizes and rounds.
        costs: trial number -> cost, for crossbars, latency and energy of layers.
    """
    store: dict[LayerRow, int] = {}
    # Without costs a row depends on the layer and its choice alone: most trials need no new one.
    known: dict[tuple[str, Choice], int] = {}
    costs = costs or {}
    order = None if network is None else [layer.name for layer in network.weighted]

    def layers_of(trial: TrialRecord) -> list[int]:
        cost = costs.get(trial.number)
        choices = [(name, trial.design[name]) for name in order or trial.design]
        found = [known.get(choice) for choice in choices] if cost is None else [None]
        if None not in found:
            return cast("list[int]", found)
        rows = layer_rows(trial.design, network, cost)
        positions = [store.setdefault(row, len(store)) for row in rows]
        if cost is None:
            known.update(zip(choices, positions, strict=True))
        return positions

    finalists = {finalist.number: finalist for finalist in result.finalists}
    designs = [
        {
            **_design(trial, finalists.get(trial.number)),
            "feasible": trial.feasible,
            "origin": trial.origin,
            "front": trial.number in result.front,
            "layers": layers_of(trial),
        }
        for trial in result.trials
    ]
    history = hypervolume_over_trials(result.trials, reference)
    totals = result.baseline.totals
    return {
        "name": result.name,
        "designs": designs,
        "rows": [_layer(row) for row in store],
        "axis": _first_axis(result),
        "columns": list(LAYER_COLUMNS),
        "selected": _selected(result),
        "baseline": {
            "top1": result.baseline.validation_accuracy,
            "compression": 1.0,
            **{name: _finite(totals.get(name)) for name in COSTS if name != "compression"},
        },
        "budget": _budget(result),
        "hypervolume": [[number, volume] for number, volume in history],
        "curves": _curves(result),
    }


def _first_axis(result: RunResult) -> str:
    """The cost that the front is shown against at first: one that was searched for spreads it."""
    names = [metric_of(objective) for objective in result.objectives]
    return next((name for name in names if name in COSTS), COSTS[0])


def headline(result: RunResult) -> dict[str, Any]:
    """The sentence and the figures at the top of the page."""
    rows = {row.trial: row for row in front_rows(result)}
    baseline = rows[None]
    selected = _selected(result)
    row = rows.get(selected)
    if selected is None or row is None:
        return {
            "sentence": f"No design of {len(result.trials)} trials keeps the budget.",
            "cards": [],
        }
    kind = "test top-1" if row.test_top1 is not None else "supernet top-1"
    top1 = row.test_top1 if row.test_top1 is not None else row.supernet_top1
    reference = baseline.test_top1 if row.test_top1 is not None else baseline.validation_top1
    cards = [
        {
            "label": kind,
            "value": f"{percent(top1)} %",
            "note": f"baseline {percent(reference)} %",
        },
        {
            "label": "fewer crossbars",
            "value": f"{row.compression:.1f}×",
            "note": f"{row.shape_compression:.2f}× shape · {row.bits_compression:.2f}× bits",
        },
        {
            "label": "crossbars",
            "value": f"{row.crossbars:,}",
            "note": f"dense 32 bit {baseline.crossbars:,}",
        },
        {
            "label": "latency",
            "value": f"{millis(row.latency_ns)} ms",
            "note": f"{_ratio(row.latency_ns, baseline.latency_ns)} of dense",
        },
        {
            "label": "energy",
            "value": f"{millis(row.energy_nj)} mJ",
            "note": f"{_ratio(row.energy_nj, baseline.energy_nj)} of dense",
        },
    ]
    picked = "Knee of the front" if result.selected.get("knee") == row.trial else "Most accurate"
    return {
        "sentence": (
            f"{picked}: {row.name} reaches {percent(top1)} % {kind} "
            f"with {row.compression:.1f}× fewer crossbars than the dense 32-bit network."
        ),
        "cards": cards,
    }


def _selected(result: RunResult) -> int | None:
    if "knee" in result.selected:
        return result.selected["knee"]
    return result.front[0] if result.front else None


def _design(record: TrialRecord, finalist: Finalist | None) -> dict[str, Any]:
    return {
        "trial": record.number,
        "top1": _finite(record.metrics.get("accuracy")),
        "tuned": _finite(finalist.validation_accuracy) if finalist else None,
        "test": _finite(finalist.test_accuracy) if finalist else None,
        **{name: _finite(record.metrics.get(name)) for name in COSTS},
    }


def _layer(row: LayerRow) -> dict[str, Any]:
    matrix = f"{row.rows}x{row.columns}" if row.rows is not None else None
    cells = (
        row.name,
        _joined(row.weight_shape),
        row.shape_text,
        matrix,
        _joined(row.patch),
        _wrapping(row),
        row.weight_bits or "float",
        row.activation_bits or "float",
        _round(row.size_fraction, 100),
        row.rounds,
        row.crossbars,
        _round(row.latency_ns, 1e-3),
        _round(row.energy_nj, 1e-3),
    )
    return {
        "cells": ["–" if cell is None else str(cell) for cell in cells],
        "name": row.name,
        "wrap": row.wrap,
        "wrap_in": row.wrap_in,
        "bars": [
            _round(row.size_fraction, 100),
            row.weight_bits or 32,
            row.crossbars,
            _round(row.latency_ns, 1e-3),
            _round(row.energy_nj, 1e-3),
        ],
    }


def _budget(result: RunResult) -> dict[str, float]:
    budget = {name: float(limit) for name, limit in result.budget.items() if name in COSTS}
    if "crossbars" in budget and "compression" not in budget:
        budget["compression"] = float(result.baseline.totals["crossbars"]) / budget["crossbars"]
    return budget


def _curves(result: RunResult) -> list[dict[str, Any]]:
    curves: list[tuple[str, Sequence[tuple[int, float]]]] = [("supernet", result.supernet_curve)]
    curves += [(f"trial {item.number}", item.curve) for item in result.finalists]
    return [
        {
            "name": name,
            "steps": [step for step, _ in curve],
            "loss": [_finite(loss) for _, loss in curve],
        }
        for name, curve in curves
        if curve
    ]


def _ratio(value: float, reference: float) -> str:
    return f"{value / reference:.2f}×" if reference else "–"


def _finite(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def _round(value: float | None, factor: float) -> float | None:
    return None if value is None else float(f"{value * factor:.4g}")


def _joined(values: Sequence[int] | None) -> str | None:
    return None if values is None else "x".join(map(str, values))


def _wrapping(row: LayerRow) -> str:
    sides = [name for name, wraps in (("outputs", row.wrap), ("inputs", row.wrap_in)) if wraps]
    return " and ".join(sides)
