"""From a run file to the search problem: limits and additive costs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from epim_nas.errors import EpimError
from epim_nas.hardware.lower_bounds.floors import Floors
from epim_nas.solver.cost_fit import calibrated
from epim_nas.solver.design_costs import Costs, added_up
from epim_nas.solver.exact import Limit, Scores
from epim_nas.solver.knapsack import FloatArray, IntArray
from epim_nas.solver.lower_bounds import Bounds
from epim_nas.solver.metrics import METRICS, metric_of, parts_of
from epim_nas.solver.near_optimum_costs import ENERGY, find_standins
from epim_nas.solver.problem import PIPELINED, SearchProblem, StandIn
from epim_nas.space.space import SearchSpace

log = logging.getLogger(__name__)

_BUFFER_CASES = 2
"""Sizes of the buffers for which energies are solved exactly: those of the least energies."""


def limits_of(budget: Mapping[str, float], dense_crossbars: int) -> dict[str, float]:
    """Metric -> largest value, of a budget.

    Args:
        budget: metric -> largest value; ``compression`` is the least ratio of the dense network's
            crossbars to a design's.
        dense_crossbars: crossbars of the dense network with 32-bit weights.
    """
    limits = {name: value for name, value in budget.items() if name != "compression"}
    if "compression" in budget:
        # Round up slightly so that a ratio derived from N crossbars yields N again.
        limits["crossbars"] = int(dense_crossbars / budget["compression"] * (1 + 1e-12))
    return limits


def formulate(
    costs: Costs, limits: Mapping[str, float], objectives: Sequence[str], seed: int = 0
) -> SearchProblem:
    """The search problem, without sensitivity: every choice counts as free of loss.

    Costs that are sums over layers are taken from the cost table. Those that are not (the pipelined
    latency, buffers of a size for all) get the additive costs that fit whole designs best.

    Args:
        costs: costs of the space's designs.
        limits: metric -> largest value (:func:`limits_of`).
        objectives: what is optimised (:mod:`~epim_nas.solver.metrics`).
        seed: seed of the designs that additive costs are fitted to.
    """
    space = costs.space
    parts = [part for objective in objectives for part in parts_of(metric_of(objective))]
    wanted = {"crossbars", *limits, *parts}
    scores: dict[str, Scores] = {}
    constants: dict[str, float] = {}
    for name in METRICS:
        metric = METRICS[name]
        if name not in wanted or not metric.additive:
            continue
        columns = [space.group_sums(costs.table.by_layer(part)) for part in metric.additive]
        scores[name] = columns[0] if metric.exact else added_up(columns)
        constants[name] = float(costs.table.constant[metric.additive[0]]) if metric.exact else 0.0
    problem = SearchProblem(
        space=space,
        sensitivity=[np.zeros(len(group)) for group in space.groups],
        costs=scores,
        limits=limits,
        objectives=tuple(objectives),
        constants=constants,
        model=costs,
        seed=seed,
        times=_slowest(space, costs.table.by_layer("sequential_latency_ns")),
    )
    # The stand-ins know nothing of what a user's function computes.
    metrics = {
        name for name in (ENERGY, PIPELINED)
        if name in problem.falling and METRICS[name].function is None
    }  # fmt: skip
    if "crossbars" in limits and metrics:
        budget = int(limits["crossbars"])
        find = partial(_standins, space, costs, problem.crossbars, budget, metrics)
        problem = replace(problem, find_standins=find)
    return calibrated(problem, costs, seed)


def _standins(
    space: SearchSpace,
    costs: Costs,
    crossbars: list[IntArray],
    budget: int,
    metrics: Collection[str],
) -> list[StandIn]:
    """Additive costs near the least energy and latency that the crossbars allow.

    They only help a search: where they cannot be had, it goes on without.
    """
    if not Limit(crossbars, budget).tabular:
        log.info("so many crossbars are no knapsack: no costs near the least energy and latency")
        return []
    try:
        bounds = Bounds(space, Floors(costs.model), crossbars, budget)
        return find_standins(bounds, metrics, _BUFFER_CASES)
    except EpimError as error:  # what keeps a run from going on is said elsewhere
        log.debug("no costs near the least energy and latency: %s", error)
        return []


def _slowest(space: SearchSpace, times: Mapping[str, npt.NDArray[np.generic]]) -> list[FloatArray]:
    """Per group and choice the time (ns) of its slowest layer."""
    return [
        np.max([np.asarray(times[layer], dtype=float) for layer in group.layers], axis=0)
        for group in space.groups
    ]
