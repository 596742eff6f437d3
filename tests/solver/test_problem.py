"""Repair and seeds: exact by brute force."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from epim_nas.solver.exact import totals
from epim_nas.solver.exact_front import exact_seeds
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.knapsack import Infeasible
from epim_nas.solver.problem import Model, SearchProblem
from tests.solver.problems import make_pipelined, make_problem


@pytest.mark.parametrize("seed", range(8))
def test_repair_changes_the_fewest_groups_and_then_loses_least(seed: int) -> None:
    problem = make_problem(groups=4, choices=4, slack=4, seed=seed)
    rng = np.random.default_rng(seed)
    row = tuple(int(rng.integers(4)) for _ in range(4))
    repaired = FeasibleSolver(problem).repair(row)
    assert problem.is_feasible(repaired)
    feasible = [r for r in itertools.product(range(4), repeat=4) if problem.is_feasible(r)]

    def key(r: tuple) -> tuple:
        changes = sum(a != b for a, b in zip(r, row, strict=True))
        return changes, round(problem.total(problem.sensitivity, r), 9)

    assert key(repaired) == min(map(key, feasible))


def test_a_feasible_row_is_left_alone(problem: SearchProblem) -> None:
    row = FeasibleSolver(problem).repair([9] * 8)
    assert FeasibleSolver(problem).repair(row) == row


def test_seeds_keep_the_budget_and_start_with_the_optimum() -> None:
    problem = make_problem(groups=4, choices=5, slack=8)
    seeds = [seed.row for seed in exact_seeds(FeasibleSolver(problem), 9)]
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
        exact_seeds(FeasibleSolver(problem), 4)
    assert caught.value.least == problem.limits["crossbars"] + 1


@pytest.mark.parametrize("seed", range(8))
def test_limits_that_are_not_additive_are_kept_by_their_real_values(seed: int) -> None:
    problem = make_pipelined(groups=4, choices=5, seed=seed)
    assert problem.model is not None
    every = np.array(list(itertools.product(range(5), repeat=4)))
    real = problem.model(every)
    kept = np.all([real[name] <= bound for name, bound in problem.limits.items()], axis=0)
    assert 0 < kept.sum() < len(every)
    for row, feasible in zip(every[::7], kept[::7], strict=True):
        assert problem.is_feasible(row) == feasible
        repaired = FeasibleSolver(problem).repair(row)
        assert problem.is_feasible(repaired)
        if feasible:
            assert repaired == tuple(row)
    solution = FeasibleSolver(problem).solve(problem.sensitivity)
    assert problem.is_feasible(solution.row)
    best = min(problem.total(problem.sensitivity, row) for row in every[kept])
    # A certificate is about the tightened limits; the real optimum is not far.
    assert best <= solution.loss <= 1.5 * best


@pytest.mark.parametrize("seed", range(12))
def test_where_one_design_keeps_the_limits_every_trade_off_has_a_solution(seed: int) -> None:
    """Stand-ins of real costs may be so wrong that tightening them leaves nothing."""
    problem = make_pipelined(groups=4, choices=5, seed=seed)
    rng = np.random.default_rng(seed)
    wrong = [rng.uniform(0.0, 10.0, size=5) for _ in range(4)]
    problem = replace(problem, costs={**problem.costs, "energy_nj": wrong})
    assert problem.is_feasible(FeasibleSolver(problem).roomiest)
    for _ in range(20):
        losses = [rng.normal(size=5) for _ in range(4)]
        solution = FeasibleSolver(problem).solve(losses)
        assert problem.is_feasible(solution.row)
        assert solution.loss == pytest.approx(problem.total(losses, solution.row))
        assert solution.certificate.bound <= solution.loss


@pytest.mark.parametrize("seed", range(6))
def test_a_product_is_minimised_through_its_factors(seed: int) -> None:
    base = make_problem(groups=4, choices=5, slack=30, seed=seed)
    rng = np.random.default_rng(seed)
    energy, latency = ([rng.lognormal(size=5) for _ in range(4)] for _ in range(2))
    costs = {"crossbars": base.crossbars, "energy_nj": energy, "latency_ns": latency}
    problem = replace(base, costs=costs, objectives=("edp_nj_ns",))
    assert set(problem.objective_costs) == {"energy_nj", "latency_ns"}

    def product(row: Sequence[int]) -> float:
        return problem.total(energy, row) * problem.total(latency, row)

    every = [r for r in itertools.product(range(5), repeat=4) if problem.is_feasible(r)]
    model = _products(problem)
    seeds = exact_seeds(FeasibleSolver(replace(problem, model=model)), 6)
    assert min(product(found.row) for found in seeds) == pytest.approx(
        min(map(product, every)), rel=1e-3
    )


def _products(problem: SearchProblem) -> Model:
    def model(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"edp_nj_ns": totals(problem.costs["energy_nj"], rows)
                * totals(problem.costs["latency_ns"], rows)}  # fmt: skip

    return model


def test_violations_name_every_limit_with_its_excess() -> None:
    problem = make_pipelined()
    assert problem.model is not None
    row = problem.fastest()
    real = problem.model(np.array([row]))
    assert problem.violations(row) == pytest.approx(
        {name: float(real[name][0]) - bound for name, bound in problem.limits.items()}
    )


def test_seeds_of_a_pipeline_are_not_dominated_and_reach_its_least_latency() -> None:
    problem = make_pipelined(groups=4, choices=5, seed=1)
    assert problem.model is not None
    every = np.array(list(itertools.product(range(5), repeat=4)))
    feasible = np.array([row for row in every if problem.is_feasible(row)])
    seeds = exact_seeds(FeasibleSolver(problem), 10)
    rows = np.array([seed.row for seed in seeds])
    assert all(problem.is_feasible(row) for row in rows)
    least = problem.model(feasible)["latency_ns"].min()
    assert problem.model(rows)["latency_ns"].min() <= 1.05 * least
    assert all(problem.slowest(seed.row) <= seed.cap for seed in seeds)

    def judged(found: np.ndarray) -> np.ndarray:
        real = problem.model(found)  # type: ignore[misc]
        loss = [problem.total(problem.sensitivity, row) for row in found]
        return np.stack([loss, real["latency_ns"], real["energy_nj"]], axis=1)

    values = judged(rows)
    for value in values:
        assert not ((values <= value).all(axis=1) & (values < value).any(axis=1)).any()


def test_accuracy_against_crossbars_takes_the_whole_front_in_one_pass() -> None:
    problem = make_problem(groups=4, choices=5, slack=20)
    problem = replace(problem, objectives=("accuracy", "crossbars"))
    seeds = exact_seeds(FeasibleSolver(problem), 100)
    every = list(itertools.product(range(5), repeat=4))
    best: dict[int, float] = {}
    for row in every:
        weight = problem.weight(row)
        loss = problem.total(problem.sensitivity, row)
        best[weight] = min(best.get(weight, np.inf), loss)
    front, lowest = [], np.inf
    for weight in sorted(best):
        if weight <= problem.limits["crossbars"] and best[weight] < lowest:
            lowest = best[weight]
            front.append((weight, lowest))
    found = sorted((problem.weight(seed.row), seed) for seed in seeds)
    assert [weight for weight, _ in found] == [weight for weight, _ in front]
    assert all(seed.certificate.optimal for seed in seeds)


def test_without_accuracy_the_seeds_are_the_cheapest() -> None:
    problem = replace(make_problem(groups=4, choices=4, slack=15), objectives=("energy_nj",))
    (first, *_) = exact_seeds(FeasibleSolver(problem), 5)
    every = [r for r in itertools.product(range(4), repeat=4) if problem.is_feasible(r)]
    least = min(problem.total(problem.costs["energy_nj"], row) for row in every)
    assert problem.total(problem.costs["energy_nj"], first.row) == pytest.approx(least)


def test_objectives_of_either_direction_have_costs_that_fall_as_they_get_better() -> None:
    problem = replace(
        make_problem(), objectives=("accuracy", "compression", "max energy_nj", "utilization")
    )
    problem = replace(problem, costs={**problem.costs, "compression": problem.costs["crossbars"]})
    costs = problem.objective_costs
    assert set(costs) == {"compression", "max energy_nj"}
    assert costs["compression"][0] == pytest.approx(problem.crossbars[0])
    assert costs["max energy_nj"][0] == pytest.approx(-problem.costs["energy_nj"][0])


def test_compression_is_traded_like_crossbars() -> None:
    base = make_problem(groups=4, choices=5, slack=20)
    by_crossbars = replace(base, objectives=("accuracy", "crossbars"))
    by_compression = replace(base, objectives=("accuracy", "compression"))
    assert by_compression.objective_costs["compression"][0] == pytest.approx(base.crossbars[0])
    rows = [seed.row for seed in exact_seeds(FeasibleSolver(by_crossbars), 6)]
    assert len(rows) > 1
    assert [seed.row for seed in exact_seeds(FeasibleSolver(by_compression), 6)] == rows


@pytest.mark.parametrize("seed", range(20))
def test_tight_budgets_near_the_fastest_designs_are_kept(seed: int) -> None:
    problem = make_pipelined(groups=4, choices=5, seed=seed)
    assert problem.model is not None
    fastest = problem.model(np.array([problem.fastest()]))
    limits = {name: float(values[0]) * 1.02 for name, values in fastest.items()}
    problem = replace(problem, limits=limits)
    rng = np.random.default_rng(seed)
    for _ in range(10):
        assert problem.is_feasible(FeasibleSolver(problem).repair(rng.integers(0, 5, size=4)))


def test_a_large_budget_of_bits_is_solved_without_a_table_of_its_size() -> None:
    base = make_problem(groups=4, choices=5, slack=20)
    bits = [1_000_003 * np.asarray(weights) + 7 for weights in base.crossbars]
    bound = sum(int(weights.min()) for weights in bits) + 20_000_000
    problem = replace(base, costs={**base.costs, "weight_bits": bits},
                      limits={"weight_bits": bound})  # fmt: skip
    assert not problem.is_knapsack
    every = [r for r in itertools.product(range(5), repeat=4) if problem.is_feasible(r)]
    best = min(problem.total(problem.sensitivity, row) for row in every)
    assert FeasibleSolver(problem).solve(problem.sensitivity).loss == pytest.approx(best)
    # Costs in steps of a thousand make a table again, and the same solution.
    stepped = replace(problem, costs={**base.costs, "weight_bits": [
        1_000_000 * np.asarray(weights) for weights in base.crossbars]},
        limits={"weight_bits": 1_000_000 * base.limits["crossbars"]})  # fmt: skip
    assert stepped.is_knapsack
    assert (
        FeasibleSolver(stepped).solve(base.sensitivity).row
        == FeasibleSolver(base).solve(base.sensitivity).row
    )
