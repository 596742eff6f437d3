"""Search strategies by name: what is scored first, and how designs are proposed after it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    NSGAIIISampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)

from epim_nas.errors import find_named
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.study.epitome_sampler import EpitomeSampler
from epim_nas.study.evolution import EvolutionSampler
from epim_nas.study.samplers import OptunaSampler


@dataclass(frozen=True)
class Options:
    """What the run file says about how to propose.

    Attributes:
        fitness: metric that ``evolution`` minimises.
        population: designs of a generation of ``evolution``, ``nsga2`` and ``nsga3``.
        repair: whether proposals of Optuna's own samplers are repaired into the limits; without,
            they know the limits only as constraints of finished trials.
    """

    fitness: str = "latency_ns"
    population: int = 20
    repair: bool = True


Make = Callable[[FeasibleSolver, int, Options], BaseSampler]


@dataclass(frozen=True)
class Strategy:
    """How a search proposes designs.

    Attributes:
        name: its name in the run file.
        summary: one line for people.
        make: makes the sampler from a problem's solver, a seed and options.
        first: what is scored first: the ``exact`` front, designs of a ``gradient`` descent, or
            nothing.
        proposes: whether anything is proposed after those.
    """

    name: str
    summary: str
    make: Make
    first: str = "exact"
    proposes: bool = True


def _epitome(solver: FeasibleSolver, seed: int, options: Options) -> BaseSampler:
    return EpitomeSampler(solver, seed)


def _evolution(solver: FeasibleSolver, seed: int, options: Options) -> BaseSampler:
    return EvolutionSampler(
        solver, seed, options.fitness, options.population, max(2, options.population // 4)
    )


def _of_optuna(kind: Callable[..., BaseSampler], **arguments: Any) -> Make:
    def make(solver: FeasibleSolver, seed: int, options: Options) -> BaseSampler:
        own = dict(arguments)
        if kind in (NSGAIISampler, NSGAIIISampler):
            own["population_size"] = options.population
        inner = partial(_seeded, kind, own)
        return OptunaSampler(solver, seed, inner, options.repair)

    return make


def _seeded(kind: Callable[..., BaseSampler], arguments: dict[str, Any], seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        # NSGA-III is "experimental" in Optuna since 3.2.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return kind(seed=seed, **arguments)


STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            "epitome",
            "exact seeds, then exact solutions of corrected scores and evolution around the front",
            _epitome,
        ),
        Strategy("exact", "the exact front of the additive scores alone", _epitome, proposes=False),
        Strategy(
            "gradient",
            "Gumbel-softmax descent through supernet and costs, rounded exactly into the limits",
            _epitome,
            first="gradient",
            proposes=False,
        ),
        Strategy(
            "evolution",
            "EPIM's layer-wise evolution by one hardware cost, no seeds",
            _evolution,
            first="",
        ),
        Strategy("nsga2", "Optuna's NSGA-II, no seeds", _of_optuna(NSGAIISampler), first=""),
        Strategy("nsga3", "Optuna's NSGA-III, no seeds", _of_optuna(NSGAIIISampler), first=""),
        Strategy(
            "tpe",
            "Optuna's multivariate TPE, no seeds",
            _of_optuna(TPESampler, multivariate=True),
            first="",
        ),
        Strategy("random", "random designs, no seeds", _of_optuna(RandomSampler), first=""),
    )
}


def find_strategy(name: str, field: str = "search.strategy") -> Strategy:
    """The strategy of a name.

    Raises:
        InputError: unknown name.
    """
    return find_named(STRATEGIES, name, field, "a strategy")
