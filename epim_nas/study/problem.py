"""The search problem: choices, additive scores, limits; what is feasible and how to mend a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from epim_nas.space.space import Row, SearchSpace
from epim_nas.study.exact import (
    Certificate,
    Exact,
    Limit,
    Scores,
    Unreachable,
    excess,
    excesses,
    minimise,
    nearest,
    total,
    totals,
)
from epim_nas.study.knapsack import FloatArray, Infeasible, IntArray
from epim_nas.study.metrics import METRICS, is_maximised, metric_of, parts_of

PIPELINED = "latency_ns"
"""The limit that a cap of the layers' times keeps."""

Model = Callable[[IntArray], Mapping[str, npt.NDArray[np.generic]]]
"""(N, groups) rows -> metric -> (N,) values of whole designs."""

_ROUNDS = 30
"""Attempts to mend a row that keeps the additive limits and breaks a real one."""
_REPAIRS = 6
"""Attempts to mend a given row with tightened limits."""
ROOMIEST = "the roomiest design"
"""Method of a certificate: the limits left the solver without an answer of its own."""
_HALVINGS = 4
"""How often a limit that was tightened beyond reach is moved halfway back."""
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
        objectives: what is optimised (:mod:`~epim_nas.study.metrics`).
        constants: metric -> what no choice changes; 0 where it is missing.
        model: costs of whole designs, for the limits that are not additive; None where all are.
        times: time (ns) that the slowest layer of a group takes with each choice, over all
            positions; None where it is not known. A pipeline waits for its slowest layer, so
            that its latency is far from a sum.
        find_standins: finds :attr:`standins`, where there are any.
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
        return over | self._real_excess(tuple(int(index) for index in row))

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

    def solve(self, losses: Sequence[FloatArray], cap: float = np.inf) -> Exact:
        """The row of least additive loss that keeps every limit.

        Where a limit is not additive, its additive stand-in (of the pipelined latency: the cap of
        a layer's time) is tightened until the real one is kept, and the certificate is about the
        tightened limits. If that finds nothing, the answer is :attr:`roomiest`, with the gap to
        the loss without tightening.

        Args:
            losses: per group the loss of each choice.
            cap: longest time (ns) of a layer.

        Raises:
            Infeasible: no row keeps the one limit that there is.
            Unreachable: no row keeps all limits.
        """
        bound = -np.inf
        try:
            solution, kept = self._solve_tightened(losses, cap)
            if kept:
                return solution
            bound = solution.certificate.bound
        except (Infeasible, Unreachable):
            if not self.modelled or np.isfinite(cap):
                raise  # else it may be the stand-ins alone that nothing keeps
        if np.isfinite(cap):
            raise Unreachable("no row was found that keeps all limits and the cap")
        loss = self.total(losses, self.roomiest)
        bound = min(loss, bound)
        return Exact(self.roomiest, loss, Certificate(loss, bound, ROOMIEST))

    @cached_property
    def roomiest(self) -> Row:
        """A row that keeps every limit: of least sum of the additive costs relative to the limits.

        Raises:
            Infeasible: no row keeps the one limit that there is.
            Unreachable: no row keeps all limits.
        """
        losses = [np.zeros(len(group)) for group in self.space.groups]
        for limit in self.additive_limits.values():
            size = abs(limit.bound) or 1.0
            parts = [np.asarray(score, dtype=float) / size for score in limit.scores]
            losses = [loss + part for loss, part in zip(losses, parts, strict=True)]
        limits = list(self.additive_limits.values())
        starts = [tuple(int(np.argmin(score)) for score in limit.scores) for limit in limits]
        try:
            solution, kept = self._solve_tightened(losses, np.inf)
            if kept:
                return solution.row
            starts.insert(0, solution.row)
        except (Infeasible, Unreachable):
            if not self.modelled:
                raise
        for start in starts:
            try:
                return self._descended(start)
            except Unreachable:
                continue
        raise Unreachable("no row was found that keeps all limits")

    def _descended(self, row: Row) -> Row:
        """A row that keeps every real limit, by always changing the group that helps most.

        Raises:
            Unreachable: the descent ends at a row that no single change brings nearer.
        """
        over = float(self._relative_excess(np.array([row]))[0])
        while over > 0:
            near = np.array([
                [*row[:group], index, *row[group + 1 :]]
                for group, choices in enumerate(self.space.groups)
                for index in range(len(choices))
            ])  # fmt: skip
            excesses = self._relative_excess(near)
            best = int(np.argmin(excesses))
            if excesses[best] >= over:
                raise Unreachable("no row was found that keeps all limits")
            over, row = float(excesses[best]), tuple(near[best].tolist())
        return row

    def _relative_excess(self, rows: IntArray) -> FloatArray:
        """(rows,) by how much whole designs exceed the limits, relative to each, summed."""
        real = self.model(rows) if self.model is not None and self.modelled else {}
        over = np.zeros(len(rows))
        for name, limit in self.additive_limits.items():
            if name in self.modelled:
                values, bound = np.asarray(real[name], dtype=float), self.limits[name]
            else:
                values, bound = totals(limit.scores, rows), limit.bound
            over += np.maximum(0.0, excesses(values, bound)) / (abs(bound) or 1.0)
        return over

    def _solve_tightened(self, losses: Sequence[FloatArray], cap: float) -> tuple[Exact, bool]:
        """The row of least loss under limits that are tightened until the real ones are kept.

        Returns:
            The solution, and True; or the one without tightening, and False.

        Raises:
            Infeasible: no row keeps the one limit that there is, even without tightening.
            Unreachable: no row keeps all limits, likewise.
        """
        limits = dict(self.solver_limits)
        first = minimise(self.capped(losses, cap), list(limits.values()))
        solution = first
        for _ in range(_ROUNDS):
            over = self._real_excess(solution.row)
            if not any(value > 0 for value in over.values()):
                return solution, True
            cap = min(cap, self.slowest(solution.row))
            tight, tight_cap = self._tightened(limits, over, cap, solution.row)
            for _ in range(_HALVINGS):
                try:
                    solution = minimise(self.capped(losses, tight_cap), list(tight.values()))
                    break
                except (Infeasible, Unreachable):
                    tight = {
                        name: replace(limit, bound=(limit.bound + limits[name].bound) / 2)
                        for name, limit in tight.items()
                    }
                    tight_cap = (tight_cap + cap) / 2
            else:
                break
            limits, cap = tight, tight_cap
        return first, False

    def repair(self, row: Sequence[int]) -> Row:
        """A feasible row near ``row``; a feasible one is returned as it is.

        With crossbars as the only limit it is exact: as few groups as possible are changed, and
        then the least is lost, by a knapsack in which leaving a group as it is costs nothing and
        every change costs more than all sensitivities together. With several limits, groups are
        changed one after the other, each time where the excess falls most for what is lost.

        Raises:
            Infeasible: no row of the space keeps the limit.
            Unreachable: likewise with several limits.
        """
        row = tuple(int(index) for index in row)
        limits, cap = dict(self.solver_limits), np.inf
        for _ in range(_REPAIRS):
            try:
                mended = self._repaired(row, limits, cap)
            except (Infeasible, Unreachable):
                break  # tightened beyond reach, or nothing keeps the limits
            over = self._real_excess(mended)
            if not any(value > 0 for value in over.values()):
                return mended
            limits, cap = self._tightened(limits, over, cap, mended)
        try:
            return self._descended(row)
        except Unreachable:
            return self._least_sensitive

    @cached_property
    def _least_sensitive(self) -> Row:
        return self.solve(self.sensitivity).row

    def _tightened(
        self, limits: Mapping[str, Limit], over: Mapping[str, float], cap: float, row: Row
    ) -> tuple[dict[str, Limit], float]:
        """Limits made smaller by what a row exceeds them, and a little more; likewise the cap."""
        if over.get(PIPELINED, 0.0) > 0:
            # Half of the way, in steps: the slowest layer is not all of the latency.
            share = self.limits[PIPELINED] / (self.limits[PIPELINED] + over[PIPELINED])
            cap = min(cap, self.slowest(row)) * min(share**0.5, 1 - 1e-9)
        return {
            name: Limit(limit.scores, limit.bound - 1.05 * max(0.0, over.get(name, 0.0)))
            for name, limit in limits.items()
        }, cap

    def _real_excess(self, row: Row) -> dict[str, float]:
        """Modelled limit -> the whole design's value minus the limit."""
        if not self.modelled:
            return {}
        real = self._real(row)
        return {name: excess(real[name], self.limits[name]) for name in self.modelled}

    def _repaired(self, row: Row, limits: Mapping[str, Limit], cap: float) -> Row:
        """A row near ``row`` that keeps additive limits and the cap."""
        if self.slowest(row) <= cap and all(limit.excess(row) <= 0 for limit in limits.values()):
            return row
        changed = self.capped(self._change_losses(row), cap)
        if not all(np.isfinite(loss).any() for loss in changed):
            raise Unreachable("a layer has no choice as fast as the cap")
        if len(limits) > 1 or not self.is_knapsack:
            allowed = self.capped(self.sensitivity, cap)
            start = tuple(int(np.argmin(loss)) for loss in changed)  # as it is, where it may be
            greedy = _greedy(start, allowed, list(limits.values()))
            if greedy is not None:
                return greedy
        return minimise(changed, list(limits.values())).row

    def _change_losses(self, row: Row) -> list[FloatArray]:
        """What every choice loses against a row's, plus more than all of it for any change."""
        more = self._spread + 1.0
        losses = []
        for score, index in zip(self.sensitivity, row, strict=True):
            loss = score + (more - score[index])
            loss[index] = 0.0
            losses.append(loss)
        return losses

    @cached_property
    def _spread(self) -> float:
        """More than the sensitivities of two rows can differ."""
        return sum(float(np.ptp(score)) for score in self.sensitivity)

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


def _greedy(row: Row, sensitivity: Sequence[FloatArray], limits: Sequence[Limit]) -> Row | None:
    """Change one group after the other until additive limits are kept; None where it is stuck.

    Each change is the one whose fall in excess, summed over the limits and relative to each, is
    largest for the sensitivity that it adds.
    """
    current = list(row)
    groups = range(len(row))
    totals = np.array([total(limit.scores, row) for limit in limits])
    bounds = np.array([limit.bound for limit in limits])
    scale = np.where(bounds == 0, 1.0, np.abs(bounds))
    costs = [
        np.stack([np.asarray(limit.scores[group], dtype=float) for limit in limits])
        for group in groups
    ]
    spreads = [np.ptp(score[np.isfinite(score)]) for score in sensitivity]
    typical = max(1e-12, float(np.mean(spreads)))
    for _ in range(4 * len(row)):
        over = np.maximum(totals - bounds, 0) / scale
        if not over.any():
            return tuple(current)
        best, change = 0.0, None
        for group in groups:
            delta = costs[group] - costs[group][:, current[group], None]
            after = np.maximum(totals[:, None] + delta - bounds[:, None], 0) / scale[:, None]
            fall = over.sum() - after.sum(axis=0)
            lost = np.maximum(sensitivity[group] - sensitivity[group][current[group]], 0)
            gain = fall / (lost + 1e-3 * typical)
            index = int(np.argmax(gain))
            if gain[index] > best:
                best, change = float(gain[index]), (group, index)
        if change is None:
            return None
        group, index = change
        totals = totals + costs[group][:, index] - costs[group][:, current[group]]
        current[group] = index
    return None
