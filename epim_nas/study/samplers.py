"""Samplers whose every proposal keeps the limits and is new.

They are ordinary ``optuna.samplers.BaseSampler`` objects over one integer parameter per group (the
index of its choice, ordered by crossbars). Their randomness depends on the seed and the number of
the trial alone, so a resumed search proposes what the uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.trial import FrozenTrial

from epim_nas.solver.problem import SearchProblem
from epim_nas.space.space import Row
from epim_nas.study.history import History, distributions, params_of, row_of

HOW_ATTRIBUTE = "epim:how"
"""System attribute of a trial: how its design came about, in words."""

_ATTEMPTS = 50
"""Mutations of a known design until a new one is found."""


class FeasibleSampler(BaseSampler):
    """Turns raw proposals into rows that keep the limits and were not proposed before.

    Args:
        problem: space, scores and limits.
        seed: seed of the search.
        repair: whether proposals are repaired and moved away from known ones. Without, they are
            left as they are.
    """

    def __init__(self, problem: SearchProblem, seed: int, repair: bool = True) -> None:
        self._problem = problem
        self._seed = seed
        self._repair = repair
        self._history = History(problem)
        self._distributions = distributions(problem)

    def propose(
        self, study: optuna.Study, trial: FrozenTrial, rng: np.random.Generator
    ) -> tuple[Sequence[int], str]:
        """A row, feasible or not, and how it came about."""
        raise NotImplementedError

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All parameters are sampled together: the limits join them."""
        return self._distributions

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """The parameters of a feasible, new row."""
        if "fixed_params" in trial.system_attrs:
            return {}  # a seed, or a proposal of an interrupted search
        rng = np.random.default_rng([self._seed, trial.number])
        self._history.follow(study, trial.number)
        proposed, how = self.propose(study, trial, rng)
        row = tuple(int(index) for index in proposed)
        if self._repair:
            row = self._new(self._problem.repair(row), rng)
        # Only the storage can note something in a trial that is being sampled.
        study._storage.set_trial_system_attr(trial._trial_id, HOW_ATTRIBUTE, how)
        return dict(params_of(row, self._problem))

    def _new(self, row: Row, rng: np.random.Generator) -> Row:
        for attempt in range(_ATTEMPTS):
            if row not in self._history.proposed:
                break
            # A known design costs an evaluation and teaches nothing: move further away each time.
            row = self._problem.repair(mutate(row, self._problem, rng, 1 + attempt // 10))
        return row

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Unreachable: every parameter is sampled relatively."""
        raise RuntimeError(f"the parameter `{param_name}` is not in the search space")


class OptunaSampler(FeasibleSampler):
    """Any Optuna sampler; every proposal is repaired into the limits unless told otherwise.

    Args:
        problem: space, scores and limits.
        seed: seed of the search.
        make: makes the inner sampler from a seed.
        repair: see :class:`FeasibleSampler`. Without, the sampler has only the constraints of
            finished trials to keep within the limits.
    """

    def __init__(
        self,
        problem: SearchProblem,
        seed: int,
        make: Callable[[int], BaseSampler],
        repair: bool = True,
    ) -> None:
        super().__init__(problem, seed, repair)
        self._make = make

    def propose(
        self, study: optuna.Study, trial: FrozenTrial, rng: np.random.Generator
    ) -> tuple[Sequence[int], str]:
        """The inner sampler's proposal."""
        # A fresh sampler a trial: its random state would not survive a restart otherwise. What
        # Optuna's samplers remember of earlier trials they read from the study.
        inner = self._make(int(rng.integers(2**31)))
        inner.before_trial(study, trial)
        if isinstance(inner, BaseGASampler):
            self._select_parents(study, inner.get_trial_generation(study, trial))
        inner_space = inner.infer_relative_search_space(study, trial)
        params = inner.sample_relative(study, trial, inner_space) if inner_space else {}
        for name, distribution in self._distributions.items():
            if name not in params:
                params[name] = inner.sample_independent(study, trial, name, distribution)
        return row_of(params, self._problem), type(inner).__name__

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


def cross(first: Sequence[int], second: Sequence[int], rng: np.random.Generator) -> list[int]:
    """A child that takes every group's choice from either parent."""
    return [int(a if rng.random() < 0.5 else b) for a, b in zip(first, second, strict=True)]


def random_row(problem: SearchProblem, rng: np.random.Generator) -> list[int]:
    """A row whose choices are drawn uniformly; it need not be feasible."""
    return [int(rng.integers(len(group))) for group in problem.space.groups]
