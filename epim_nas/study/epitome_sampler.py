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
from epim_nas.study.exact import Unreachable, total
from epim_nas.study.knapsack import FloatArray, Infeasible
from epim_nas.study.metrics import is_maximised, metric_of
from epim_nas.study.problem import SearchProblem
from epim_nas.study.samplers import FeasibleSampler, cross, mutate, random_row
from epim_nas.study.seeds import judges_accuracy

_REFIT_EVERY = 5
"""Finished trials between two corrections of the scores."""


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
        pool: int = 8,
    ) -> None:
        super().__init__(problem, seed)
        self._solve = solve
        self._crossover = crossover
        self._pool = pool
        self._fitted = -1
        self._sensitivity = Sensitivity(problem.sensitivity, 0.1)
        self._judges_accuracy = judges_accuracy(problem)

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
        rows, losses = self._history.measured("loss")
        prior = self._problem.sensitivity
        self._sensitivity = corrected(prior, rows[:finished], losses[:finished])

    def _scalarised(
        self, front: Sequence[Row], sensitivity: Sequence[FloatArray], rng: np.random.Generator
    ) -> list[FloatArray]:
        """Per group the weighted sum of sensitivity and costs, for a random trade-off.

        Accuracy falls with the logarithm of the sensitivity rather than with the sensitivity: its
        scores are divided by the total of a design of the front, near which they are its
        logarithm's. Costs are divided by their range over the front.
        """
        at = front[int(rng.integers(len(front)))]
        costs = self._problem.objective_costs
        by_sensitivity = self._judges_accuracy or not costs
        weights = rng.dirichlet(np.ones(by_sensitivity + len(costs)))
        result: list[FloatArray] = [np.zeros(len(score)) for score in sensitivity]
        terms: list[tuple[float, Sequence[FloatArray]]] = []
        if by_sensitivity:
            spread = self._spread([np.log(self._total(sensitivity, row)) for row in front])
            terms.append((weights[-1] / spread / self._total(sensitivity, at), sensitivity))
        for weight, cost in zip(weights, costs.values(), strict=False):
            terms.append((weight / self._spread([total(cost, row) for row in front]), cost))
        for weight, term in terms:
            result = [sum_ + weight * score for sum_, score in zip(result, term, strict=True)]
        return result

    @staticmethod
    def _total(sensitivity: Sequence[FloatArray], row: Row) -> float:
        return max(total(sensitivity, row), 1e-12)

    @staticmethod
    def _spread(values: Sequence[float]) -> float:
        """The range of values; of a single one, a tenth of its size."""
        return float(np.ptp(values)) or 0.1 * abs(values[0]) or 1.0

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
        crossbars = self._problem.costs["crossbars"]
        gains = []
        for group, (loss, weight, index) in enumerate(zip(losses, crossbars, child, strict=True)):
            falls = loss[index] - np.asarray(loss)
            added = np.maximum(np.asarray(weight, dtype=float) - weight[index], 0.0)
            best = int(np.argmax(falls / (1.0 + added)))
            if falls[best] > 0:
                gains.append((float(falls[best] / (1.0 + added[best])), group, best))
        gains.sort(reverse=True)
        # Among three times as many as are changed: always the very best would always be the same.
        nearby = gains[: 3 * moves]
        for position in rng.permutation(len(nearby))[:moves]:
            _, group, best = nearby[position]
            child[group] = best
        return child

    def _scores(self, rows: Sequence[Row]) -> npt.NDArray[np.float64]:
        """(rows, objectives) expected objectives, each scaled to 0 (best of the rows) .. 1."""
        index = np.array(rows)
        real = self._problem.model(index) if self._problem.model is not None else {}
        costs = self._problem.objective_costs
        columns: list[Sequence[float]] = []
        if self._judges_accuracy or not costs:
            scores = self._sensitivity.scores
            columns.append([np.log(self._total(scores, row)) for row in rows])
        for objective in self._problem.objectives:
            name = metric_of(objective)
            if name in real:
                sign = -1.0 if is_maximised(objective) else 1.0
                columns.append((sign * np.asarray(real[name], dtype=float)).tolist())
            elif objective in costs:
                columns.append([total(costs[objective], row) for row in rows])
        table = np.array(columns, dtype=np.float64).T
        low = table.min(axis=0)
        spread = table.max(axis=0) - low
        scaled: npt.NDArray[np.float64] = (table - low) / np.where(spread > 0, spread, 1.0)
        return scaled
