"""The search problem: choices, additive scores, limits, and what is feasible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from epim_nas.solver.exact import (
    Limit,
    Scores,
    excess,
    nearest,
    total,
)
from epim_nas.solver.knapsack import FloatArray, IntArray
from epim_nas.solver.metrics import METRICS, is_maximised, metric_of, parts_of
from epim_nas.space.space import Row, SearchSpace

Model = Callable[[IntArray], Mapping[str, npt.NDArray[np.generic]]]
"""(N, groups) rows -> metric -> (N,) values of whole designs."""

PIPELINED = "latency_ns"
"""The limit that a cap of the layers' times keeps."""

_REMEMBERED = 100_000
"""Designs whose real costs are remembered."""


@dataclass(frozen=True)
class StandIn:
    """Additive costs that are good near the least values of what they stand for.

    Attributes:
        costs: metric -> cost of each choice; infinite for choices of which it says nothing.
        followed: what to solve with after a row was its solution: costs that know more of what
            made this row slow. None where nothing is to be learned from a row.
    """

    costs: Mapping[str, list[FloatArray]]
    followed: Callable[[Row], StandIn] | None = None


@dataclass(frozen=True)
class SearchProblem:
    """A search space with its additive scores and its limits. All lists are per group.

    Attributes:
        space: the search space.
        sensitivity: expected loss (nats) of each choice.
        costs: metric -> additive cost of each choice; ``crossbars`` always, as whole numbers.
        limits: metric of ``costs`` -> its largest value.
        objectives: what is optimised (:mod:`~epim_nas.solver.metrics`).
        constants: metric -> what no choice changes; 0 where it is missing.
        model: costs of whole designs, for the limits that are not additive; None where all are.
        times: time (ns) that the slowest layer of a group takes with each choice, over all
            positions; None where it is not known. A pipeline waits for its slowest layer, so
            that its latency is far from a sum.
        find_standins: finds :attr:`standins`, where there are any.
        seed: seed of the designs that additive costs are fitted to.
    """

    space: SearchSpace
    sensitivity: list[FloatArray]
    costs: Mapping[str, Scores]
    limits: Mapping[str, float]
    objectives: tuple[str, ...] = ("accuracy", "latency_ns", "energy_nj")
    constants: Mapping[str, float] = field(default_factory=dict)
    model: Model | None = None
    times: list[FloatArray] | None = None
    find_standins: Callable[[], Sequence[StandIn]] | None = None
    seed: int = 0

    def with_sensitivity(self, by_layer: Mapping[str, npt.NDArray[np.generic]]) -> SearchProblem:
        """The problem with what the choices of every layer lose (nats)."""
        return replace(self, sensitivity=self.space.group_sums(by_layer))

    @cached_property
    def standins(self) -> tuple[StandIn, ...]:
        """Further additive costs to solve with.

        The fitted :attr:`costs` are for all designs, and err most near the least values.
        """
        return () if self.find_standins is None else tuple(self.find_standins())

    @cached_property
    def crossbars(self) -> list[IntArray]:
        """Crossbars of each choice."""
        return [np.asarray(column, dtype=np.int64) for column in self.costs["crossbars"]]

    @cached_property
    def objective_costs(self) -> dict[str, list[FloatArray]]:
        """Objective, or factor of one -> additive score that falls where the objective gets better.

        Objectives that are measured on images, or that nothing additive stands for, have none.
        """
        found: dict[str, list[FloatArray]] = {}
        for objective in self.objectives:
            name = metric_of(objective)
            # A metric like compression is maximised, and what stands for it falls as it grows.
            sign = 1.0 if is_maximised(objective) == METRICS[name].maximise else -1.0
            parts = parts_of(name)
            for part in parts:
                if part in self.costs:
                    key = part if len(parts) > 1 else objective
                    scores = [sign * np.asarray(s, dtype=float) for s in self.costs[part]]
                    found.setdefault(key, scores)
        return found

    @cached_property
    def falling(self) -> frozenset[str]:
        """Metrics, among the objectives and their factors, of which only less is better.

        Those alone have stand-ins: they are good near the least values.
        """
        less: set[str] = set()
        more: set[str] = set()
        for objective in self.objectives:
            wanted = more if is_maximised(objective) else less
            wanted.update(parts_of(metric_of(objective)))
        return frozenset(less - more)

    @cached_property
    def additive_limits(self) -> dict[str, Limit]:
        """Metric -> the limit of its additive cost, without the constant part."""
        return {
            name: Limit(self.costs[name], bound - self.constants.get(name, 0.0))
            for name, bound in self.limits.items()
        }

    @cached_property
    def solver_limits(self) -> dict[str, Limit]:
        """The limits that the exact solver has; a pipeline's latency is kept by a cap of times."""
        capped = PIPELINED if self.times is not None else ""
        return {name: limit for name, limit in self.additive_limits.items() if name != capped}

    @cached_property
    def is_knapsack(self) -> bool:
        """Whether dynamic programming does: one additive limit, of not too large whole numbers."""
        limits = list(self.solver_limits.values())
        return len(limits) == 1 and limits[0].tabular

    def slowest(self, row: Sequence[int]) -> float:
        """Time (ns) of the slowest layer of a row; infinite where times are not known."""
        if self.times is None:
            return np.inf
        return max(float(time[index]) for time, index in zip(self.times, row, strict=True))

    def capped(self, losses: Sequence[FloatArray], cap: float) -> list[FloatArray]:
        """``losses``, infinite for choices with which a layer takes longer than ``cap`` (ns)."""
        if self.times is None or not np.isfinite(cap):
            return list(losses)
        return [np.where(t <= cap, s, np.inf) for s, t in zip(losses, self.times, strict=True)]

    def fastest(self) -> Row:
        """Every group's fastest choice, where times are known."""
        assert self.times is not None
        return tuple(int(np.argmin(time)) for time in self.times)

    @cached_property
    def modelled(self) -> tuple[str, ...]:
        """Limits that only the model of whole designs can check."""
        if self.model is None:
            return ()
        return tuple(name for name in self.limits if not METRICS[name].exact)

    @staticmethod
    def total(scores: Scores, row: Sequence[int]) -> float:
        """The sum of a row's scores."""
        return total(scores, row)

    def weight(self, row: Sequence[int]) -> int:
        """Crossbars of a row."""
        return int(self.total(self.costs["crossbars"], row))

    def metrics(self, row: Sequence[int]) -> dict[str, float]:
        """Everything that is known of a design without measuring it."""
        if self.model is None:
            costs = {
                name: self.total(scores, row) + self.constants.get(name, 0.0)
                for name, scores in self.costs.items()
            }
        else:
            totals = self.model(np.array([row], dtype=np.int64))
            costs = {name: float(values[0]) for name, values in totals.items()}
        return costs | {"sensitivity": self.total(self.sensitivity, row)}

    def violations(self, row: Sequence[int]) -> dict[str, float]:
        """Metric of a limit -> the design's value minus the limit; at most 0 where it is kept."""
        over = {name: limit.excess(row) for name, limit in self.additive_limits.items()}
        return over | self.real_excess(tuple(int(index) for index in row))

    def is_feasible(self, row: Sequence[int]) -> bool:
        """Whether a row keeps every limit."""
        return all(over <= 0 for over in self.violations(row).values())

    @cached_property
    def _known(self) -> dict[Row, dict[str, float]]:
        return {}

    def _real(self, row: Row) -> dict[str, float]:
        """The modelled limits' metrics of a whole design; remembered."""
        found = self._known.get(row)
        if found is None:
            assert self.model is not None
            totals = self.model(np.array([row]))
            found = {name: float(totals[name][0]) for name in self.modelled}
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[row] = found
        return found

    def real_excess(self, row: Row) -> dict[str, float]:
        """Modelled limit -> the whole design's value minus the limit."""
        if not self.modelled:
            return {}
        real = self._real(row)
        return {name: excess(real[name], self.limits[name]) for name in self.modelled}

    def scalarised(
        self, weights: Mapping[str, float], costs: Mapping[str, list[FloatArray]] | None = None
    ) -> list[FloatArray]:
        """Per group the weighted sum of scores.

        Args:
            weights: ``sensitivity`` or a key of :attr:`objective_costs` -> weight.
            costs: scores to take instead of those of :attr:`objective_costs`.
        """
        costs = self.objective_costs | dict(costs or {})
        result = [np.zeros(len(score)) for score in self.sensitivity]
        for name, weight in weights.items():
            scores = self.sensitivity if name == "sensitivity" else costs[name]
            result = [sum_ + weight * score for sum_, score in zip(result, scores, strict=True)]
        return result

    @cached_property
    def nearest(self) -> Row:
        """The row whose largest excess, relative to its additive limit, is smallest."""
        return nearest(list(self.additive_limits.values()))
