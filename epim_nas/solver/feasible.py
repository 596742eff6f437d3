"""Rows that keep all limits of a search problem: the best, the roomiest, and one near a given one.

Additive limits are the exact solver's. Where a limit is not additive, its additive stand-in is
tightened until a design keeps the real one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from epim_nas.solver.exact import (
    Certificate,
    Exact,
    Limit,
    Unreachable,
    excesses,
    minimise,
    total,
    totals,
)
from epim_nas.solver.knapsack import FloatArray, Infeasible, IntArray
from epim_nas.solver.problem import PIPELINED, SearchProblem
from epim_nas.space.space import Row

ROOMIEST = "the roomiest design"
"""Method of a certificate: the limits left the solver without an answer of its own."""

_ROUNDS = 30
"""Attempts to mend a row that keeps the additive limits and breaks a real one."""
_REPAIRS = 6
"""Attempts to mend a given row with tightened limits."""
_HALVINGS = 4
"""How often a limit that was tightened beyond reach is moved halfway back."""


class FeasibleSolver:
    """Finds rows of a problem that keep every limit.

    Args:
        problem: space, scores and limits.

    Attributes:
        problem: the same.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self.problem = problem

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
            if not self.problem.modelled or np.isfinite(cap):
                raise  # else it may be the stand-ins alone that nothing keeps
        if np.isfinite(cap):
            raise Unreachable("no row was found that keeps all limits and the cap")
        loss = total(losses, self.roomiest)
        bound = min(loss, bound)
        return Exact(self.roomiest, loss, Certificate(loss, bound, ROOMIEST))

    @cached_property
    def roomiest(self) -> Row:
        """A row that keeps every limit: of least sum of the additive costs relative to the limits.

        Raises:
            Infeasible: no row keeps the one limit that there is.
            Unreachable: no row keeps all limits.
        """
        losses = [np.zeros(len(group)) for group in self.problem.space.groups]
        for limit in self.problem.additive_limits.values():
            size = abs(limit.bound) or 1.0
            parts = [np.asarray(score, dtype=float) / size for score in limit.scores]
            losses = [loss + part for loss, part in zip(losses, parts, strict=True)]
        limits = list(self.problem.additive_limits.values())
        starts = [tuple(int(np.argmin(score)) for score in limit.scores) for limit in limits]
        try:
            solution, kept = self._solve_tightened(losses, np.inf)
            if kept:
                return solution.row
            starts.insert(0, solution.row)
        except (Infeasible, Unreachable):
            if not self.problem.modelled:
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
                for group, choices in enumerate(self.problem.space.groups)
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
        problem = self.problem
        real = problem.model(rows) if problem.model is not None and problem.modelled else {}
        over = np.zeros(len(rows))
        for name, limit in problem.additive_limits.items():
            if name in problem.modelled:
                values, bound = np.asarray(real[name], dtype=float), problem.limits[name]
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
        problem = self.problem
        limits = dict(problem.solver_limits)
        first = minimise(problem.capped(losses, cap), list(limits.values()))
        solution = first
        for _ in range(_ROUNDS):
            over = problem.real_excess(solution.row)
            if not any(value > 0 for value in over.values()):
                return solution, True
            cap = min(cap, problem.slowest(solution.row))
            tight, tight_cap = self._tightened(limits, over, cap, solution.row)
            for _ in range(_HALVINGS):
                try:
                    solution = minimise(problem.capped(losses, tight_cap), list(tight.values()))
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
        limits, cap = dict(self.problem.solver_limits), np.inf
        for _ in range(_REPAIRS):
            try:
                mended = self._repaired(row, limits, cap)
            except (Infeasible, Unreachable):
                break  # tightened beyond reach, or nothing keeps the limits
            over = self.problem.real_excess(mended)
            if not any(value > 0 for value in over.values()):
                return mended
            limits, cap = self._tightened(limits, over, cap, mended)
        try:
            return self._descended(row)
        except Unreachable:
            return self._least_sensitive

    @cached_property
    def _least_sensitive(self) -> Row:
        return self.solve(self.problem.sensitivity).row

    def _tightened(
        self, limits: Mapping[str, Limit], over: Mapping[str, float], cap: float, row: Row
    ) -> tuple[dict[str, Limit], float]:
        """Limits made smaller by what a row exceeds them, and a little more; likewise the cap."""
        if over.get(PIPELINED, 0.0) > 0:
            # Half of the way, in steps: the slowest layer is not all of the latency.
            allowed = self.problem.limits[PIPELINED]
            share = allowed / (allowed + over[PIPELINED])
            cap = min(cap, self.problem.slowest(row)) * min(share**0.5, 1 - 1e-9)
        return {
            name: Limit(limit.scores, limit.bound - 1.05 * max(0.0, over.get(name, 0.0)))
            for name, limit in limits.items()
        }, cap

    def _repaired(self, row: Row, limits: Mapping[str, Limit], cap: float) -> Row:
        """A row near ``row`` that keeps additive limits and the cap."""
        problem = self.problem
        kept = all(limit.excess(row) <= 0 for limit in limits.values())
        if kept and problem.slowest(row) <= cap:
            return row
        changed = problem.capped(self._change_losses(row), cap)
        if not all(np.isfinite(loss).any() for loss in changed):
            raise Unreachable("a layer has no choice as fast as the cap")
        if len(limits) > 1 or not problem.is_knapsack:
            allowed = problem.capped(problem.sensitivity, cap)
            start = tuple(int(np.argmin(loss)) for loss in changed)  # as it is, where it may be
            greedy = _greedy(start, allowed, list(limits.values()))
            if greedy is not None:
                return greedy
        return minimise(changed, list(limits.values())).row

    def _change_losses(self, row: Row) -> list[FloatArray]:
        """What every choice loses against a row's, plus more than all of it for any change."""
        more = self._spread + 1.0
        losses = []
        for score, index in zip(self.problem.sensitivity, row, strict=True):
            loss = score + (more - score[index])
            loss[index] = 0.0
            losses.append(loss)
        return losses

    @cached_property
    def _spread(self) -> float:
        """More than the sensitivities of two rows can differ."""
        return sum(float(np.ptp(score)) for score in self.problem.sensitivity)


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
