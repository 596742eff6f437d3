"""Whether any design keeps the limits of a run, and what is said where none does."""

from __future__ import annotations

import numpy as np

from epim_nas.epitome.design import Design
from epim_nas.errors import InputError
from epim_nas.solver.design_costs import Costs, added_up
from epim_nas.solver.exact import Unreachable
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.formulation import formulate
from epim_nas.solver.knapsack import Infeasible
from epim_nas.solver.metrics import METRICS
from epim_nas.solver.problem import SearchProblem
from epim_nas.space.space import Row
from epim_nas.units import at_least, ratio_at_most

_WORD = {"crossbars": "crossbars", "tiles": "tiles", "weight_bits": "bits of weights"}

_FIRST_MORE = 0.01
"""By how much a limit is raised first; twice as much at every further try."""


def check_reachable(solver: FeasibleSolver, by_compression: bool = False) -> None:
    """Check that some design keeps every limit.

    Args:
        solver: the solver of a problem whose model is :class:`~.design_costs.Costs`.
        by_compression: whether the budget of crossbars was given as a compression.

    Raises:
        UnreachableBudget: none does, or none could be found.
    """
    if not is_reachable(solver):
        raise _unreachable(solver.problem, by_compression)


def is_reachable(solver: FeasibleSolver) -> bool:
    """Whether a design was found that keeps every limit."""
    try:
        _ = solver.roomiest
    except (Infeasible, Unreachable):
        return False
    return True


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
    promised = {n: _promised(problem, n, least[n]) for n in problem.limits}
    limit = problem.limits[name]
    if len(problem.limits) == 1:
        ratio = ratio_at_most(dense, least[name]) if name == "crossbars" else ""
        compared = f" ({ratio}x less than the dense network's {dense})" if ratio else ""
        allowed = f"at least {_shown(name, promised[name])}"
        if ratio:
            allowed += f", or a compression of at most {ratio}"
        error = UnreachableBudget(
            field,
            f"asks for at most {_shown(name, _typed(limit))}, but the smallest design of the "
            f"search space {space} has {at_least(least[name])}{compared}",
            allowed,
            "Raise the budget, or add smaller epitomes or fewer bits to the space.",
        )
    else:
        asked = ", ".join(_shown(n, _typed(v)) for n, v in problem.limits.items())
        found = ", ".join(_shown(n, at_least(nearest[n])) for n in problem.limits)
        reachable = ", ".join(_shown(n, promised[n]) for n in problem.limits)
        error = UnreachableBudget(
            field if alone else "budget",
            f"no design of the search space {space} has at most {asked}; the one that comes "
            f"nearest has {found}",
            f"alone, each is reachable from {reachable}",
            "Raise a limit, or add smaller epitomes or fewer bits to the space.",
        )
    error.design = problem.space.design(row)
    return error


def _promised(problem: SearchProblem, name: str, least: float) -> str:
    """The least limit that a run is accepted with, as it can be typed.

    Where the solver knows a limit by fitted costs alone, it may miss the design that was found; so
    the limit is tried, and raised until the solver finds one.
    """
    text, more = at_least(least), _FIRST_MORE
    while not METRICS[name].exact and not _accepted(problem, name, text) and more < 1:
        text, more = at_least(least * (1 + more)), 2 * more
    return text


def _accepted(problem: SearchProblem, name: str, limit: str) -> bool:
    """Whether a run with this limit alone would be accepted."""
    assert isinstance(problem.model, Costs)
    alone = formulate(problem.model, {name: float(limit)}, problem.objectives, problem.seed)
    return is_reachable(FeasibleSolver(alone))


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


def _typed(value: float) -> str:
    """A limit as it was given."""
    return f"{value:.0f}" if float(value).is_integer() else str(value)


def _shown(name: str, value: str) -> str:
    return f"{value} {_WORD.get(name, name)}"
