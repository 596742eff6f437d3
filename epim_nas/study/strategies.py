"""Search strategies by name: how new designs are proposed after the seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from optuna.samplers import (
    BaseSampler,
    NSGAIIISampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)

from epim_nas.errors import InputError, nearest
from epim_nas.study.problem import SearchProblem
from epim_nas.study.samplers import EpitomeSampler, RepairedSampler

Make = Callable[[SearchProblem, int], BaseSampler]


@dataclass(frozen=True)
class Strategy:
    """How a search proposes designs.

    Attributes:
        name: its name in the run file.
        summary: one line for people.
        make: makes the sampler for a problem and a seed.
        seeded: whether the exact front is evaluated first.
        proposes: whether anything is proposed after the seeds.
    """

    name: str
    summary: str
    make: Make
    seeded: bool = True
    proposes: bool = True


def _repaired(inner: Callable[[int], BaseSampler]) -> Make:
    return partial(_make_repaired, inner)


def _make_repaired(
    inner: Callable[[int], BaseSampler], problem: SearchProblem, seed: int
) -> BaseSampler:
    return RepairedSampler(problem, seed, inner)


STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            "epitome", "exact seeds, then evolution around the measured front", EpitomeSampler
        ),
        Strategy(
            "exact", "the exact front of the additive scores alone", EpitomeSampler, proposes=False
        ),
        Strategy(
            "nsga2",
            "Optuna's NSGA-II, repaired into the budget, no seeds",
            _repaired(lambda seed: NSGAIISampler(seed=seed, population_size=20)),
            seeded=False,
        ),
        Strategy(
            "nsga3",
            "Optuna's NSGA-III, repaired into the budget, no seeds",
            _repaired(lambda seed: NSGAIIISampler(seed=seed, population_size=20)),
            seeded=False,
        ),
        Strategy(
            "tpe",
            "Optuna's multivariate TPE, repaired into the budget, no seeds",
            _repaired(lambda seed: TPESampler(seed=seed, multivariate=True)),
            seeded=False,
        ),
        Strategy(
            "random",
            "random designs repaired into the budget, no seeds",
            _repaired(lambda seed: RandomSampler(seed=seed)),
            seeded=False,
        ),
    )
}


def find_strategy(name: str, field: str = "search.strategy") -> Strategy:
    """The strategy of a name.

    Raises:
        InputError: unknown name.
    """
    if name not in STRATEGIES:
        known = ", ".join(f"`{known}`" for known in STRATEGIES)
        raise InputError(field, f"`{name}` is not a strategy", known, nearest(name, STRATEGIES))
    return STRATEGIES[name]
