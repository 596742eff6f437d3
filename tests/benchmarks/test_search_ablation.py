"""The ablation of the search: arms that differ in what they say, and a fair measure."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from epim_nas.solver.exact import total
from epim_nas.study import epitome_sampler
from tests.solver.problems import make_problem

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def ablation() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SCRIPTS))
    try:
        import search_ablation

        yield search_ablation
    finally:
        sys.path.remove(str(SCRIPTS))


def test_every_arm_scores_as_many_designs_within_the_budget(ablation: ModuleType) -> None:
    problem = make_problem()
    for name, arm in ablation.ARMS.items():
        trials = ablation.run(arm, problem, 0, 24, partial(ablation._added_up, problem))
        rows = [trial.row for trial in trials]
        assert len(rows) == 24 or arm.first == 1.0, name
        assert len(set(rows)) == len(rows), name
        assert all(problem.is_feasible(row) for row in rows), name


def test_arms_propose_other_designs_than_the_default(ablation: ModuleType) -> None:
    problem = make_problem()
    truth = ablation.another_table(problem, 1, 0.7, 0.5)
    corrected = epitome_sampler.corrected
    rows = {}
    for name, arm in ablation.ARMS.items():
        trials = ablation.run(arm, problem, 0, 40, partial(ablation._added_up, truth))
        rows[name] = tuple(trial.row for trial in trials)
        assert epitome_sampler.corrected is corrected
    alike = {name for name in rows if rows[name] == rows["default"]}
    # This problem has no stand-ins, and its front has fewer designs than half of the trials.
    assert alike == {"default", "default, no stand-ins", "exact half, then default"}


def test_another_table_differs_by_factors_of_the_seed(ablation: ModuleType) -> None:
    problem = make_problem()
    by_layer = ablation.another_table(problem, 3, 0.5, 0.0)
    for before, after in zip(problem.sensitivity, by_layer.sensitivity, strict=True):
        np.testing.assert_allclose(after / before, (after / before)[0])
    again = ablation.another_table(problem, 3, 0.5, 0.0)
    other = ablation.another_table(problem, 4, 0.5, 0.0)
    row = (0,) * len(problem.space.groups)
    assert total(by_layer.sensitivity, row) == total(again.sensitivity, row)
    assert total(by_layer.sensitivity, row) != total(other.sensitivity, row)


def test_the_front_of_all_has_the_volume_one_and_its_parts_have_less(ablation: ModuleType) -> None:
    points = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [2.0, 2.0]])
    box = ablation.Box(points)
    assert box(points) == pytest.approx(1.0)
    # By hand, with the reference point (1.1, 1.1): three overlapping rectangles.
    assert box(points[1:2]) == pytest.approx(0.36 / 0.46)
    assert box(points[3:]) == 0.0
