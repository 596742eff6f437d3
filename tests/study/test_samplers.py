"""Every strategy passes the same contract, on additive and on pipelined problems."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import optuna
import pytest

from epim_nas import InputError
from epim_nas.errors import EpimError
from epim_nas.solver.exact_front import exact_seeds
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.pareto import non_dominated
from epim_nas.solver.problem import SearchProblem
from epim_nas.study.history import History, distributions, params_of, row_of
from epim_nas.study.strategies import STRATEGIES, Options, find_strategy
from epim_nas.supernet.descent import Descent, additive_loss, gradient_rows
from tests.solver.problems import make_pipelined, make_problem

PROPOSING = [name for name, strategy in STRATEGIES.items() if strategy.proposes]
OPTIONS = Options(population=10)


def metrics_of(problem: SearchProblem, row: tuple[int, ...]) -> dict[str, float]:
    loss = problem.total(problem.sensitivity, row)
    metrics = {name: problem.total(scores, row) for name, scores in problem.costs.items()}
    if problem.model is not None:
        real = problem.model(np.array([row]))
        metrics |= {name: float(values[0]) for name, values in real.items()}
    return {**metrics, "loss": loss, "accuracy": 1 / (1 + loss)}


def first_rows(name: str, problem: SearchProblem, count: int) -> list[tuple[int, ...]]:
    """What a strategy scores before it proposes."""
    first = STRATEGIES[name].first
    if first == "exact":
        return [seed.row for seed in exact_seeds(FeasibleSolver(problem), count)]
    if first == "gradient":
        loss, descent = additive_loss(problem), Descent(steps=60)
        return gradient_rows(FeasibleSolver(problem), count, loss, descent, seed=0)
    return []


def run(
    name: str,
    problem: SearchProblem,
    trials: int,
    seed: int = 0,
    study: optuna.Study | None = None,
    options: Options = OPTIONS,
) -> optuna.Study:
    fresh = optuna.create_study(
        directions=["maximize", "minimize", "minimize"],
        sampler=STRATEGIES[name].make(FeasibleSolver(problem), seed, options),
    )
    if study is not None:
        fresh.add_trials(study.get_trials())
    while len(fresh.trials) < trials:
        trial = fresh.ask(distributions(problem))
        row = row_of(trial.params, problem)
        for limit, excess in problem.violations(row).items():
            trial.set_constraint(limit, excess)
        metrics = metrics_of(problem, row)
        trial.set_user_attr("metrics", metrics)
        fresh.tell(trial, [metrics[objective] for objective in problem.objectives])
    return fresh


def rows(study: optuna.Study, problem: SearchProblem) -> list[tuple[int, ...]]:
    return [row_of(trial.params, problem) for trial in study.get_trials()]


@pytest.mark.parametrize("make", [make_problem, make_pipelined])
@pytest.mark.parametrize("name", PROPOSING)
def test_every_proposal_keeps_the_limits_and_is_new(
    name: str, make: Callable[[], SearchProblem]
) -> None:
    problem = make()
    found = rows(run(name, problem, 45), problem)
    assert all(problem.is_feasible(row) for row in found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("make", [make_problem, make_pipelined])
@pytest.mark.parametrize("name", [n for n, s in STRATEGIES.items() if s.first])
def test_what_is_scored_first_keeps_the_limits_and_is_new(
    name: str, make: Callable[[], SearchProblem]
) -> None:
    problem = make()
    found = first_rows(name, problem, 8)
    assert 3 <= len(found) <= 8
    assert len(set(found)) == len(found)
    assert all(problem.is_feasible(row) for row in found)
    assert found == first_rows(name, problem, 8)


@pytest.mark.parametrize("name", PROPOSING)
def test_same_seed_same_designs_also_across_a_restart(name: str) -> None:
    problem = make_problem()
    whole = run(name, problem, 32, seed=3)
    resumed = run(name, problem, 32, seed=3, study=run(name, problem, 13, seed=3))
    assert rows(resumed, problem) == rows(whole, problem)
    other = run(name, problem, 32, seed=4)
    assert rows(other, problem) != rows(whole, problem)


@pytest.mark.parametrize("name", PROPOSING)
def test_designs_in_flight_are_not_proposed_again(name: str) -> None:
    problem = make_problem(groups=3, choices=4, slack=10)
    study = optuna.create_study(
        directions=["maximize", "minimize", "minimize"],
        sampler=STRATEGIES[name].make(FeasibleSolver(problem), 0, OPTIONS),
    )
    asked = [row_of(study.ask(distributions(problem)).params, problem) for _ in range(6)]
    assert len(set(asked)) == 6


@pytest.mark.parametrize("name", ["nsga2", "nsga3", "tpe", "random"])
def test_without_repair_the_sampler_has_only_constraints(name: str) -> None:
    problem = make_problem()
    study = run(name, problem, 40, options=Options(population=10, repair=False))
    excess = [trial.constraints["crossbars"] for trial in study.get_trials()]
    feasible = [value <= 0 for value in excess]
    assert not all(feasible)
    assert [problem.is_feasible(row) for row in rows(study, problem)] == feasible
    if name in ("nsga2", "nsga3"):  # selection brings them nearer, generation by generation
        assert np.mean(excess[-10:]) < np.mean(excess[:10])


def test_evolution_is_fitter_than_chance_and_knows_nothing_of_accuracy() -> None:
    problem = make_problem(groups=12, choices=12, slack=25)

    def least(name: str, seed: int) -> float:
        options = Options(population=15, fitness="energy_nj")
        return min(trial.values[2] for trial in run(name, problem, 90, seed, None, options).trials)

    evolved = [least("evolution", seed) for seed in range(3)]
    drawn = [least("random", seed) for seed in range(3)]
    assert max(evolved) < min(drawn)


def test_evolution_without_its_fitness_says_so() -> None:
    problem = make_problem()
    sampler = STRATEGIES["evolution"].make(
        FeasibleSolver(problem), 0, Options("edp_nj_ns", population=3)
    )
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)
    for _ in range(3):
        study.tell(study.ask(distributions(problem)), [0.5, 1.0, 1.0])
    with pytest.raises(EpimError, match="no metric `edp_nj_ns`"):
        study.ask(distributions(problem))


def test_the_default_improves_on_chance() -> None:
    problem = make_problem(groups=12, choices=12, slack=25)

    def reached(name: str) -> float:
        best = [max(t.values[0] for t in run(name, problem, 80, seed=s).trials) for s in range(3)]
        return sum(best) / 3

    assert reached("epitome") > reached("random")


def test_the_default_learns_from_what_it_measures() -> None:
    # The table is wrong about half of the layers: what is measured says so.
    problem = make_problem(groups=10, choices=10, slack=30, seed=2)
    rng = np.random.default_rng(0)
    factors = np.exp(rng.normal(0.0, 1.2, size=10))
    truth = [score * factor for score, factor in zip(problem.sensitivity, factors, strict=True)]
    study = optuna.create_study(
        directions=["maximize", "minimize", "minimize"],
        sampler=STRATEGIES["epitome"].make(FeasibleSolver(problem), 1, OPTIONS),
    )
    seeds = [seed.row for seed in exact_seeds(FeasibleSolver(problem), 12)]
    for row in seeds:
        study.enqueue_trial(params_of(row, problem))

    def lost(row: tuple[int, ...]) -> float:
        return problem.total(truth, row)

    for _ in range(60):
        trial = study.ask(distributions(problem))
        row = row_of(trial.params, problem)
        metrics = {**metrics_of(problem, row), "loss": lost(row), "accuracy": 1 / (1 + lost(row))}
        trial.set_user_attr("metrics", metrics)
        study.tell(trial, [metrics[objective] for objective in problem.objectives])
    best_seed = min(map(lost, seeds))
    optimum = lost(FeasibleSolver(problem).solve(truth).row)
    reached = min(map(lost, rows(study, problem)))
    assert reached - optimum < 0.5 * (best_seed - optimum)


def test_history_follows_what_reading_again_would_find() -> None:
    problem = make_problem()
    study = run("random", problem, 30)
    followed, once = History(problem), History(problem)
    partial = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    for trial in study.get_trials():
        partial.add_trial(trial)
        followed.follow(partial, -1)
    once.follow(study, -1)
    assert followed.front == once.front
    assert followed.proposed.keys() == once.proposed.keys()
    points = np.array([trial.values for trial in study.get_trials()])
    mask = non_dominated(points, [True, False, False])
    assert once.front == [r for r, on in zip(rows(study, problem), mask, strict=True) if on]


def test_params_round_trip(problem: SearchProblem) -> None:
    row = tuple(range(8))
    assert row_of(params_of(row, problem), problem) == row


def test_an_unknown_strategy_names_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean `nsga2`"):
        find_strategy("ngsa2")
