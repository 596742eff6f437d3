"""The exact solver, against brute force and an independent integer program."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from epim_nas.solver.knapsack import Infeasible, Knapsack, least_weight


@st.composite
def instances(draw: st.DrawFn, groups: int = 4, choices: int = 4) -> tuple[list, list, int]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = [int(rng.integers(1, choices + 1)) for _ in range(draw(st.integers(1, groups)))]
    losses = [np.round(rng.normal(size=n), draw(st.integers(0, 3))) for n in sizes]
    weights = [rng.integers(0, 12, size=n) for n in sizes]
    return losses, weights, draw(st.integers(0, 40))


def brute_force(losses: list, weights: list, budget: int) -> float:
    best = np.inf
    for row in itertools.product(*(range(len(loss)) for loss in losses)):
        if sum(w[i] for w, i in zip(weights, row, strict=True)) <= budget:
            best = min(best, sum(v[i] for v, i in zip(losses, row, strict=True)))
    return best


@given(instances())
@settings(max_examples=200)
def test_equals_brute_force_at_every_budget(instance: tuple[list, list, int]) -> None:
    losses, weights, budget = instance
    if least_weight(weights) > budget:
        with pytest.raises(Infeasible) as caught:
            Knapsack(losses, weights, budget)
        assert caught.value.least == least_weight(weights)
        return
    table = Knapsack(losses, weights, budget)
    for smaller in range(budget + 1):
        expected = brute_force(losses, weights, smaller)
        if np.isinf(expected):
            with pytest.raises(Infeasible):
                table.solve(smaller)
        else:
            solution = table.solve(smaller)
            assert solution.loss == pytest.approx(expected, abs=1e-9)
            assert solution.weight <= smaller
            chosen = [v[i] for v, i in zip(losses, solution.row, strict=True)]
            assert solution.loss == pytest.approx(sum(chosen), abs=1e-12)


@given(instances())
@settings(max_examples=60)
def test_front_is_every_budget_that_pays(instance: tuple[list, list, int]) -> None:
    losses, weights, budget = instance
    if least_weight(weights) > budget:
        return
    table = Knapsack(losses, weights, budget)
    front = table.front()
    losses_found = [solution.loss for solution in front]
    assert losses_found == sorted(losses_found, reverse=True)
    assert front[-1].loss == pytest.approx(table.solve().loss)


@pytest.mark.parametrize("seed", range(5))
def test_zero_gap_to_the_integer_program_at_resnet50_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    losses = [rng.gamma(0.5, size=36) for _ in range(54)]
    weights = [rng.integers(1, 60, size=36) for _ in range(54)]
    budget = least_weight(weights) + 300
    columns = sum(len(loss) for loss in losses)
    one_each = np.zeros((54, columns))
    start = 0
    for group, loss in enumerate(losses):
        one_each[group, start : start + len(loss)] = 1
        start += len(loss)
    result = milp(
        np.concatenate(losses),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(np.concatenate(weights)[None], 0, budget),
        ],
        integrality=np.ones(columns),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    solution = Knapsack(losses, weights, budget).solve()
    assert solution.loss == pytest.approx(result.fun, rel=1e-9)
    assert solution.weight <= budget


def test_a_budget_beyond_the_table_is_a_programming_error() -> None:
    table = Knapsack([np.array([1.0])], [np.array([2])], 5)
    with pytest.raises(ValueError, match="up to 5"):
        table.solve(6)
