"""One choice per group under a budget, solved exactly: the multiple-choice knapsack.

Dynamic programming over integer weights: ``best[b]`` is the least loss of the groups so far with
total weight at most b. One pass answers every budget up to the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from epim_nas.errors import EpimError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Infeasible(EpimError):
    """No row keeps the budget.

    Attributes:
        least: the smallest weight that any row has.
    """

    def __init__(self, least: int, budget: int) -> None:
        super().__init__(f"the budget {budget} is below the least possible weight {least}")
        self.least = least
        self.budget = budget

    def __reduce__(self) -> tuple[type[Infeasible], tuple[int, int]]:
        return type(self), (self.least, self.budget)


@dataclass(frozen=True)
class Solution:
    """A row of choice indices with its totals; it is optimal for its weight.

    Attributes:
        row: choice index per group.
        loss: sum of the chosen losses.
        weight: sum of the chosen weights.
    """

    row: tuple[int, ...]
    loss: float
    weight: int


def least_weight(weights: Sequence[IntArray]) -> int:
    """The smallest total weight of any row."""
    return int(sum(int(np.min(weight)) for weight in weights))


class Knapsack:
    """The solved table of a multiple-choice knapsack; every budget up to ``budget`` is a look-up.

    Args:
        losses: per group the loss of each choice; any finite numbers.
        weights: per group the integer weight (crossbars) of each choice, not negative.
        budget: the largest budget that will be asked for.

    Raises:
        Infeasible: even the lightest row is heavier than ``budget``.
    """

    def __init__(
        self, losses: Sequence[FloatArray], weights: Sequence[IntArray], budget: int
    ) -> None:
        self._weights = [np.asarray(weight, dtype=np.int64) for weight in weights]
        self._losses = [np.asarray(loss, dtype=np.float64) for loss in losses]
        least = least_weight(self._weights)
        if least > budget:
            raise Infeasible(least, budget)
        self.budget = int(budget)
        best = np.zeros(self.budget + 1)
        self._picks: list[npt.NDArray[np.int32]] = []
        for loss, weight in zip(self._losses, self._weights, strict=True):
            best, pick = _extend(best, loss, weight)
            self._picks.append(pick)
        self._best = best

    def solve(self, budget: int | None = None) -> Solution:
        """The row of least loss with a total weight of at most ``budget``.

        Raises:
            Infeasible: no row is that light.
        """
        left = self.budget if budget is None else int(budget)
        if left > self.budget:
            raise ValueError(f"the table was built up to {self.budget}, got {left}")
        if left < 0 or not np.isfinite(self._best[left]):
            raise Infeasible(least_weight(self._weights), left)
        row = []
        for pick, weight in zip(reversed(self._picks), reversed(self._weights), strict=True):
            choice = int(pick[left])
            row.append(choice)
            left -= int(weight[choice])
        row.reverse()
        return Solution(
            tuple(row),
            float(sum(loss[i] for loss, i in zip(self._losses, row, strict=True))),
            int(sum(weight[i] for weight, i in zip(self._weights, row, strict=True))),
        )

    def front(self) -> list[Solution]:
        """The solutions of every budget at which the least loss changes, lightest first."""
        finite = np.isfinite(self._best)
        changes = np.flatnonzero(finite & np.r_[True, self._best[1:] < self._best[:-1]])
        return [self.solve(int(budget)) for budget in changes]


def _extend(
    best: FloatArray, loss: FloatArray, weight: IntArray
) -> tuple[FloatArray, npt.NDArray[np.int32]]:
    """Add one group: new_best[b] = min over choices of best[b - weight] + loss."""
    extended = np.full_like(best, np.inf)
    pick = np.zeros(best.shape, dtype=np.int32)
    for choice in _useful(loss, weight):
        shift = int(weight[choice])
        if shift >= len(best):
            continue
        candidate = best[: len(best) - shift] + loss[choice]
        target = extended[shift:]
        better = candidate < target
        target[better] = candidate[better]
        pick[shift:][better] = choice
    return extended, pick


def _useful(loss: FloatArray, weight: IntArray) -> list[int]:
    """Choices on the staircase of weight and loss; no other can be in an optimal row."""
    order = np.lexsort((loss, weight))
    kept, lowest = [], np.inf
    for choice in order:
        if loss[choice] < lowest:
            kept.append(int(choice))
            lowest = float(loss[choice])
    return kept
