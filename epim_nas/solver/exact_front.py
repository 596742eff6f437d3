"""Designs to start from, each proven optimal for an additive score: the exact front of these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from epim_nas.solver.exact import Certificate, Exact, Unreachable, front, totals
from epim_nas.solver.feasible import ROOMIEST, FeasibleSolver
from epim_nas.solver.knapsack import FloatArray, Infeasible
from epim_nas.solver.metrics import METRICS, is_maximised, metric_of
from epim_nas.solver.pareto import box_volume, non_dominated
from epim_nas.solver.problem import PIPELINED, SearchProblem, StandIn
from epim_nas.space.space import Row

_CAPS = 12
"""Caps of the slowest layer's time that are tried with each weighted sum."""
_ROUNDS = 16
"""Solutions by a stand-in of the latency with each weighted sum, at most."""
_FEW_ROUNDS = 4
"""Likewise where each takes an integer program."""
_STEPS = 24
"""Weights of a cost that are tried against the sensitivity, at most."""
_BOX = 1.1
"""Reference point of the seeds' hypervolume, of objectives scaled to 0 (best) .. 1 (worst)."""
_PIPELINES = (PIPELINED, "edp_nj_ns")
"""Metrics that the slowest layer decides."""


@dataclass(frozen=True)
class Seed:
    """A design and what is proven about it.

    Attributes:
        row: the design.
        weights: ``sensitivity`` or an additive cost -> its weight in the sum that it minimises.
        cap: longest time (ns) that a layer may take in it.
        certificate: how near to the least possible sum it is. The sum is one of additive costs:
            nothing is proven about the energy or the latency of whole designs.
        stands_in: whether the sum is one of stand-ins (:class:`~.problem.StandIn`), which say
            nothing of designs with larger buffers, rather than one of the problem's costs.
    """

    row: Row
    weights: Mapping[str, float]
    cap: float
    certificate: Certificate
    stands_in: bool = False


def exact_seeds(solver: FeasibleSolver, count: int) -> list[Seed]:
    """Exact solutions of a sweep over the trade-offs between the objectives.

    Each is the exact minimum of a weighted sum of sensitivity (which stands for accuracy) and the
    additive costs under the limits. The weights are swept over six decades, since losses grow
    exponentially where costs grow linearly. A pipeline's latency is that of its slowest layer
    rather than a sum (a bottleneck knapsack): where it is an objective, every sum is minimised
    under several caps of the layers' times as well. Energy and latency near their least values,
    which no sum over all designs has right, are minimised by stand-ins too (``stands_in``): these
    seeds are exact for the stand-ins' sums alone. Of the solutions that no other beats in
    sensitivity and in the costs of whole designs, ``count`` are kept: the one of least sensitivity
    first, the best in each cost, and those that add most to the hypervolume.

    Where crossbars are the only cost among the objectives, the solutions are those of the whole
    front, which takes one pass.

    Args:
        solver: the problem's solver.
        count: how many different rows at most.

    Raises:
        Infeasible: no row keeps the limit.
        Unreachable: no row keeps all limits.
    """
    seeds = _solutions(solver, count)
    kept = _spread_out(_judged(solver.problem, [seed.row for seed in seeds]), count)
    return [seeds[index] for index in kept]


def exact_rows(solver: FeasibleSolver) -> list[Row]:
    """Rows of all solutions of a full sweep that no other beats in sensitivity and costs.

    Raises:
        Infeasible: no row keeps the limit.
        Unreachable: no row keeps all limits.
    """
    rows = [seed.row for seed in _solutions(solver, _STEPS)]
    losses = _judged(solver.problem, rows)
    kept = non_dominated(losses, [False] * losses.shape[1])
    return [row for row, keep in zip(rows, kept, strict=True) if keep]


def _solutions(solver: FeasibleSolver, count: int) -> list[Seed]:
    """Different exact solutions, at least ``count`` where the sweep finds so many."""
    problem = solver.problem
    found: dict[Row, Seed] = {}
    if problem.is_knapsack and not problem.modelled and _over_crossbars(problem):
        (limit,) = problem.solver_limits.values()
        for exact in reversed(front(problem.sensitivity, limit)):
            found[exact.row] = _seed(exact, {"sensitivity": 1.0})
    else:
        for seed in _sweep(solver, count):
            known = found.get(seed.row)
            if known is None or (known.stands_in and not seed.stands_in):
                found[seed.row] = seed
    return list(found.values())


def judges_accuracy(problem: SearchProblem) -> bool:
    """Whether an objective is about how well the network works."""
    metrics = [METRICS[metric_of(objective)] for objective in problem.objectives]
    return any(metric.measured or metric.name == "sensitivity" for metric in metrics)


def _seed(exact: Exact, weights: Mapping[str, float], cap: float = np.inf) -> Seed:
    return Seed(exact.row, dict(weights), cap, exact.certificate)


def _over_crossbars(problem: SearchProblem) -> bool:
    """Whether the trade-off is between accuracy and crossbars alone."""
    metrics = {metric_of(objective) for objective in problem.objective_costs}
    return judges_accuracy(problem) and metrics in ({"crossbars"}, {"compression"})


def _sweep(solver: FeasibleSolver, count: int) -> Iterator[Seed]:
    """Solutions of all weighted sums, by the fitted costs and the stand-ins, under all caps."""
    problem = solver.problem
    for number, weights in enumerate(_weightings(solver, count)):
        losses = problem.scalarised(weights)
        exact = solver.solve(losses)
        yield _seed(exact, weights)
        # A program with several limits takes a hundred times as long as a knapsack.
        thorough = problem.is_knapsack or number % 4 == 0
        for cap in _caps(problem, exact.row) if thorough else []:
            try:
                yield _seed(solver.solve(losses, cap), weights, cap)
            except (Infeasible, Unreachable):
                break  # smaller caps are out of reach as well
        for standin in _standins(problem, weights) if thorough else []:
            yield from _followed(solver, weights, standin)


def _standins(problem: SearchProblem, weights: Mapping[str, float]) -> list[StandIn]:
    """The stand-ins of what has a weight and is to fall, each once."""
    known = problem.falling & set(weights)
    found: list[StandIn] = []
    if not known:
        return found  # nothing that they stand for
    for standin in problem.standins:
        if not any(_same(standin, other, known) for other in found):
            found.append(standin)
    return found if problem.is_knapsack else found[:1]


def _same(one: StandIn, other: StandIn, names: Iterable[str]) -> bool:
    """Whether two stand-ins agree in some costs."""
    return all(
        np.array_equal(a, b)
        for name in names
        if name in one.costs
        for a, b in zip(one.costs[name], other.costs[name], strict=True)
    )


def _followed(
    solver: FeasibleSolver, weights: Mapping[str, float], standin: StandIn
) -> Iterator[Seed]:
    """Solutions of a weighted sum by a stand-in that follows them."""
    problem = solver.problem
    rounds = _ROUNDS if problem.is_knapsack else _FEW_ROUNDS
    last = None
    for number in range(1, rounds + 1):
        costs = {name: c for name, c in standin.costs.items() if name in problem.falling}
        try:
            exact = solver.solve(problem.scalarised(weights, costs))
        except (Infeasible, Unreachable):
            return  # not with the choices that it knows
        if exact.row == last or exact.certificate.method == ROOMIEST:
            return  # nothing new is to be learned
        yield Seed(exact.row, dict(weights), np.inf, exact.certificate, stands_in=True)
        if number == rounds or standin.followed is None or PIPELINED not in weights:
            return
        standin, last = standin.followed(exact.row), exact.row


def _caps(problem: SearchProblem, row: Row) -> Sequence[float]:
    """Caps from just below the slowest layer of a row to what every layer can reach."""
    if problem.times is None or not any(metric_of(o) in _PIPELINES for o in problem.objectives):
        return []
    highest, lowest = problem.slowest(row), problem.slowest(problem.fastest())
    if lowest >= highest:
        return []
    return [float(cap) for cap in np.geomspace(highest, lowest, _CAPS + 1)[1:]]


def _weightings(solver: FeasibleSolver, count: int) -> Iterator[dict[str, float]]:
    """Weights of the sums to minimise, from accuracy alone to each cost alone."""
    problem = solver.problem
    costs = list(problem.objective_costs)
    lead = "sensitivity" if judges_accuracy(problem) or not costs else costs[0]
    yield {lead: 1.0}
    best = solver.solve(problem.scalarised({lead: 1.0})).row
    # The sensitivity decides between designs of equal cost.
    extremes = [{name: 1.0, "sensitivity": 1e-12} for name in costs]
    ends = [solver.solve(problem.scalarised(weights)).row for weights in extremes]
    scale = {name: _range(problem, name, [best, *ends]) for name in {lead, *costs}}
    others = [name for name in costs if name != lead]
    # Alternate between the costs and their equal mix, from gentle to strong.
    mixes = [[name] for name in others] + ([others] if len(others) > 1 else [])
    steps = 2 * count if problem.is_knapsack else count // max(1, len(mixes))
    for strength in np.geomspace(1e-3, 1e3, max(2, min(steps, _STEPS))):
        for mix in mixes:
            weights = {lead: 1.0 / scale[lead]}
            yield weights | {name: strength / len(mix) / scale[name] for name in mix}
    yield from extremes


def _range(problem: SearchProblem, name: str, rows: Iterable[Row]) -> float:
    scores = problem.sensitivity if name == "sensitivity" else problem.objective_costs[name]
    return max(float(np.ptp(totals(scores, list(rows)))), 1e-12)


def _judged(problem: SearchProblem, rows: Sequence[Row]) -> FloatArray:
    """(rows, 1 + costs) logarithm of the sensitivity, and the objectives' costs; less is better."""
    index = np.array(rows)
    real = problem.model(index) if problem.model is not None else {}
    columns = [np.log(np.maximum(totals(problem.sensitivity, rows), 1e-12))]
    for objective in problem.objectives:
        name = metric_of(objective)
        if name in real:
            sign = -1.0 if is_maximised(objective) else 1.0
            columns.append(sign * np.asarray(real[name], dtype=float))
        elif objective in problem.objective_costs:
            columns.append(totals(problem.objective_costs[objective], rows))
    return np.stack(columns, axis=1)


def _spread_out(losses: FloatArray, count: int) -> list[int]:
    """Indices of at most ``count`` non-dominated points that dominate as much as possible.

    The best in the first column comes first, then the best in each other one, then always the
    point that adds most to the hypervolume (for which greedy choices come within 1 - 1/e of the
    best; Nemhauser, Wolsey and Fisher, 1978).
    """
    on_front = np.flatnonzero(non_dominated(losses, [False] * losses.shape[1]))
    points = losses[on_front]
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    points = (points - low) / np.where(span > 0, span, 1.0)
    sums = points.sum(axis=1)
    picked: dict[int, None] = {}
    for column in points.T:  # of equal ones, that which is better on the whole
        picked[int(np.lexsort((sums, column))[0])] = None
    picked = dict.fromkeys(list(picked)[:count])
    while len(picked) < min(count, len(points)):
        gains = [
            -1.0 if index in picked else box_volume(points[[*picked, index]] / _BOX)
            for index in range(len(points))
        ]
        picked[int(np.argmax(gains))] = None
    return [int(on_front[index]) for index in picked]
