"""Whether any design keeps the limits of a run, and what is said where none does."""

from __future__ import annotations

import numpy as np

from epim_nas.epitome.design import Design
from epim_nas.errors import InputError
from epim_nas.solver.design_costs import Costs, added_up
from epim_nas.solver.exact import Unreachable
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.knapsack import Infeasible
from epim_nas.solver.metrics import METRICS
from epim_nas.solver.problem import SearchProblem
from epim_nas.space.space import Row

_WORD = {"crossbars": "crossbars", "tiles": "tiles", "weight_bits": "bits of weights"}


def check_reachable(solver: FeasibleSolver, by_compression: bool = False) -> None:
    """Check that some design keeps every limit.

    Args:
        solver: the solver of a problem whose model is :class:`~.design_costs.Costs`.
        by_compression: whether the budget of crossbars was given as a compression.

    Raises:
        UnreachableBudget: none does, or none could be found.
    """
    try:
        _ = solver.roomiest
    except (Infeasible, Unreachable):
        raise _unreachable(solver.problem, by_compression) from None


class UnreachableBudget(InputError):
    """No design of the space keeps the budget.

    Attributes:
        design: the design that comes nearest.
    """

    design: Design | None = None


def _unreachable(problem: SearchProblem, by_compression: bool) -> UnreachableBudget:
    row, nearest, least = _extremes(problem)
    assert isinstance(problem.model, Costs)
    space, dense = problem.space.name, problem.model.dense_crossbars
    broken = [name for name in problem.limits if nearest[name] > problem.limits[name]]
    alone = [name for name in problem.limits if least[name] > problem.limits[name]]
    name = next(iter(alone or broken or problem.limits))
    field = f"budget.{name}"
    if name == "crossbars" and by_compression:
        field = "budget.compression"
    limit = problem.limits[name]
    if len(problem.limits) == 1:
        ratio = dense / least[name] if name == "crossbars" else 0.0
        compared = f" ({ratio:.2f}x less than the dense network's {dense})" if ratio else ""
        allowed = f"at least {_shown(name, least[name])}"
        if ratio:
            allowed += f", or a compression of at most {ratio:.2f}"
        error = UnreachableBudget(
            field,
            f"asks for at most {_shown(name, limit)}, but the smallest design of the search space "
            f"{space} has {_number(least[name])}{compared}",
            allowed,
            "Raise the budget, or add smaller epitomes or fewer bits to the space.",
        )
    else:
        asked = ", ".join(_shown(n, v) for n, v in problem.limits.items())
        found = ", ".join(_shown(n, nearest[n]) for n in problem.limits)
        reachable = ", ".join(_shown(n, least[n]) for n in problem.limits)
        error = UnreachableBudget(
            field if alone else "budget",
            f"no design of the search space {space} has at most {asked}; the one that comes "
            f"nearest has {found}",
            f"alone, each is reachable from {reachable}",
            "Raise a limit, or add smaller epitomes or fewer bits to the space.",
        )
    error.design = problem.space.design(row)
    return error


def _extremes(problem: SearchProblem) -> tuple[Row, dict[str, float], dict[str, float]]:
    """The design nearest to all limits, its values of their metrics, and the least value of each.

    By the real costs of a few designs: additive costs that are fitted can err at the extremes.
    """
    rows = [problem.nearest]
    assert isinstance(problem.model, Costs)
    for name in problem.limits:
        parts = METRICS[name].additive
        raw = [problem.space.group_sums(problem.model.table.by_layer(part)) for part in parts]
        for scores in (problem.costs[name], added_up(raw)):
            rows.append(tuple(int(np.argmin(score)) for score in scores))
    rows.append(problem.fastest())
    totals = problem.model(np.array(rows))
    values = np.array([totals[name] for name in problem.limits])
    bounds = np.array(list(problem.limits.values()))[:, None]
    best = int(np.argmin((values / np.maximum(bounds, 1e-9)).max(axis=0)))
    names = list(problem.limits)
    return (
        rows[best],
        dict(zip(names, values[:, best].tolist(), strict=True)),
        dict(zip(names, values.min(axis=1).tolist(), strict=True)),
    )


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"


def _shown(name: str, value: float) -> str:
    return f"{_number(value)} {_WORD.get(name, name)}"
