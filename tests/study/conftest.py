"""A small search problem with many infeasible designs."""

from __future__ import annotations

import numpy as np
import pytest

from epim_nas import Choice, EpitomeShape, SearchSpace
from epim_nas.space import Group
from epim_nas.study.problem import SearchProblem


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
        crossbars=crossbars,
        sensitivity=sensitivity,
        costs={
            "latency_ns": [100.0 / weights + rng.random(choices) for weights in crossbars],
            "energy_nj": [rng.random(choices) * 10 for _ in crossbars],
        },
        budget=sum(int(weights.min()) for weights in crossbars) + slack,
    )


@pytest.fixture
def problem() -> SearchProblem:
    return make_problem()
