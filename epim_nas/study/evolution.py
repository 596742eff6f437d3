"""Layer-wise evolution under a crossbar constraint, as EPIM searches (DAC 2024).

A population of designs; the fittest become parents; children by crossover and mutation of single
layers; children beyond the limits are discarded. The fitness is one cost of the hardware: latency,
energy, or their product. The network's accuracy has no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from epim_nas.errors import EpimError
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.metrics import is_maximised, metric_of
from epim_nas.space.moves import cross, random_row
from epim_nas.space.space import Row
from epim_nas.study.history import METRICS_ATTRIBUTE, is_feasible
from epim_nas.study.samplers import FeasibleSampler

_TRIES = 100
"""Children that are discarded before one is repaired instead."""


class EvolutionSampler(FeasibleSampler):
    """Evolution of a population by one fitness; for comparison with the default strategy.

    Args:
        solver: the solver of the problem.
        seed: seed of the search.
        fitness: metric to minimise.
        population: designs of a generation.
        parents: fittest designs, of all so far, that have children.
        crossover: share of the children that have two parents; the others are mutants of one.
        mutation: probability that a mutant's group changes.
    """

    def __init__(
        self,
        solver: FeasibleSolver,
        seed: int,
        fitness: str = "latency_ns",
        population: int = 50,
        parents: int = 12,
        crossover: float = 0.5,
        mutation: float = 0.1,
    ) -> None:
        super().__init__(solver, seed)
        self._fitness = fitness
        self._population = population
        self._parents = parents
        self._crossover = crossover
        self._mutation = mutation

    def propose(
        self, study: optuna.Study, trial: FrozenTrial, rng: np.random.Generator
    ) -> tuple[Sequence[int], str]:
        """A random design in the first generation, then a child of the fittest."""
        generation = trial.number // self._population
        born = generation * self._population
        fittest = self._fittest(born)
        if generation == 0 or not fittest:
            return random_row(self._problem.space, rng), "first generation"
        for _ in range(_TRIES):
            child = self._child(fittest, rng)
            if self._problem.is_feasible(child) and tuple(child) not in self._history.proposed:
                break
        return child, f"generation {generation}"

    def _child(self, fittest: Sequence[Row], rng: np.random.Generator) -> list[int]:
        first = fittest[int(rng.integers(len(fittest)))]
        if len(fittest) > 1 and rng.random() < self._crossover:
            return cross(first, fittest[int(rng.integers(len(fittest)))], rng)
        groups = self._problem.space.groups
        return [
            int(rng.integers(len(group))) if rng.random() < self._mutation else index
            for index, group in zip(first, groups, strict=True)
        ]

    def _fittest(self, born: int) -> list[Row]:
        """Parents of a generation: the fittest of all trials before it."""
        candidates = [
            trial for trial in self._history.finished if trial.number < born and is_feasible(trial)
        ]
        candidates.sort(key=lambda trial: (self._value(trial), trial.number))
        return [self._history.row(trial) for trial in candidates[: self._parents]]

    def _value(self, trial: FrozenTrial) -> float:
        metrics = trial.user_attrs.get(METRICS_ATTRIBUTE, {})
        if self._fitness in metrics:
            return float(metrics[self._fitness])
        for objective, value in zip(self._problem.objectives, trial.values, strict=True):
            if metric_of(objective) == self._fitness:
                return -value if is_maximised(objective) else value
        raise EpimError(f"trial {trial.number} has no metric `{self._fitness}` to be fit by")
