from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epim_nas.epitome.design import Design
from epim_nas.errors import InputError
from epim_nas.records import Finalist, RunResult, TrialRecord
from epim_nas.solver.pareto import (
    OBJECTIVES,
    ReferenceBox,
    best_finalist,
    front_numbers,
    hypervolume,
    hypervolume_over_trials,
    non_dominated,
    select,
)

BOX = ReferenceBox({"accuracy": 0.0, "latency_ns": 1.0}, {"accuracy": 1.0, "latency_ns": 0.0})


def trial(number: int, feasible: bool = True, **metrics: float) -> TrialRecord:
    return TrialRecord(number, Design("n", {}), metrics, feasible, "search", 0.0, 0.0)


def dominates(a: tuple[float, ...], b: tuple[float, ...], maximise: tuple[bool, ...]) -> bool:
    pairs = [(x, y) if more else (-x, -y) for x, y, more in zip(a, b, maximise, strict=True)]
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


@settings(max_examples=150)
@given(st.data())
def test_non_dominated_equals_all_pairs(data: st.DataObject) -> None:
    dimensions = data.draw(st.integers(1, 4))
    maximise = tuple(data.draw(st.lists(st.booleans(), min_size=dimensions, max_size=dimensions)))
    # Few distinct values, so that ties and duplicates are common.
    point = st.tuples(*[st.integers(0, 4).map(float)] * dimensions)
    points = data.draw(st.lists(point, max_size=25))
    expected = [not any(dominates(other, one, maximise) for other in points) for one in points]
    assert non_dominated(points, maximise).tolist() == expected


def test_non_dominated_refuses_mismatched_sizes() -> None:
    with pytest.raises(ValueError, match="3 objectives"):
        non_dominated([[1.0, 2.0]], [True, False, True])


def test_front_of_a_run_equals_all_pairs(result: RunResult) -> None:
    maximise = tuple(name == "accuracy" for name in result.objectives)
    feasible = [t for t in result.trials if t.feasible]
    points = {t.number: tuple(t.metrics[name] for name in result.objectives) for t in feasible}
    expected = {
        n for n, p in points.items()
        if not any(dominates(q, p, maximise) for q in points.values())
    }  # fmt: skip
    assert 3 <= len(expected) < len(feasible)
    front = front_numbers(result.trials, result.objectives)
    assert set(front) == expected
    accuracies = [points[number][0] for number in front]
    assert accuracies == sorted(accuracies, reverse=True)


def test_front_leaves_out_infeasible_and_repeated_trials() -> None:
    trials = [
        trial(4, accuracy=0.8, latency_ns=2.0),
        trial(2, accuracy=0.8, latency_ns=2.0),
        trial(3, feasible=False, accuracy=0.9, latency_ns=1.0),
        trial(5, accuracy=0.9, latency_ns=3.0),
        trial(6, accuracy=0.7, latency_ns=2.5),
    ]
    assert front_numbers(trials, ("accuracy", "latency_ns")) == (5, 2)
    assert front_numbers([], ("accuracy", "latency_ns")) == ()


def test_missing_objective_is_named() -> None:
    with pytest.raises(InputError, match=r"objectives\.energy_nj.*latency_ns"):
        front_numbers([trial(0, accuracy=0.8, latency_ns=2.0)], ("accuracy", "energy_nj"))


def test_nan_objective_is_refused() -> None:
    with pytest.raises(InputError, match="finite"):
        front_numbers([trial(0, accuracy=math.nan)], ("accuracy",))


def test_hypervolume_by_hand() -> None:
    # Two rectangles of the unit square: 0.5 x 0.8 and 0.9 x 0.3, overlapping in 0.5 x 0.3.
    items = [trial(0, accuracy=0.5, latency_ns=0.2), trial(1, accuracy=0.9, latency_ns=0.7)]
    assert hypervolume(items, BOX) == pytest.approx(0.40 + 0.27 - 0.15)
    beyond = trial(2, accuracy=0.99, latency_ns=1.5)
    assert hypervolume([*items, beyond], BOX) == hypervolume(items, BOX)
    assert hypervolume([beyond], BOX) == 0.0
    assert hypervolume([], BOX) == 0.0
    assert hypervolume([trial(3, accuracy=1.0, latency_ns=0.0)], BOX) == pytest.approx(1.0)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_hypervolume_equals_counting_cells(dimensions: int) -> None:
    """On a grid of tenths the dominated volume can be counted cell by cell."""
    names = ("accuracy", "latency_ns", "energy_nj")[:dimensions]
    box = ReferenceBox(
        {name: 0.0 if name == "accuracy" else 10.0 for name in names},
        {name: 10.0 if name == "accuracy" else 0.0 for name in names},
    )
    rng = np.random.default_rng(dimensions)
    for _ in range(20):
        points = rng.integers(0, 11, size=(12, dimensions)).astype(float)
        items = [trial(i, **dict(zip(names, p, strict=True))) for i, p in enumerate(points)]
        losses = np.column_stack([10 - points[:, 0], points[:, 1:]])
        counted = sum(
            bool((losses <= np.array(cell)).all(axis=1).any())
            for cell in product(range(10), repeat=dimensions)
        )
        assert hypervolume(items, box) == pytest.approx(counted / 10**dimensions)


def test_hypervolume_agrees_with_sampling(result: RunResult) -> None:
    box = ReferenceBox.from_baseline(result.baseline.totals, result.objectives)
    feasible = [t for t in result.trials if t.feasible]
    losses = box.losses(feasible)
    samples = np.random.default_rng(0).random((200_000, len(result.objectives)))
    hit = np.zeros(len(samples), dtype=bool)
    for loss in losses:
        hit |= (samples >= loss).all(axis=1)
    exact = hypervolume(feasible, box)
    error = math.sqrt(exact * (1 - exact) / len(samples))
    assert abs(hit.mean() - exact) < 5 * error


def test_hypervolume_over_trials_is_that_of_each_prefix(result: RunResult) -> None:
    box = ReferenceBox.from_baseline(result.baseline.totals, result.objectives)
    history = hypervolume_over_trials(result.trials, box)
    assert [number for number, _ in history] == [t.number for t in result.trials]
    for end, (_, volume) in enumerate(history, start=1):
        prefix = [t for t in result.trials[:end] if t.feasible]
        assert volume == pytest.approx(hypervolume(prefix, box), abs=1e-12)


def test_reference_needs_the_baselines_costs() -> None:
    with pytest.raises(InputError, match=r"baseline\.totals\.energy_nj"):
        ReferenceBox.from_baseline({"latency_ns": 1.0}, ("accuracy", "latency_ns", "energy_nj"))


def test_knee_is_farthest_from_the_line_through_the_extremes() -> None:
    objectives = ("accuracy", "latency_ns")
    points = [(0.9, 10.0), (0.88, 4.0), (0.8, 3.0), (0.6, 2.5), (0.5, 2.0)]
    front = [trial(i, accuracy=a, latency_ns=c) for i, (a, c) in enumerate(points)]
    start, end = np.array([0.0, 1.0]), np.array([1.0, 0.0])
    scaled = [np.array([(0.9 - a) / 0.4, (c - 2.0) / 8.0]) for a, c in points]
    line = end - start
    distances = [
        float(line[1] * (p - start)[0] - line[0] * (p - start)[1]) / float(np.hypot(*line))
        for p in scaled
    ]
    assert select(front, "knee", objectives).number == int(np.argmax(distances)) == 1
    # Neither units nor the order of the trials matter.
    other = [trial(i, accuracy=a, latency_ns=7 * c) for i, (a, c) in enumerate(points)][::-1]
    assert select(other, "knee", objectives).number == 1


def test_knee_is_not_outvoted_by_costs_that_repeat() -> None:
    """A straight trade-off between accuracy and two equal costs has no preferred end."""
    front = [
        trial(i, accuracy=0.5 + 0.1 * i, latency_ns=1.0 + i, energy_nj=1.0 + i) for i in range(3)
    ]
    bulging = replace(front[1], metrics={"accuracy": 0.65, "latency_ns": 2.0, "energy_nj": 2.0})
    assert select([front[0], bulging, front[2]], "knee").number == 1


def test_selections_of_extremes(result: RunResult) -> None:
    front = [result.trials[number] for number in result.front]
    best = {which: select(front, which).metrics for which in result.selected}
    assert best["best-accuracy"]["accuracy"] == max(t.metrics["accuracy"] for t in front)
    assert best["best-latency"]["latency_ns"] == min(t.metrics["latency_ns"] for t in front)
    assert best["best-energy"]["energy_nj"] == min(t.metrics["energy_nj"] for t in front)
    for which in result.selected:
        assert select(front[:1], which) is front[0]


def test_unknown_selection_and_empty_front() -> None:
    with pytest.raises(InputError, match=r"best-latency.*Did you mean `best-latency`"):
        select([trial(0, accuracy=1.0)], "best-latancy")
    with pytest.raises(InputError, match="front is empty"):
        select([], "knee")


def test_pareto_loads_neither_torch_nor_plots() -> None:
    code = (
        "import sys, epim_nas.solver.pareto, epim_nas.report.tables, epim_nas.report.layers\n"
        "print([m for m in ('torch', 'matplotlib', 'plotly', 'optuna') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def finalist(number: int, accuracy: float, latency: float, energy: float, images: int) -> Finalist:
    metrics = {"accuracy": 0.1, "latency_ns": latency, "energy_nj": energy}
    return Finalist(number, Design("net", {}), metrics, 1, accuracy, 0.5, validation_images=images)


def test_the_best_finalist_is_the_cheapest_that_validation_cannot_tell_apart() -> None:
    # 2,000 images at 90 %: a standard error of 0.67 points.
    dear, cheap, worse = (
        finalist(0, 0.900, 200, 20, 2000),
        finalist(1, 0.894, 100, 10, 2000),
        finalist(2, 0.892, 10, 1, 2000),
    )
    assert best_finalist([dear, cheap, worse], OBJECTIVES) == cheap
    # Without their number ties alone count; with more images less is taken for noise.
    few = [replace(item, validation_images=0) for item in (dear, cheap, worse)]
    assert best_finalist(few, OBJECTIVES) == few[0]
    many = [replace(item, validation_images=1_000_000) for item in (dear, cheap, worse)]
    assert best_finalist(many, OBJECTIVES) == many[0]
    # What the objectives do not name costs nothing.
    tied = [finalist(3, 0.9, 100, 10, 0), finalist(4, 0.9, 90, 20, 0)]
    assert best_finalist(tied, ["accuracy", "energy_nj"]) == tied[0]
    assert best_finalist(tied, ["accuracy", "latency_ns"]) == tied[1]
    assert best_finalist(tied, ["accuracy"]) == tied[0]


COST = st.integers(1, 4).map(float) | st.sampled_from([1.0, 1.0 + 2**-52, 1e300])


@given(
    values=st.lists(
        st.tuples(st.integers(0, 8).map(lambda hits: hits / 8), COST, COST), min_size=1, max_size=7
    ),
    images=st.sampled_from([0, 8, 400]),
)
def test_the_best_finalist_is_never_dominated(
    values: list[tuple[float, float, float]], images: int
) -> None:
    items = [finalist(number, *value, images) for number, value in enumerate(values)]
    chosen = best_finalist(items, OBJECTIVES)
    accuracy, latency, energy = values[chosen.number]
    assert not any(
        a >= accuracy and t <= latency and e <= energy and (a, t, e) != values[chosen.number]
        for a, t, e in values
    )
    error = math.sqrt(max(v[0] for v in values) * (1 - max(v[0] for v in values)) / (images or 1))
    assert accuracy >= max(v[0] for v in values) - (error if images else 0.0)
