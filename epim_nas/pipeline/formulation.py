"""From a run file to the search problem: limits, additive costs, whether any design keeps them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from epim_nas.epitome.design import Choice, Design
from epim_nas.errors import EpimError, InputError
from epim_nas.hardware import BatchCostModel, CostTable
from epim_nas.hardware.floors import Floors
from epim_nas.hardware.mapping import map_layer
from epim_nas.network.spec import Network
from epim_nas.pipeline.setup import Setup
from epim_nas.space.space import Row, SearchSpace
from epim_nas.study.bounds import Bounds
from epim_nas.study.exact import Limit, Scores, Unreachable, minimise
from epim_nas.study.exact import totals as summed
from epim_nas.study.knapsack import FloatArray, Infeasible, IntArray
from epim_nas.study.metrics import METRICS, Metric, metric_of, own_costs, own_metrics, parts_of
from epim_nas.study.problem import SearchProblem, StandIn
from epim_nas.study.solver import PIPELINED
from epim_nas.study.standins import ENERGY, find_standins
from epim_nas.study.surrogate import fit_additive
from epim_nas.supernet.sensitivity import Table

log = logging.getLogger(__name__)

_CALIBRATION_DESIGNS = 256
"""Designs whose whole costs the additive costs are fitted to; a fraction of a second."""
_ROUNDS = 8
"""Rounds of fitting; each adds designs that the last one's costs point to."""
_BUFFER_CASES = 2
"""Sizes of the buffers for which energies are solved exactly: those of the least energies."""
_WORD = {"crossbars": "crossbars", "tiles": "tiles", "weight_bits": "bits of weights"}


@dataclass(frozen=True)
class Costs:
    """Costs of whole designs by rows of a search space.

    Attributes:
        model: the cost model of the space's choices.
        table: their additive costs, for what the model does not total.
        groups: (layers,) which group of a row decides each layer of the model.
        dense_crossbars: crossbars of the dense network with 32-bit weights.
        quantized: per group, crossbars of the dense layers with the bits of each choice.
        own: metrics that the user registered and that are not measured.
        space: the space, for those.
        network: its network, likewise.
    """

    model: BatchCostModel
    table: CostTable
    groups: npt.NDArray[np.int64]
    dense_crossbars: int
    quantized: list[IntArray]
    own: tuple[Metric, ...]
    space: SearchSpace
    network: Network

    @classmethod
    def of(cls, setup: Setup, space: SearchSpace) -> Costs:
        """The costs of a space's designs."""
        choices = space.layer_choices
        model, table = setup.cost.batch(choices), setup.cost.table(choices)
        assert model.names == table.names
        owner = {
            layer: number for number, group in enumerate(space.groups) for layer in group.layers
        }
        groups = np.array([owner[name] for name in model.names])
        quantized = {
            layer.name: np.array([
                map_layer(layer, Choice(weight_bits=choice.weight_bits), setup.chip).crossbars
                for choice in choices[layer.name]
            ])
            for layer in setup.network.weighted
        }  # fmt: skip
        return cls(
            model, table, groups, setup.dense_crossbars, space.group_sums(quantized),
            tuple(own_metrics(measured=False)), space, setup.network,
        )  # fmt: skip

    def __call__(self, rows: IntArray) -> dict[str, FloatArray]:
        """(N, groups) rows -> metric -> (N,) values."""
        by_layer = np.asarray(rows)[:, self.groups]
        totals = dict(self.model.totals(by_layer))
        totals["weight_bits"] = self.table.totals(by_layer)["weight_bits"].astype(np.float64)
        if self.own:
            totals |= self._own(rows, totals)
        totals["edp_nj_ns"] = totals["energy_nj"] * totals["latency_ns"]
        quantized = summed(self.quantized, rows)
        totals["compression"] = self.dense_crossbars / totals["crossbars"]
        totals["shape_compression"] = quantized / totals["crossbars"]
        totals["bits_compression"] = self.dense_crossbars / quantized
        return totals

    def _own(self, rows: IntArray, totals: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Metric of the user -> (N,) values."""
        found = [
            own_costs(
                self.own,
                self.space.design(row),
                self.network,
                {name: float(values[index]) for name, values in totals.items()},
            )
            for index, row in enumerate(rows)
        ]
        return {metric.name: np.array([f[metric.name] for f in found]) for metric in self.own}


def limits_of(setup: Setup) -> dict[str, float]:
    """Metric -> largest value, of the run file's budget."""
    budget = setup.config.budget
    limits = {
        name: value
        for name, value in budget.model_dump(exclude={"compression"}).items()
        if value is not None
    }
    if budget.compression is not None:
        # A hair more: a compression that was computed from whole crossbars gives them back.
        limits["crossbars"] = int(setup.dense_crossbars / budget.compression * (1 + 1e-12))
    return limits


def formulate(setup: Setup, space: SearchSpace, costs: Costs) -> SearchProblem:
    """The search problem, without sensitivity: every choice counts as free of loss.

    Costs that are sums over layers are taken from the cost table. Those that are not (the pipelined
    latency, buffers of a size for all) get the additive costs that fit whole designs best.
    """
    limits = limits_of(setup)
    objectives = tuple(setup.config.objectives)
    parts = [part for objective in objectives for part in parts_of(metric_of(objective))]
    wanted = {"crossbars", *limits, *parts}
    scores: dict[str, Scores] = {}
    constants: dict[str, float] = {}
    for name in METRICS:
        metric = METRICS[name]
        if name not in wanted or not metric.additive:
            continue
        columns = [space.group_sums(costs.table.by_layer(part)) for part in metric.additive]
        scores[name] = columns[0] if metric.exact else _added(columns)
        constants[name] = float(costs.table.constant[metric.additive[0]]) if metric.exact else 0.0
    problem = SearchProblem(
        space=space,
        sensitivity=[np.zeros(len(group)) for group in space.groups],
        costs=scores,
        limits=limits,
        objectives=objectives,
        constants=constants,
        model=costs,
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
    return _calibrated(problem, costs, setup.config.seed)


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


def with_sensitivity(problem: SearchProblem, sensitivity: Table) -> SearchProblem:
    """The problem with what its choices lose."""
    return replace(problem, sensitivity=problem.space.group_sums(sensitivity))


def _added(columns: Sequence[Sequence[npt.NDArray[np.generic]]]) -> list[FloatArray]:
    """The sum of additive costs, each relative to its mean total where there are several."""
    sizes = [
        sum(float(np.mean(np.asarray(score, dtype=float))) for score in column) or 1.0
        for column in columns
    ]
    if len(columns) == 1:
        sizes = [1.0]
    return [
        np.sum([np.asarray(s, dtype=float) / size for s, size in zip(group, sizes, strict=True)], 0)
        for group in zip(*columns, strict=True)
    ]


def _slowest(space: SearchSpace, times: Mapping[str, npt.NDArray[np.generic]]) -> list[FloatArray]:
    """Per group and choice the time (ns) of its slowest layer."""
    return [
        np.max([np.asarray(times[layer], dtype=float) for layer in group.layers], axis=0)
        for group in space.groups
    ]


def _calibrated(problem: SearchProblem, costs: Costs, seed: int) -> SearchProblem:
    """The problem with its inexact additive costs fitted to the costs of whole designs.

    In rounds: what was fitted says which designs a search will look at, and those are fitted next.
    """
    prior = {
        name: [np.asarray(score, dtype=float) for score in scores]
        for name, scores in problem.costs.items()
        if not METRICS[name].exact
    }
    if not prior:
        return problem
    rng = np.random.default_rng([seed, 41])
    rows: dict[Row, None] = {}
    errors: dict[str, float] = {}
    for number in range(1, _ROUNDS + 1):
        _add_typical_rows(rows, _CALIBRATION_DESIGNS * number // _ROUNDS, problem, costs, rng)
        index = _at_least_three(rows)
        real = costs(index)
        scores, constants = dict(problem.costs), dict(problem.constants)
        for name, known in prior.items():
            values = np.asarray(real[name], dtype=float)
            model = fit_additive(index, values, known)
            scores[name], constants[name] = model.scores, model.constant
            errors[name] = model.error
        problem = replace(problem, costs=scores, constants=constants)
    for name, error in errors.items():
        log.info(
            "%s: additive costs fitted to %d whole designs explain %.0f %% of the variance of "
            "designs that are left out",
            name, len(rows), 100 * max(0.0, 1 - error**2),
        )  # fmt: skip
    return problem


def _add_typical_rows(
    rows: dict[Row, None],
    count: int,
    problem: SearchProblem,
    costs: Costs,
    rng: np.random.Generator,
) -> None:
    """Add designs like those that a search looks at (small, cheap, or precise) up to a count.

    Each is the exact solution of random weights of stored bits and additive costs, with noise on
    every choice, within a random share of the crossbars that the limits allow.
    """
    bits = problem.space.group_sums(costs.table.by_layer("weight_bits"))
    precision = [-np.log(np.maximum(np.asarray(b, dtype=float), 1.0)) for b in bits]
    terms = [precision, *([np.asarray(s, float) for s in c] for c in problem.costs.values())]
    spans = [sum(float(np.ptp(score)) for score in term) or 1.0 for term in terms]
    for _ in range(4 * _CALIBRATION_DESIGNS):
        if len(rows) >= count:
            return
        weights = rng.dirichlet(np.full(len(terms), 0.5)) / spans
        losses = []
        for group in zip(*terms, strict=True):
            scores = sum(
                (weight * score for weight, score in zip(weights, group, strict=True)),
                np.zeros(len(group[0])),
            )
            spread = float(np.ptp(scores)) or 1.0
            losses.append(scores + 0.5 * spread * rng.random(len(scores)))
        rows[_within(problem, losses, rng)] = None


def _at_least_three(rows: Iterable[Row]) -> IntArray:
    """(designs, groups) rows as an array, repeated where a space has one or two designs."""
    found = list(rows)
    return np.array(found + [found[0]] * (3 - len(found)), dtype=np.int64)


def _within(problem: SearchProblem, losses: Sequence[FloatArray], rng: np.random.Generator) -> Row:
    """The row of least loss within a random share of the whole-numbered limits' slack."""
    for name, limit in problem.additive_limits.items():
        if METRICS[name].exact and limit.whole:
            least = sum(float(np.min(score)) for score in limit.scores)
            share = rng.random() ** 0.5
            bound = int(least + share * max(0.0, limit.bound - least))
            return minimise(losses, [replace(limit, bound=bound)]).row
    return minimise(losses, []).row


def check_reachable(setup: Setup, problem: SearchProblem) -> None:
    """Check that some design keeps every limit.

    Raises:
        UnreachableBudget: none does, or none could be found.
    """
    try:
        _ = problem.roomiest
    except (Infeasible, Unreachable):
        raise _unreachable(setup, problem) from None


class UnreachableBudget(InputError):
    """No design of the space keeps the budget.

    Attributes:
        design: the design that comes nearest.
    """

    design: Design | None = None


def _unreachable(setup: Setup, problem: SearchProblem) -> UnreachableBudget:
    row, nearest, least = _extremes(problem)
    space, dense = problem.space.name, setup.dense_crossbars
    broken = [name for name in problem.limits if nearest[name] > problem.limits[name]]
    alone = [name for name in problem.limits if least[name] > problem.limits[name]]
    name = next(iter(alone or broken or problem.limits))
    field = f"budget.{name}"
    if name == "crossbars" and setup.config.budget.compression is not None:
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
        for scores in (problem.costs[name], _added(raw)):
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
