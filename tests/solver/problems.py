"""A small search problem with many infeasible designs."""

from __future__ import annotations

import numpy as np

from epim_nas import Choice, EpitomeShape, SearchSpace
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.problem import SearchProblem
from epim_nas.space import Group


def make_problem(
    groups: int = 8, choices: int = 10, slack: int = 6, seed: int = 0
) -> SearchProblem:
    rng = np.random.default_rng(seed)
    crossbars = [np.sort(rng.integers(1, 20, choices)) for _ in range(groups)]
    sensitivity = [1.0 / weights + 0.05 * rng.random(choices) for weights in crossbars]
    space = SearchSpace(
        "test",
        "net",
        tuple(
            Group(
                f"layer{g}",
                (f"layer{g}",),
                tuple(
                    (Choice(EpitomeShape(c + 1, 1, 3, 3), weight_bits=3),) for c in range(choices)
                ),
            )
            for g in range(groups)
        ),
    )
    return SearchProblem(
        space=space,
        sensitivity=sensitivity,
        costs={
            "crossbars": crossbars,
            "latency_ns": [100.0 / weights + rng.random(choices) for weights in crossbars],
            "energy_nj": [rng.random(choices) * 10 for _ in crossbars],
        },
        limits={"crossbars": sum(int(weights.min()) for weights in crossbars) + slack},
    )


def make_pipelined(groups: int = 6, choices: int = 6, seed: int = 0) -> SearchProblem:
    """A problem whose latency is that of the slowest layer and a share of the others'.

    It has three limits, one of them on this latency, and a model that says the real costs.
    """
    base = make_problem(groups, choices, slack=25, seed=seed)
    rng = np.random.default_rng([seed, 5])
    times = [rng.uniform(1.0, 10.0, size=choices) for _ in range(groups)]
    energy = base.costs["energy_nj"]

    def model(rows: np.ndarray) -> dict[str, np.ndarray]:
        taken = np.stack([time[rows[:, g]] for g, time in enumerate(times)], axis=1)
        latency = taken.max(axis=1) + 0.1 * taken.sum(axis=1)
        spent = np.sum([np.asarray(e)[rows[:, g]] for g, e in enumerate(energy)], axis=0)
        return {
            "crossbars": np.sum(
                [np.asarray(c)[rows[:, g]] for g, c in enumerate(base.crossbars)], axis=0
            ),
            "latency_ns": latency,
            # Not quite additive either.
            "energy_nj": spent + 0.05 * latency * groups,
        }

    # Limits that half of the designs within the crossbars keep, each.
    within = np.array(
        [FeasibleSolver(base).repair(rng.integers(0, choices, size=groups)) for _ in range(200)]
    )
    limits = {name: float(np.median(model(within)[name])) for name in ("latency_ns", "energy_nj")}
    return SearchProblem(
        space=base.space,
        sensitivity=base.sensitivity,
        costs={**base.costs, "latency_ns": times},
        limits={**base.limits, **limits},
        model=model,
        times=times,
    )
