"""Samplers whose every proposal keeps the budget and is new.

Both are ordinary ``optuna.samplers.BaseSampler`` objects over one integer parameter per group (the
index of its choice, ordered by crossbars). Their randomness depends on the seed and the number of
the trial alone, so a resumed search proposes what the uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.trial import FrozenTrial, TrialState

from epim_nas.space.space import Row
from epim_nas.study.pareto import non_dominated
from epim_nas.study.problem import SearchProblem


def distributions(problem: SearchProblem) -> dict[str, BaseDistribution]:
    """One integer parameter per group: the index of its choice."""
    return {group.name: IntDistribution(0, len(group) - 1) for group in problem.space.groups}


def row_of(params: Mapping[str, Any], problem: SearchProblem) -> Row:
    """The row of a trial's parameters."""
    return tuple([int(params[group.name]) for group in problem.space.groups])


def params_of(row: Sequence[int], problem: SearchProblem) -> dict[str, int]:
    """The parameters of a row."""
    return {group.name: int(index) for group, index in zip(problem.space.groups, row, strict=True)}


class _FeasibleSampler(BaseSampler):
    """Turns raw proposals into rows that keep the budget and were not proposed before.

    Args:
        problem: space, scores and budget.
        seed: seed of the search.
    """

    def __init__(self, problem: SearchProblem, seed: int) -> None:
        self._problem = problem
        self._seed = seed

    def propose(
        self, study: optuna.Study, trial: FrozenTrial, rng: np.random.Generator
    ) -> Sequence[int]:
        """A row, feasible or not."""
        raise NotImplementedError

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All parameters are sampled together: the budget joins them."""
        return distributions(self._problem)

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """The parameters of a feasible, new row."""
        rng = np.random.default_rng([self._seed, trial.number])
        row = self._problem.repair(self.propose(study, trial, rng))
        known = _known_rows(study, trial.number, self._problem)
        for attempt in range(200):
            if row not in known:
                break
            # A known design costs an evaluation and teaches nothing: move further away each time.
            row = self._problem.repair(mutate(row, self._problem, rng, 1 + attempt // 20))
        return dict(params_of(row, self._problem))

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Unreachable: every parameter is sampled relatively."""
        raise RuntimeError(f"the parameter `{param_name}` is not in the search space")


class EpitomeSampler(_FeasibleSampler):
    """Evolution around the measured front: crossover of parents on it, local moves, exact repair.

    Of a pool of children one is evaluated: the best under a random weighting of the additive
    scores (as ParEGO weighs its objectives; Knowles, 2006). So every direction of the front is
    tried, and children that the scores already know to be poor are not.

    Args:
        problem: space, scores and budget.
        seed: seed of the search.
        crossover: probability of two parents instead of one.
        pool: children to choose from.
    """

    def __init__(
        self, problem: SearchProblem, seed: int, crossover: float = 0.5, pool: int = 8
    ) -> None:
        super().__init__(problem, seed)
        self._crossover = crossover
        self._pool = pool

    def propose(
        self, study: optuna.Study, trial: FrozenTrial, rng: np.random.Generator
    ) -> Sequence[int]:
        """A child of the front; uniform where there is none yet."""
        parents = _front_rows(study, self._problem)
        if not parents:
            return [int(rng.integers(len(group))) for group in self._problem.space.groups]
        children = [self._child(parents, rng) for _ in range(self._pool)]
        weights = rng.dirichlet(np.ones(1 + len(self._problem.costs)))
        return children[int(np.argmin(_scaled_scores(children, self._problem) @ weights))]

    def _child(self, parents: Sequence[Row], rng: np.random.Generator) -> Row:
        child: Sequence[int] = parents[int(rng.integers(len(parents)))]
        if len(parents) > 1 and rng.random() < self._crossover:
            other = parents[int(rng.integers(len(parents)))]
            child = [a if rng.random() < 0.5 else b for a, b in zip(child, other, strict=True)]
        return self._problem.repair(mutate(child, self._problem, rng, int(rng.integers(1, 4))))


class RepairedSampler(_FeasibleSampler):
    """Any Optuna sampler with every proposal repaired into the budget.

    Args:
        problem: space, scores and budget.
        seed: seed of the search.
        make: makes the inner sampler from a seed.
    """

    def __init__(
        self, problem: SearchProblem, seed: int, make: Callable[[int], BaseSampler]
    ) -> None:
        super().__init__(problem, seed)
        self._make = make

    def propose(
        self, study: optuna.Study, trial: FrozenTrial, rng: np.random.Generator
    ) -> Sequence[int]:
        """The inner sampler's proposal."""
        # A fresh sampler a trial: its random state would not survive a restart otherwise. What
        # Optuna's samplers remember of earlier trials they read from the study.
        inner = self._make(int(rng.integers(2**31)))
        inner.before_trial(study, trial)
        if isinstance(inner, BaseGASampler):
            self._select_parents(study, inner.get_trial_generation(study, trial))
        inner_space = inner.infer_relative_search_space(study, trial)
        params = inner.sample_relative(study, trial, inner_space) if inner_space else {}
        for name, distribution in distributions(self._problem).items():
            if name not in params:
                params[name] = inner.sample_independent(study, trial, name, distribution)
        return row_of(params, self._problem)

    def _select_parents(self, study: optuna.Study, generation: int) -> None:
        """Let a genetic sampler select the parents of each generation up to this one.

        Optuna keeps a selection in the study, so each is made once; here it depends on the seed
        and the generation alone, and a resumed search makes the same one.
        """
        for number in range(1, generation + 1):
            selector = self._make(
                int(np.random.default_rng([self._seed, 1, number]).integers(2**31))
            )
            assert isinstance(selector, BaseGASampler)
            selector.get_parent_population(study, number)


def mutate(
    row: Sequence[int], problem: SearchProblem, rng: np.random.Generator, moves: int
) -> list[int]:
    """``row`` with ``moves`` groups changed: half of the moves local, half anywhere.

    Choices are ordered by crossbars, so a local move is a neighbour in cost.
    """
    child = [int(index) for index in row]
    movable = [i for i, group in enumerate(problem.space.groups) if len(group) > 1]
    if not movable:
        return child
    for position in rng.choice(movable, size=min(moves, len(movable)), replace=False):
        size = len(problem.space.groups[position])
        if rng.random() < 0.5:
            step = int(rng.integers(1, 1 + max(1, size // 8)))
            target = child[position] + (step if rng.random() < 0.5 else -step)
            target = min(max(target, 0), size - 1)
        else:
            target = int(rng.integers(size))
        child[position] = target
    return child


def _scaled_scores(
    rows: Sequence[Row], problem: SearchProblem
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """(rows, 1 + costs) additive scores, each scaled to 0 (best of the rows) .. 1 (worst)."""
    # Accuracy falls with the logarithm of the expected loss rather than with the loss.
    losses = [np.log(max(problem.total(problem.sensitivity, row), 1e-12)) for row in rows]
    columns = [losses] + [
        [problem.total(scores, row) for row in rows] for scores in problem.costs.values()
    ]
    table = np.array(columns, dtype=np.float64).T
    low = table.min(axis=0)
    spread = table.max(axis=0) - low
    return (table - low) / np.where(spread > 0, spread, 1.0)


def _known_rows(study: optuna.Study, number: int, problem: SearchProblem) -> set[Row]:
    trials = study.get_trials(deepcopy=False)
    size = len(problem.space)  # a waiting trial has no parameters yet, nor has a failed ask
    return {
        row_of(trial.params, problem)
        for trial in trials
        if trial.number != number and len(trial.params) == size
    }


def _front_rows(study: optuna.Study, problem: SearchProblem) -> list[Row]:
    """Rows of the non-dominated finished trials."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    trials = [trial for trial in trials if _feasible(trial.constraints.values())]
    if not trials:
        return []
    points = np.array([trial.values for trial in trials], dtype=float)
    maximise = [d == optuna.study.StudyDirection.MAXIMIZE for d in study.directions]
    mask = non_dominated(points, maximise)
    return [row_of(trial.params, problem) for trial, keep in zip(trials, mask, strict=True) if keep]


def _feasible(constraints: Iterable[float]) -> bool:
    return all(value <= 0 for value in constraints)
