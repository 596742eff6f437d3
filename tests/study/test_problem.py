"""Repair and seeds: exact by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from epim_nas.study.knapsack import Infeasible
from epim_nas.study.problem import SearchProblem, exact_seeds
from tests.study.conftest import make_problem


@pytest.mark.parametrize("seed", range(8))
def test_repair_changes_the_fewest_groups_and_then_loses_least(seed: int) -> None:
    problem = make_problem(groups=4, choices=4, slack=4, seed=seed)
    rng = np.random.default_rng(seed)
    row = tuple(int(rng.integers(4)) for _ in range(4))
    repaired = problem.repair(row)
    assert problem.is_feasible(repaired)
    feasible = [r for r in itertools.product(range(4), repeat=4) if problem.is_feasible(r)]

    def key(r: tuple) -> tuple:
        changes = sum(a != b for a, b in zip(r, row, strict=True))
        return changes, round(problem.total(problem.sensitivity, r), 9)

    assert key(repaired) == min(map(key, feasible))


def test_a_feasible_row_is_left_alone(problem: SearchProblem) -> None:
    row = problem.repair([9] * 8)
    assert problem.repair(row) == row


def test_seeds_keep_the_budget_and_start_with_the_optimum() -> None:
    problem = make_problem(groups=4, choices=5, slack=8)
    seeds = exact_seeds(problem, ["accuracy", "latency_ns", "energy_nj"], 9)
    assert 3 <= len(seeds) <= 9
    assert len(set(seeds)) == len(seeds)
    assert all(problem.is_feasible(row) for row in seeds)
    every = [r for r in itertools.product(range(5), repeat=4) if problem.is_feasible(r)]
    best = min(problem.total(problem.sensitivity, r) for r in every)
    assert problem.total(problem.sensitivity, seeds[0]) == pytest.approx(best)
    for name in ("latency_ns", "energy_nj"):
        cheapest = min(problem.total(problem.costs[name], r) for r in every)
        assert min(problem.total(problem.costs[name], r) for r in seeds) == pytest.approx(
            cheapest, rel=0.02
        )


def test_an_unreachable_budget_says_the_least() -> None:
    problem = make_problem(slack=-1)
    with pytest.raises(Infeasible) as caught:
        exact_seeds(problem, ["accuracy", "latency_ns"], 4)
    assert caught.value.least == problem.budget + 1
