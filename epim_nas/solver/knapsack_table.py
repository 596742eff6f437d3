"""The recurrence of the multiple-choice knapsack, compiled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from epim_nas.hardware.numba_loops import compiled

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@compiled
def fill(
    losses: FloatArray, weights: IntArray, counts: IntArray, budget: int
) -> tuple[FloatArray, npt.NDArray[np.int32]]:
    """The last line of the table, and the choice of every group at every budget.

    new_best[b] = min over choices of best[b - weight] + loss. Choices that another one beats in
    weight and loss are left out: they are in no optimal row that has to be found.

    Args:
        losses: (groups, choices), padded.
        weights: (groups, choices), padded.
        counts: (groups) choices of every group.
        budget: the largest budget.

    Returns:
        (budget + 1) least losses, infinite where no row is that light, and (groups, budget + 1).
    """
    groups = len(counts)
    best = np.zeros(budget + 1)
    picks = np.zeros((groups, budget + 1), dtype=np.int32)
    for group in range(groups):
        extended = np.full(budget + 1, np.inf)
        for choice in range(counts[group]):
            loss, weight = losses[group, choice], weights[group, choice]
            beaten = weight > budget
            for other in range(counts[group]):
                cheaper = weights[group, other] - weight
                better = losses[group, other] - loss
                equal = cheaper == 0 and better == 0
                if cheaper <= 0 and better <= 0 and (not equal or other < choice):
                    beaten = True
                    break
            if beaten:
                continue
            for left in range(weight, budget + 1):
                value = best[left - weight] + loss
                if value < extended[left]:
                    extended[left] = value
                    picks[group, left] = choice
        best = extended
    return best, picks
