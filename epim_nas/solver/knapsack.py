"""One choice per group under a budget, solved exactly: the multiple-choice knapsack.

Dynamic programming over integer weights: ``best[b]`` is the least loss of the groups so far with
total weight at most b. One pass answers every budget up to the largest. The recurrence is compiled:
a search repairs thousands of rows with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from epim_nas.errors import EpimError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
T = TypeVar("T", np.float64, np.int64)


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
        losses: per group the loss of each choice; infinite where it must not be chosen.
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
        # No row is heavier than the heaviest: beyond it the table would repeat itself.
        heaviest = sum(int(weight.max()) for weight in self._weights)
        self.budget = int(budget)
        self._top = min(self.budget, heaviest)
        counts = np.array([len(loss) for loss in self._losses], dtype=np.int64)
        from epim_nas.solver.knapsack_table import fill  # Numba: not for those who only read

        self._best, self._picks = fill(
            _padded(self._losses, np.inf), _padded(self._weights, 0), counts, self._top
        )

    def solve(self, budget: int | None = None) -> Solution:
        """The row of least loss with a total weight of at most ``budget``.

        Raises:
            Infeasible: no row is that light.
        """
        left = self.budget if budget is None else int(budget)
        if left > self.budget:
            raise ValueError(f"the table was built up to {self.budget}, got {left}")
        left = min(left, self._top)
        if left < 0 or not np.isfinite(self._best[left]):
            raise Infeasible(least_weight(self._weights), left)
        row = []
        for pick, weight in zip(self._picks[::-1], reversed(self._weights), strict=True):
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


def _padded(columns: Sequence[npt.NDArray[T]], fill: float) -> npt.NDArray[T]:
    """(groups, most choices)."""
    width = max((len(column) for column in columns), default=0)
    table = np.full((len(columns), width), fill, dtype=columns[0].dtype)
    for row, column in zip(table, columns, strict=True):
        row[: len(column)] = column
    return table
