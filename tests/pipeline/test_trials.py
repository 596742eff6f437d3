"""The loop over trials, on a made-up network: what an interrupted search goes on with."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from epim_nas.cluster.executor import Executor, Outcome
from epim_nas.pipeline.progress import Reporter
from epim_nas.pipeline.stages.trials import run_trials
from epim_nas.solver.exact_front import exact_seeds
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.problem import SearchProblem
from epim_nas.space.space import Row
from epim_nas.study.inflight import Pending
from epim_nas.study.store import TrialStore
from epim_nas.study.strategies import STRATEGIES
from epim_nas.supernet.evaluation import Score
from tests.solver.problems import make_problem

OBJECTIVES = ("accuracy", "latency_ns", "energy_nj")


class Workers(Executor):
    """Finishes calls in a random order, and is interrupted after a number of them."""

    def __init__(
        self,
        problem: SearchProblem,
        capacity: int,
        calls: int | None,
        seed: int,
        before_call: Callable[[int], object] = lambda calls: None,
    ) -> None:
        self._capacity = capacity
        self._before_call = before_call
        self._calls_made = 0
        self._problem = problem
        self._calls_left = calls
        self._queue: list[tuple[Any, Row]] = []
        self._order = random.Random(seed)

    @property
    def capacity(self) -> int:
        return self._capacity

    def submit(self, key: Any, method: str, *args: Any) -> None:
        self._queue.append((key, args[0]))

    def wait(self) -> Outcome:
        if self._calls_left == 0:
            raise KeyboardInterrupt
        if self._calls_left is not None:
            self._calls_left -= 1
        self._calls_made += 1
        self._before_call(self._calls_made)
        key, row = self._queue.pop(self._order.randrange(len(self._queue)))
        loss = self._problem.total(self._problem.sensitivity, row)
        return Outcome(key, Score(1 / (1 + loss), loss, 1))

    def close(self) -> None:
        self._queue.clear()


def search(
    folder: Path,
    problem: SearchProblem,
    strategy: str,
    trials: int,
    *,
    capacity: int = 1,
    calls: int | None = None,
    storage: str | None = None,
    before_call: Callable[[int], object] = lambda calls: None,
) -> list[optuna.trial.FrozenTrial]:
    """Run, or go on with, a search that is interrupted after ``calls`` evaluations."""

    search_config = SimpleNamespace(
        strategy=strategy, trials=trials, fitness="latency_ns", population=20, repair=True
    )
    this: Any = SimpleNamespace(
        config=SimpleNamespace(search=search_config, seed=3), reporter=Reporter()
    )
    store = TrialStore(folder / "study.journal", OBJECTIVES, problem.space, storage=storage)
    first = STRATEGIES[strategy].first
    seeds = [seed.row for seed in exact_seeds(FeasibleSolver(problem), 5)] if first else []
    workers = Workers(problem, capacity, calls, len(store.trials()), before_call)
    try:
        run_trials(this, FeasibleSolver(problem), seeds, store, workers)
    except KeyboardInterrupt:
        assert calls is not None
    return store.trials()


def rows(trials: list[optuna.trial.FrozenTrial]) -> list[tuple[Any, ...]]:
    return [tuple(trial.params.items()) for trial in trials]


@pytest.mark.parametrize("name", [name for name in STRATEGIES if STRATEGIES[name].proposes])
def test_interrupted_twice_it_proposes_what_it_would_have(name: str, tmp_path: Path) -> None:
    # Longer than two generations of 20, the second interruption inside the last of them.
    problem = make_problem(groups=6, choices=8, slack=12)
    whole = search(tmp_path / "whole", problem, name, 50)
    search(tmp_path / "parts", problem, name, 50, calls=27)
    search(tmp_path / "parts", problem, name, 50, calls=18)
    parts = search(tmp_path / "parts", problem, name, 50)
    assert rows(parts) == rows(whole)
    assert [trial.values for trial in parts] == [trial.values for trial in whole]


@pytest.mark.parametrize("seed", range(6))
def test_with_several_workers_nothing_is_lost_or_repeated(seed: int, tmp_path: Path) -> None:
    # As many trials as there are designs within the budget: the last ones are hard to find.
    problem = make_problem(groups=3, choices=4, slack=14, seed=seed)
    designs = itertools.product(range(4), repeat=3)
    trials = sum(problem.is_feasible(row) for row in designs)
    assert trials > 12
    before: list[optuna.trial.FrozenTrial] = []
    for calls in (2, 5, 4):
        after = search(tmp_path, problem, "epitome", trials, capacity=3, calls=calls)
        assert rows(after)[: len(before)] == rows(before)
        assert len(after) == len(before) + calls
        before = after
    after = search(tmp_path, problem, "epitome", trials, capacity=3)
    assert len(after) == len(set(rows(after))) == trials
    numbers = {trial.user_attrs["asked"] for trial in after}
    assert len(numbers) == trials


def test_a_number_that_was_asked_in_vain_is_not_given_again(
    tmp_path: Path,
) -> None:
    problem = make_problem()
    store = TrialStore(tmp_path / "study.journal", OBJECTIVES, problem.space)
    measured = dict.fromkeys(OBJECTIVES, 0.5)
    for asked, seed in zip((0, 1, 3), exact_seeds(FeasibleSolver(problem), 3), strict=True):
        store.add(
            Pending(asked, seed.row, "search"),
            measured,
            constraints={},
            finished_at=1.0,
            seconds=1.0,
        )
    after = search(tmp_path, problem, "random", 8)
    assert [trial.user_attrs["asked"] for trial in after] == [0, 1, 3, 4, 5, 6, 7, 8]
