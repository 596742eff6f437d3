"""Which designs a training step of the supernet shows."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest

from epim_nas import Choice, EpitomeShape
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.problem import SearchProblem
from epim_nas.supernet.sandwich import Sandwich, most_bits
from tests.solver.problems import make_problem


@pytest.fixture
def seeds(problem: SearchProblem) -> list[tuple[int, ...]]:
    smallest = [int(np.argmin(weights)) for weights in problem.crossbars]
    return [
        FeasibleSolver(problem).repair([index] * len(problem.space.groups)) for index in (5, 9)
    ] + [FeasibleSolver(problem).repair(smallest)]


def test_every_step_shows_both_ends_and_designs_within_the_budget(
    problem: SearchProblem, seeds: list[tuple[int, ...]]
) -> None:
    sandwich = Sandwich(FeasibleSolver(problem), seeds, seed=1, random=3)
    for step in range(20):
        precise, smallest, *drawn = sandwich.designs(step)
        assert problem.total(problem.sensitivity, precise) == pytest.approx(
            sum(score.min() for score in problem.sensitivity)
        )
        assert problem.weight(smallest) == sum(weights.min() for weights in problem.crossbars)
        assert len(drawn) == 3
        assert all(problem.is_feasible(row) for row in drawn)


def test_steps_depend_on_the_seed_and_their_number_alone(
    problem: SearchProblem, seeds: list[tuple[int, ...]]
) -> None:
    rows = [Sandwich(FeasibleSolver(problem), seeds, seed=1).designs(step) for step in range(30)]
    assert rows[7] == Sandwich(FeasibleSolver(problem), seeds, seed=1).designs(7)
    assert len({tuple(row) for row in itertools.chain(*rows)}) > 20
    assert rows != [
        Sandwich(FeasibleSolver(problem), seeds, seed=2).designs(step) for step in range(30)
    ]


def test_uniform_draws_every_choice_equally_often(problem: SearchProblem) -> None:
    sandwich = Sandwich(FeasibleSolver(problem), [], seed=0, random=4, around="uniform")
    rows = [row for step in range(500) for row in sandwich.designs(step)[2:]]
    for position, group in enumerate(problem.space.groups):
        counts = collections.Counter(row[position] for row in rows)
        # 2000 draws of 10 choices: 200 each, with a standard deviation of 13.4.
        assert len(counts) == len(group)
        assert max(abs(count - 200) for count in counts.values()) < 5 * 13.4


def options() -> list[list[Choice]]:
    half = EpitomeShape(4, 8, 3, 3)
    return [
        [Choice(half, weight_bits=2)],
        [Choice(weight_bits=2)],
        [Choice(half, weight_bits=5)],
        [Choice(half, wrap=True, weight_bits=9)],
        [Choice(weight_bits=9)],
        [Choice(half, weight_bits=3)],
    ]


@pytest.mark.parametrize(("index", "best"), [(0, 2), (1, 4), (2, 2), (3, 3), (4, 4), (5, 2)])
def test_most_bits_keeps_the_shape(index: int, best: int) -> None:
    assert most_bits(options(), index) == best


def test_bits_warm_up_falls_linearly_to_none() -> None:
    problem = make_problem()
    # Alternately 2 and 9 bits of the same shape: half of the uniform draws could have more.
    groups = tuple(
        type(group)(
            group.name,
            group.layers,
            tuple((Choice(weight_bits=2 + 7 * (i % 2)),) for i in range(len(group))),
        )
        for group in problem.space.groups
    )
    space = type(problem.space)("bits", "net", groups)
    problem = SearchProblem(space, problem.sensitivity, problem.costs, problem.limits)
    sandwich = Sandwich(
        FeasibleSolver(problem), [], 0, random=50, around="uniform", warmup_steps=100
    )

    def low(step: int) -> float:
        rows = sandwich.designs(step)[2:]
        return float(np.mean([index % 2 == 0 for row in rows for index in row]))

    assert low(0) == 0
    assert low(50) == pytest.approx(0.25, abs=0.1)
    assert low(100) == pytest.approx(0.5, abs=0.1)
    assert sandwich.designs(100) == Sandwich(FeasibleSolver(problem), [], 0, 50, "uniform").designs(
        100
    )
