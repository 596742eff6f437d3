"""Every strategy passes the same contract."""

from __future__ import annotations

import optuna
import pytest

from epim_nas import InputError
from epim_nas.study.history import distributions, params_of, row_of
from epim_nas.study.problem import SearchProblem
from epim_nas.study.strategies import STRATEGIES, Options, find_strategy
from tests.study.conftest import make_problem

PROPOSING = [name for name, strategy in STRATEGIES.items() if strategy.proposes]


def values(problem: SearchProblem, row: tuple[int, ...]) -> list[float]:
    loss = problem.total(problem.sensitivity, row)
    latency = problem.total(problem.costs["latency_ns"], row)
    return [1 / (1 + loss), latency, problem.total(problem.costs["energy_nj"], row)]


def run(
    name: str, problem: SearchProblem, trials: int, seed: int = 0, study: optuna.Study | None = None
) -> optuna.Study:
    fresh = optuna.create_study(
        directions=["maximize", "minimize", "minimize"],
        sampler=STRATEGIES[name].make(problem, seed, Options()),
    )
    if study is not None:
        fresh.add_trials(study.get_trials())
    while len(fresh.trials) < trials:
        trial = fresh.ask(distributions(problem))
        row = row_of(trial.params, problem)
        trial.set_constraint("crossbars", problem.violations(row)["crossbars"])
        fresh.tell(trial, values(problem, row))
    return fresh


def rows(study: optuna.Study, problem: SearchProblem) -> list[tuple[int, ...]]:
    return [row_of(trial.params, problem) for trial in study.get_trials()]


@pytest.mark.parametrize("name", PROPOSING)
def test_every_proposal_keeps_the_budget_and_is_new(name: str) -> None:
    problem = make_problem()
    found = rows(run(name, problem, 45), problem)
    assert all(problem.is_feasible(row) for row in found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", PROPOSING)
def test_same_seed_same_designs_also_across_a_restart(name: str) -> None:
    problem = make_problem()
    whole = run(name, problem, 30, seed=3)
    resumed = run(name, problem, 30, seed=3, study=run(name, problem, 13, seed=3))
    assert rows(resumed, problem) == rows(whole, problem)
    other = run(name, problem, 30, seed=4)
    assert rows(other, problem) != rows(whole, problem)


@pytest.mark.parametrize("name", PROPOSING)
def test_designs_in_flight_are_not_proposed_again(name: str) -> None:
    problem = make_problem(groups=3, choices=4, slack=10)
    study = optuna.create_study(
        directions=["maximize", "minimize", "minimize"],
        sampler=STRATEGIES[name].make(problem, 0, Options()),
    )
    asked = [row_of(study.ask(distributions(problem)).params, problem) for _ in range(6)]
    assert len(set(asked)) == 6


def test_evolution_improves_on_random() -> None:
    problem = make_problem(groups=12, choices=12, slack=25)

    def reached(name: str) -> float:
        best = [max(t.values[0] for t in run(name, problem, 80, seed=s).trials) for s in range(3)]
        return sum(best) / 3

    assert reached("epitome") > reached("random")


def test_params_round_trip(problem: SearchProblem) -> None:
    row = tuple(range(8))
    assert row_of(params_of(row, problem), problem) == row


def test_an_unknown_strategy_names_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean `nsga2`"):
        find_strategy("ngsa2")
