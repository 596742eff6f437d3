"""The default strategy's proposals: exact solutions of corrected scores, and evolution around them.

The additive scores are solved exactly before the search begins; its seeds lie on their front. What
is left to find is what they do not know: how choices err together, and costs that are not sums.
Every proposal therefore follows what was measured so far:

- *solve again*: the sensitivity is corrected by the measured losses, drawn from what is uncertain
  about it (Thompson sampling), and solved exactly for a random trade-off;
- *evolve*: children of the measured front, by crossover, random mutation, and local moves where
  the marginal gain is largest. The best of a pool under a random trade-off is evaluated, with the
  costs of whole designs, so that children which are known to be poor are not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import optuna
from optuna.trial import FrozenTrial

from epim_nas.space.space import Row
from epim_nas.study.correction import Sensitivity, corrected
from epim_nas.study.exact import Unreachable, totals
from epim_nas.study.knapsack import FloatArray, Infeasible
from epim_nas.study.metrics import is_maximised, metric_of
from epim_nas.study.problem import SearchProblem
from epim_nas.study.samplers import FeasibleSampler, cross, mutate, random_row
from epim_nas.study.seeds import judges_accuracy

_REFIT_EVERY = 10
"""Finished trials between two corrections of the scores."""
_LEAST = 1e-12
"""Stands for a sensitivity of nothing."""


class EpitomeSampler(FeasibleSampler):
    """Exact solutions of corrected scores, and evolution around the measured front.

    Args:
        problem: space, scores and limits.
        seed: seed of the search.
        solve: probability of solving again instead of evolving.
        crossover: probability of two parents instead of one.
        pool: children to choose from.
    """

    def __init__(
        self,
        problem: SearchProblem,
        seed: int,
        solve: float = 0.4,
        crossover: float = 0.5,
        pool: int = 6,
    ) -> None:
        super().__init__(problem, seed)
        self._solve = solve
        self._crossover = crossover
        self._pool = pool
        self._fitted = -1
        self._sensitivity = Sensitivity(problem.sensitivity, 0.1)
        self._judges_accuracy = judges_accuracy(problem)
        # All choices of all groups, one after the other.
        self._sizes = np.array([len(group) for group in problem.space.groups])
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._crossbars = np.concatenate(problem.crossbars).astype(float)

    def propose(
        self, study: optuna.Study, trial: FrozenTrial, rng: np.random.Generator
    ) -> tuple[Sequence[int], str]:
        """An exact solution or a child of the front; uniform where there is no front yet."""
        front = self._history.front
        if not front:
            return random_row(self._problem, rng), "random: nothing feasible is known"
        self._correct()
        if rng.random() < self._solve:
            losses = self._scalarised(front, self._sensitivity.drawn(rng), rng)
            # Half of them with the slowest layer a little faster than in a design of the front.
            slowest = self._problem.slowest(front[int(rng.integers(len(front)))])
            cap = slowest * rng.uniform(0.6, 1.0) if rng.random() < 0.5 else np.inf
            try:
                return self._problem.solve(losses, cap).row, "solved with corrected scores"
            except (Infeasible, Unreachable):
                pass  # no layer can be so fast, or the limits cannot be kept with it
        return self._best_child(front, rng)

    def _correct(self) -> None:
        """Correct the sensitivity, every few finished trials.

        By the number of finished trials alone, so that a resumed search corrects at the same ones.
        """
        finished = len(self._history.finished) // _REFIT_EVERY * _REFIT_EVERY
        if finished == self._fitted or not self._judges_accuracy:
            return
        self._fitted = finished
        rows, losses = self._history.measured("loss", finished)
        self._sensitivity = corrected(self._problem.sensitivity, rows, losses)

    def _scalarised(
        self, front: Sequence[Row], sensitivity: Sequence[FloatArray], rng: np.random.Generator
    ) -> list[FloatArray]:
        """Per group the weighted sum of sensitivity and costs, for a random trade-off.

        Accuracy falls with the logarithm of the sensitivity rather than with the sensitivity: its
        scores are divided by the total of a design of the front, near which they are its
        logarithm's. Costs are divided by their range over the front.
        """
        at = int(rng.integers(len(front)))
        costs = self._problem.objective_costs
        by_sensitivity = self._judges_accuracy or not costs
        weights = rng.dirichlet(np.ones(by_sensitivity + len(costs)))
        result: list[FloatArray] = [np.zeros(len(score)) for score in sensitivity]
        terms: list[tuple[float, Sequence[FloatArray]]] = []
        if by_sensitivity:
            lost = np.maximum(totals(sensitivity, front), _LEAST)
            scale = _spread(np.log(lost)) * float(lost[at])
            terms.append((weights[-1] / scale, sensitivity))
        for weight, cost in zip(weights, costs.values(), strict=False):
            terms.append((weight / _spread(totals(cost, front)), cost))
        for weight, term in terms:
            result = [sum_ + weight * score for sum_, score in zip(result, term, strict=True)]
        return result

    def _best_child(
        self, front: Sequence[Row], rng: np.random.Generator
    ) -> tuple[Sequence[int], str]:
        losses = self._scalarised(front, self._sensitivity.scores, rng)
        children = [self._child(front, losses, rng) for _ in range(self._pool)]
        scores = self._scores([row for row, _ in children])
        weights = rng.dirichlet(np.ones(scores.shape[1]))
        row, how = children[int(np.argmin(scores @ weights))]
        return row, f"{how}, best of {self._pool}"

    def _child(
        self, front: Sequence[Row], losses: Sequence[FloatArray], rng: np.random.Generator
    ) -> tuple[Row, str]:
        child: Sequence[int] = front[int(rng.integers(len(front)))]
        how = "mutant"
        if len(front) > 1 and rng.random() < self._crossover:
            child = cross(child, front[int(rng.integers(len(front)))], rng)
            how = "crossover"
        moves = int(rng.integers(1, 4))
        if rng.random() < 0.5:
            child = self._moved(child, losses, rng, moves)
            how += ", moved where it gains most"
        else:
            child = mutate(child, self._problem, rng, moves)
        return self._problem.repair(child), how

    def _moved(
        self,
        row: Sequence[int],
        losses: Sequence[FloatArray],
        rng: np.random.Generator,
        moves: int,
    ) -> list[int]:
        """``row`` with a few groups changed, each drawn among the changes that gain most.

        The gain of a change is what the loss falls by for every crossbar that it adds; what is
        over the limits is repaired afterwards, where it loses least.
        """
        child = [int(index) for index in row]
        loss, now = np.concatenate(losses), self._starts + child
        falls = np.repeat(loss[now], self._sizes) - loss
        added = self._crossbars - np.repeat(self._crossbars[now], self._sizes)
        gains = falls / (1.0 + np.maximum(added, 0.0))
        best = np.maximum.reduceat(gains, self._starts)
        # Among three times as many as are changed: always the very best would always be the same.
        nearby = [group for group in np.argsort(-best)[: 3 * moves] if best[group] > 0]
        for position in rng.permutation(len(nearby))[:moves]:
            group = nearby[position]
            start = self._starts[group]
            child[group] = int(np.argmax(gains[start : start + self._sizes[group]]))
        return child

    def _scores(self, rows: Sequence[Row]) -> npt.NDArray[np.float64]:
        """(rows, objectives) expected objectives, each scaled to 0 (best of the rows) .. 1."""
        index = np.array(rows)
        real = self._problem.model(index) if self._problem.model is not None else {}
        costs = self._problem.objective_costs
        columns: list[FloatArray] = []
        if self._judges_accuracy or not costs:
            columns.append(np.log(np.maximum(totals(self._sensitivity.scores, rows), _LEAST)))
        for objective in self._problem.objectives:
            name = metric_of(objective)
            if name in real:
                sign = -1.0 if is_maximised(objective) else 1.0
                columns.append(sign * np.asarray(real[name], dtype=float))
            elif objective in costs:
                columns.append(totals(costs[objective], rows))
        table = np.stack(columns, axis=1)
        low = table.min(axis=0)
        spread = table.max(axis=0) - low
        scaled: npt.NDArray[np.float64] = (table - low) / np.where(spread > 0, spread, 1.0)
        return scaled


def _spread(values: FloatArray) -> float:
    """The range of values; of a single one, a tenth of its size."""
    return float(np.ptp(values)) or 0.1 * abs(float(values[0])) or 1.0
