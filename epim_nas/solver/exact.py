"""The least additive loss under any number of additive limits, with a certificate.

One limit of whole numbers (crossbars) is a multiple-choice knapsack, solved by dynamic programming
in a millisecond. Several limits make a 0/1 program, solved by branch and cut (HiGHS, by
``scipy.optimize.milp``): one variable a choice, one choice a group, one row a limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from epim_nas.errors import EpimError
from epim_nas.solver.knapsack import FloatArray, Infeasible, IntArray, Knapsack, Solution

Scores = Sequence[FloatArray | IntArray]
"""Per group one number for each choice."""

_TOLERANCE = 1e-9
"""Relative gap below which a solution counts as optimal."""
_MOST_CELLS = 2**24
"""Larger tables (a budget of bits, say) take longer than an integer program."""
_ROUNDING = 1e-9
"""An excess below this share of a limit is rounding."""
_LARGEST = 1e4
"""What the largest loss is scaled to: HiGHS ends at a gap of 1e-6, whatever the scale (its
``mip_abs_gap``, which SciPy cannot set), so that losses of about 1 leave gaps of 1e-7."""
_SLACK = 2e-6
"""HiGHS may exceed a limit by 1e-6; a limit that was exceeded is tightened by this share."""


class Unreachable(EpimError):
    """No row keeps all limits."""


def total(scores: Scores, row: Sequence[int]) -> float:
    """The sum of a row's scores."""
    return float(sum(score[index] for score, index in zip(scores, row, strict=True)))


def totals(scores: Scores, rows: npt.ArrayLike) -> FloatArray:
    """(rows,) sums of many rows' scores."""
    starts = np.cumsum([0, *map(len, scores[:-1])])
    picked = np.concatenate(scores)[np.asarray(rows, dtype=np.int64) + starts]
    sums: FloatArray = picked.sum(axis=1, dtype=np.float64)
    return sums


def excess(value: float, bound: float) -> float:
    """``value - bound``, where an excess that is only rounding counts as none."""
    return float(excesses(np.array([value], dtype=float), bound)[0])


def excesses(values: FloatArray, bound: float) -> FloatArray:
    """:func:`excess` of each of some values."""
    over = values - bound
    return np.where((over > 0) & (over <= _ROUNDING * abs(bound)), 0.0, over)


@dataclass(frozen=True)
class Limit:
    """An upper bound of an additive cost.

    Attributes:
        scores: per group the cost of each choice.
        bound: largest sum of the chosen costs.
    """

    scores: Scores
    bound: float

    @cached_property
    def whole(self) -> bool:
        """Whether all costs are whole numbers, not negative."""
        return all(
            np.issubdtype(np.asarray(score).dtype, np.integer) and np.min(score) >= 0
            for score in self.scores
        )

    @cached_property
    def unit(self) -> int:
        """The greatest whole number of which all costs are multiples."""
        return int(np.gcd.reduce(np.concatenate(self.scores).astype(np.int64))) or 1

    @cached_property
    def weights(self) -> list[IntArray]:
        """The costs as whole numbers, in units."""
        return [np.asarray(score, dtype=np.int64) // self.unit for score in self.scores]

    @cached_property
    def tabular(self) -> bool:
        """Whether dynamic programming solves it: whole costs, and a table that is not too large."""
        if not self.whole:
            return False
        heaviest = sum(float(np.max(score)) for score in self.scores)
        cells = len(self.scores) * max(0.0, min(self.bound, heaviest)) / self.unit
        return cells <= _MOST_CELLS

    def excess(self, row: Sequence[int]) -> float:
        """A row's cost minus the bound; at most 0 where the limit is kept."""
        return excess(total(self.scores, row), self.bound)


@dataclass(frozen=True)
class Certificate:
    """What is proven about a solution.

    Attributes:
        loss: loss of the solution.
        bound: no row that keeps the limits has a smaller loss than this.
        method: how it was proven.
    """

    loss: float
    bound: float
    method: str

    @property
    def gap(self) -> float:
        """How much better a row could be at most, relative to the solution's loss."""
        difference = max(0.0, self.loss - self.bound)
        return difference / abs(self.loss) if self.loss else difference

    @property
    def optimal(self) -> bool:
        """Whether nothing better exists, but for a billionth of the loss."""
        return self.gap <= _TOLERANCE

    def __str__(self) -> str:
        proven = "optimal" if self.optimal else f"within {100 * self.gap:.2g} % of the optimum"
        return f"{proven} ({self.method})"


@dataclass(frozen=True)
class Exact:
    """A row with the proof of how good it is.

    Attributes:
        row: choice index per group.
        loss: sum of the chosen losses.
        certificate: what is proven.
    """

    row: tuple[int, ...]
    loss: float
    certificate: Certificate


def minimise(losses: Sequence[FloatArray], limits: Sequence[Limit], seconds: float = 30.0) -> Exact:
    """The row of least loss that keeps every limit.

    Args:
        losses: per group the loss of each choice; infinite where it must not be chosen.
        limits: the limits; none is allowed.
        seconds: time for several limits. If it is over, the best row so far is returned, and its
            certificate has the gap that is proven by then.

    Raises:
        Infeasible: no row keeps the limit, where there is one of whole numbers.
        Unreachable: no row keeps the limits, where there are several; or none was found in time.
    """
    if not limits:
        row = tuple(int(np.argmin(loss)) for loss in losses)
        loss = total(losses, row)
        if not np.isfinite(loss):
            raise Unreachable("a group has no choice that may be taken")
        return Exact(row, loss, Certificate(loss, loss, "each group's best choice"))
    if len(limits) == 1 and limits[0].tabular:
        return _certified(_knapsack(losses, limits[0]).solve())
    return _integer_program(losses, limits, seconds)


def front(losses: Sequence[FloatArray], limit: Limit) -> list[Exact]:
    """The optima of every bound of one whole-numbered limit, by one pass; lightest first."""
    return [_certified(solution) for solution in _knapsack(losses, limit).front()]


def _knapsack(losses: Sequence[FloatArray], limit: Limit) -> Knapsack:
    most = int(min(limit.bound, np.iinfo(np.int64).max // 2))
    try:
        return Knapsack(losses, limit.weights, most // limit.unit)
    except Infeasible as error:
        raise Infeasible(error.least * limit.unit, most) from None


def _certified(solution: Solution) -> Exact:
    certificate = Certificate(solution.loss, solution.loss, "dynamic programming")
    return Exact(solution.row, solution.loss, certificate)


def _integer_program(
    losses: Sequence[FloatArray], limits: Sequence[Limit], seconds: float
) -> Exact:
    kept = [
        useful(loss, [limit.scores[group] for limit in limits]) for group, loss in enumerate(losses)
    ]
    if not all(len(choices) for choices in kept):
        raise Unreachable("a group has no choice that may be taken")
    bounds = [limit.bound for limit in limits]
    for _ in range(5):
        result, row = _solve(losses, limits, bounds, kept, seconds)
        over = [limit.excess(row) > 0 for limit in limits]
        if not any(over):
            loss = total(losses, row)
            return Exact(row, loss, Certificate(loss, min(result, loss), "integer program"))
        bounds = [
            bound - _SLACK * abs(limit.bound) if exceeded else bound
            for bound, exceeded, limit in zip(bounds, over, limits, strict=True)
        ]
    raise Unreachable("no row keeps all limits exactly")


def _solve(
    losses: Sequence[FloatArray],
    limits: Sequence[Limit],
    bounds: Sequence[float],
    kept: Sequence[IntArray],
    seconds: float,
) -> tuple[float, tuple[int, ...]]:
    """A lower bound of the loss, and the best row found."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    # The solver's tolerances are absolute: limits are scaled to about 1, and losses to more.
    offset = sum(float(loss[choices].min()) for loss, choices in zip(losses, kept, strict=True))
    objective = np.concatenate(
        [loss[choices] - loss[choices].min() for loss, choices in zip(losses, kept, strict=True)]
    )
    scale = (float(objective.max()) or 1.0) / _LARGEST
    sizes = np.array([_size(bound) for bound in bounds])
    costs = np.stack([_joined(limit.scores, kept) for limit in limits]) / sizes[:, None]
    result = milp(
        objective / scale,
        constraints=[
            LinearConstraint(_one_each(kept), 1, 1),
            LinearConstraint(costs, -np.inf, np.array(bounds) / sizes),
        ],
        integrality=np.ones(len(objective)),
        bounds=Bounds(0, 1),
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise Unreachable(f"no row keeps all limits ({result.message})")
    lower = result.mip_dual_bound if result.mip_dual_bound is not None else -np.inf
    return float(lower) * scale + offset, _row(result.x, kept)


def nearest(limits: Sequence[Limit], seconds: float = 30.0) -> tuple[int, ...]:
    """The row that comes nearest to keeping all limits.

    Nearest is the one whose largest excess, relative to its limit, is smallest.

    Args:
        limits: the limits, at least one.
        seconds: time for several limits.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import hstack

    first = limits[0]
    smallest = tuple(int(np.argmin(score)) for score in first.scores)
    if len(limits) == 1:
        return smallest
    every = [np.arange(len(score)) for score in first.scores]
    columns = sum(len(choices) for choices in every)
    # The last variable is the largest excess: cost <= limit + excess |limit| for every limit.
    costs = np.stack([np.append(_joined(x.scores, every) / _size(x.bound), -1.0) for x in limits])
    result = milp(
        np.append(np.zeros(columns), 1.0),
        constraints=[
            LinearConstraint(hstack([_one_each(every), np.zeros((len(every), 1))]), 1, 1),
            LinearConstraint(costs, -np.inf, [x.bound / _size(x.bound) for x in limits]),
        ],
        integrality=np.append(np.ones(columns), 0),
        bounds=Bounds(np.append(np.zeros(columns), -np.inf), np.append(np.ones(columns), np.inf)),
        options={"time_limit": seconds, "mip_rel_gap": 1e-3},
    )
    return smallest if result.x is None else _row(result.x, every)


def _size(bound: float) -> float:
    return max(abs(bound), 1e-300)


def _joined(scores: Scores, kept: Sequence[IntArray]) -> FloatArray:
    """The scores of the kept choices of all groups, one after the other."""
    joined: FloatArray = np.concatenate(
        [
            np.asarray(score, dtype=float)[choices]
            for score, choices in zip(scores, kept, strict=True)
        ]
    )
    return joined


def _one_each(kept: Sequence[IntArray]) -> Any:
    """The sparse matrix whose product with the choices counts those of each group."""
    from scipy.sparse import csr_matrix

    groups = np.repeat(np.arange(len(kept)), [len(choices) for choices in kept])
    columns = np.arange(len(groups))
    return csr_matrix((np.ones(len(groups)), (groups, columns)), shape=(len(kept), len(groups)))


def _row(solution: FloatArray, kept: Sequence[IntArray]) -> tuple[int, ...]:
    """The chosen index of every group in a solution of the program."""
    ends = np.cumsum([len(choices) for choices in kept])
    return tuple(
        int(choices[np.argmax(solution[end - len(choices) : end])])
        for choices, end in zip(kept, ends, strict=True)
    )


def useful(loss: FloatArray, costs: Sequence[npt.ArrayLike]) -> IntArray:
    """Indices of the choices that no other beats in the loss and in every cost."""
    from epim_nas.solver.pareto import non_dominated

    allowed = np.flatnonzero(np.isfinite(loss))
    columns = [np.asarray(column, dtype=float)[allowed] for column in (loss, *costs)]
    table = np.stack(columns, axis=1)
    _, first = np.unique(table, axis=0, return_index=True)  # equal choices: one is enough
    mask = non_dominated(table[first], [False] * table.shape[1])
    return np.sort(allowed[first[mask]]).astype(np.int64)
