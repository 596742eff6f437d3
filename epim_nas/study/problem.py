"""The search problem: choices, additive scores, budget; what is feasible and how to mend a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from epim_nas.space.space import Row, SearchSpace
from epim_nas.study.knapsack import FloatArray, IntArray, Knapsack


@dataclass(frozen=True)
class SearchProblem:
    """A search space with its additive scores and its budget. All lists are per group.

    Attributes:
        space: the search space.
        crossbars: crossbars of each choice.
        sensitivity: expected loss (nats) of each choice.
        costs: metric (``latency_ns``, ``energy_nj``, ...) -> additive cost of each choice.
        budget: largest number of crossbars of a design.
    """

    space: SearchSpace
    crossbars: list[IntArray]
    sensitivity: list[FloatArray]
    costs: dict[str, list[FloatArray]]
    budget: int

    def total(self, scores: Sequence[FloatArray | IntArray], row: Sequence[int]) -> float:
        """The sum of a row's scores."""
        return float(sum(score[index] for score, index in zip(scores, row, strict=True)))

    def weight(self, row: Sequence[int]) -> int:
        """Crossbars of a row."""
        return int(self.total(self.crossbars, row))

    def is_feasible(self, row: Sequence[int]) -> bool:
        """Whether a row keeps the budget."""
        return self.weight(row) <= self.budget

    def repair(self, row: Sequence[int]) -> Row:
        """The feasible row that changes as few groups as possible, then loses the least.

        A feasible row is returned as it is. Exact: a knapsack in which leaving a group as it is
        costs nothing and every change costs more than all sensitivities together.

        Raises:
            Infeasible: no row of the space keeps the budget.
        """
        if self.is_feasible(row):
            return tuple(int(index) for index in row)
        spread = sum(float(np.ptp(score)) for score in self.sensitivity)
        change = spread + 1.0
        losses = []
        for score, index in zip(self.sensitivity, row, strict=True):
            loss = score - score[index] + change
            loss[index] = 0.0
            losses.append(loss)
        return Knapsack(losses, self.crossbars, self.budget).solve().row

    def scalarised(self, weights: dict[str, float]) -> list[FloatArray]:
        """Per group the weighted sum of scores.

        Args:
            weights: ``sensitivity`` or a metric of :attr:`costs` -> weight.
        """
        result = [np.zeros(len(score)) for score in self.sensitivity]
        for name, weight in weights.items():
            scores = self.sensitivity if name == "sensitivity" else self.costs[name]
            result = [sum_ + weight * score for sum_, score in zip(result, scores, strict=True)]
        return result


def exact_seeds(problem: SearchProblem, objectives: Sequence[str], count: int) -> list[Row]:
    """Provably optimal rows for a sweep over the trade-offs between the objectives.

    Each is the exact minimum of a weighted sum of sensitivity (which stands for accuracy) and the
    additive costs under the budget. The first row is the one of least sensitivity, the last one
    the cheapest in the last cost; between them the weights are swept over six decades, since
    losses grow exponentially where costs grow linearly, and ``count`` rows are kept evenly.

    Args:
        problem: the problem.
        objectives: objective names; ``accuracy`` and the costs.
        count: how many different rows at most.

    Raises:
        Infeasible: no row keeps the budget.
    """
    costs = [name for name in objectives if name in problem.costs]

    def solve(weights: dict[str, float]) -> Row:
        losses = problem.scalarised(weights)
        return Knapsack(losses, problem.crossbars, problem.budget).solve().row

    best = solve({"sensitivity": 1.0})
    rows: dict[Row, None] = {best: None}
    extremes = {name: solve({name: 1.0, "sensitivity": 1e-12}) for name in costs}
    scale = {"sensitivity": _range(problem.sensitivity, problem, best, extremes.values())}
    for name in costs:
        scale[name] = _range(problem.costs[name], problem, best, extremes.values())
    # Alternate between the costs and their equal mix, from gentle to strong.
    mixes = [[name] for name in costs] + ([costs] if len(costs) > 1 else [])
    steps = max(2, 2 * count)
    for strength in np.geomspace(1e-3, 1e3, steps):
        for mix in mixes:
            weights = {"sensitivity": 1.0 / scale["sensitivity"]}
            weights |= {name: strength / len(mix) / scale[name] for name in mix}
            rows[solve(weights)] = None
    for row in extremes.values():
        rows[row] = None
    return _evenly(list(rows), count)


def _range(
    scores: Sequence[FloatArray], problem: SearchProblem, best: Row, others: object
) -> float:
    totals = [problem.total(scores, row) for row in (best, *others)]  # type: ignore[misc]
    return max(max(totals) - min(totals), 1e-12)


def _evenly(rows: list[Row], count: int) -> list[Row]:
    """At most ``count`` of the rows, the first and the last among them, evenly spread."""
    if len(rows) <= count:
        return rows
    picks = np.unique(np.round(np.linspace(0, len(rows) - 1, count)).astype(int))
    return [rows[pick] for pick in picks]
