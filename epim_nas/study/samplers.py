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

from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.space.moves import mutate
from epim_nas.space.space import Row
from epim_nas.study.history import History, distributions, params_of, row_of

HOW_ATTRIBUTE = "epim:how"
"""System attribute of a trial: how its design came about, in words."""

_ATTEMPTS = 50
"""Mutations of a known design until a new one is found."""


class FeasibleSampler(BaseSampler):
    """Turns raw proposals into rows that keep the limits and were not proposed before.

    Args:
        solver: the solver of the problem.
        seed: seed of the search.
        repair: whether proposals are repaired and moved away from known ones. Without, they are
            left as they are.
    """

    def __init__(self, solver: FeasibleSolver, seed: int, repair: bool = True) -> None:
        self._solver, self._problem = solver, solver.problem
        self._seed = seed
        self._repair = repair
        self._history = History(solver.problem)
        self._distributions = distributions(solver.problem)

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
            row = self._new(self._solver.repair(row), rng)
        # Only the storage can note something in a trial that is being sampled.
        study._storage.set_trial_system_attr(trial._trial_id, HOW_ATTRIBUTE, how)
        return dict(params_of(row, self._problem))

    def _new(self, row: Row, rng: np.random.Generator) -> Row:
        for attempt in range(_ATTEMPTS):
            if row not in self._history.proposed:
                break
            # A known design costs an evaluation and teaches nothing: move further away each time.
            row = self._solver.repair(mutate(row, self._problem.space, rng, 1 + attempt // 10))
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
        solver: the solver of the problem.
        seed: seed of the search.
        make: makes the inner sampler from a seed.
        repair: see :class:`FeasibleSampler`. Without, the sampler has only the constraints of
            finished trials to keep within the limits.
    """

    def __init__(
        self,
        solver: FeasibleSolver,
        seed: int,
        make: Callable[[int], BaseSampler],
        repair: bool = True,
    ) -> None:
        super().__init__(solver, seed, repair)
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
