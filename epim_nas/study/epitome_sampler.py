"""The default strategy's proposals: exact solutions of corrected scores, and evolution around them.

The additive scores are solved exactly before the search begins; its seeds lie on their front. What
is left to find is what they do not know: how choices err together, and costs that are not sums.
Every proposal therefore follows what was measured so far:

- *go on*: exact solutions of the first sweep that are not among the seeds;
- *solve again*: the sensitivity is corrected by the measured losses, drawn from what is uncertain
  about it (Thompson sampling), and solved exactly for a random trade-off;
- *evolve*: children of the measured front, by crossover, random mutation, and local moves where
  the marginal gain is largest.

Of a pool of all three, the one is scored that should add most to the front's hypervolume, by the
costs of whole designs and the accuracy that its corrected sensitivity stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import optuna
from optuna.trial import FrozenTrial
from scipy.optimize import isotonic_regression

from epim_nas.solver.exact import Unreachable, totals
from epim_nas.solver.exact_front import exact_rows, judges_accuracy
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.knapsack import FloatArray, Infeasible
from epim_nas.solver.metrics import METRICS, is_maximised, metric_of
from epim_nas.solver.pareto import box_volume
from epim_nas.solver.sensitivity_update import MOST, Sensitivity, corrected
from epim_nas.space.moves import cross, mutate, random_row
from epim_nas.space.space import Row
from epim_nas.study.samplers import FeasibleSampler

_REFIT_EVERY = 10
"""Finished trials between two corrections of the scores."""
_BOX = 1.1
"""Reference point, where objectives are scaled to 0 (best of the front) .. 1 (worst)."""
_LEAST = 1e-12
"""Stands for a sensitivity of nothing."""


@dataclass(frozen=True)
class Curve:
    """A rising curve through points that scatter around it.

    Attributes:
        at: positions, rising.
        values: the curve there, rising.
    """

    at: FloatArray
    values: FloatArray

    @classmethod
    def through(cls, at: FloatArray, values: FloatArray) -> Curve:
        """The isotonic regression, with a little slope so that its steps still have an order."""
        order = np.argsort(at, kind="stable")
        slope = 1e-3 * (float(np.ptp(values)) or 1.0) / (float(np.ptp(at)) or 1.0)
        fitted = isotonic_regression(values[order]).x
        return cls(at[order], fitted + slope * (at[order] - at.mean()))

    def __call__(self, at: FloatArray) -> FloatArray:
        """The curve's values; beyond its ends they stay."""
        result: FloatArray = np.interp(at, self.at, self.values)
        return result


@dataclass(frozen=True)
class Curves:
    """What a measured objective should be: by itself, and by the expected order after training.

    Attributes:
        of_order: the objective, by a scored design's order (as the history's front has it).
        of_sensitivity: the objective, by the logarithm of a design's corrected sensitivity.
        order: the order, by the same.
    """

    of_order: Curve
    of_sensitivity: Curve
    order: Curve


class EpitomeSampler(FeasibleSampler):
    """Exact solutions of corrected scores and children of the front, chosen by what they may add.

    Args:
        solver: the solver of the problem.
        seed: seed of the search.
        swept: solutions of the first sweep in the pool that a proposal is chosen from.
        solutions: exact solutions of corrected scores in it.
        children: children of the front in it.
        crossover: probability that a child has two parents instead of one.
    """

    def __init__(
        self,
        solver: FeasibleSolver,
        seed: int,
        swept: int = 3,
        solutions: int = 2,
        children: int = 2,
        crossover: float = 0.5,
    ) -> None:
        super().__init__(solver, seed)
        problem = solver.problem
        self._swept = swept
        self._solutions = solutions
        self._children = children
        self._crossover = crossover
        self._fitted = -1
        self._sensitivity = Sensitivity(problem.sensitivity, 0.1)
        self._judges_accuracy = judges_accuracy(problem)
        self._curves: dict[int, Curves] = {}
        # All choices of all groups, one after the other.
        self._sizes = np.array([len(group) for group in problem.space.groups])
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._crossbars = np.concatenate(problem.crossbars).astype(float)
        self._costs = [np.concatenate(scores) for scores in problem.objective_costs.values()]

    def propose(
        self, study: optuna.Study, trial: FrozenTrial, rng: np.random.Generator
    ) -> tuple[Sequence[int], str]:
        """An exact solution or a child of the front; uniform where there is no front yet."""
        front = self._history.front
        if not front:
            return random_row(self._problem.space, rng), "random: nothing feasible is known"
        self._correct()
        drawn = self._sensitivity.drawn(rng)
        pool: dict[Row, str] = {}
        left = [row for row in self._sweep if row not in self._history.proposed]
        for index in rng.permutation(len(left))[: self._swept]:
            pool[left[index]] = "exact solution of the first scores"
        for _ in range(self._solutions):
            row = self._solved(front, drawn, rng)
            if row is not None:
                pool.setdefault(row, "solved with corrected scores")
        losses = self._scalarised(self._sensitivity.scores, rng)
        for _ in range(self._children):
            row, how = self._child(front, losses, rng)
            pool.setdefault(row, how)
        new = [row for row in pool if row not in self._history.proposed] or list(pool)
        best = new[self._most_promising(new, drawn, rng)]
        return best, f"{pool[best]}, of {len(pool)}"

    @cached_property
    def _sweep(self) -> list[Row]:
        return exact_rows(self._solver)

    def _solved(
        self, front: Sequence[Row], drawn: Sequence[FloatArray], rng: np.random.Generator
    ) -> Row | None:
        """The exact solution for a random trade-off, if there is one under its cap."""
        losses = self._scalarised(drawn, rng)
        # Half of them with the slowest layer a little faster than in a design of the front.
        slowest = self._problem.slowest(front[int(rng.integers(len(front)))])
        cap = slowest * rng.uniform(0.6, 1.0) if rng.random() < 0.5 else np.inf
        try:
            return self._solver.solve(losses, cap).row
        except (Infeasible, Unreachable):
            return None  # no layer can be so fast, or the limits cannot be kept with it

    def _most_promising(
        self, rows: Sequence[Row], drawn: Sequence[FloatArray], rng: np.random.Generator
    ) -> int:
        """Index of the row that adds most to the hypervolume of the front, as far as is known.

        What a row reaches is taken from the drawn sensitivity and the costs of whole designs. Where
        none adds anything, a random trade-off decides.
        """
        # Accuracy is nearly the same for all of the best designs, though their order is not, and
        # it differs most among the worst: each is the measure of half of the proposals.
        ordered = rng.random() < 0.5
        losses, known = self._expected(rows, drawn, ordered), self._history.front_losses.copy()
        for column, curves in self._curves.items():
            if not ordered:
                known[:, column] = curves.of_order(known[:, column])
        low, span = known.min(axis=0), np.ptp(known, axis=0)
        span = np.where(span > 0, span, 0.1 * np.abs(low) + 1e-12)
        scaled, known = (losses - low) / span / _BOX, (known - low) / span / _BOX
        gains = [_gain(known, row) for row in scaled]
        if max(gains) > 0:
            return int(np.argmax(gains))
        return int(np.argmin(scaled @ rng.dirichlet(np.ones(scaled.shape[1]))))

    def _expected(
        self, rows: Sequence[Row], drawn: Sequence[FloatArray], ordered: bool
    ) -> FloatArray:
        """(rows, objectives) what rows should reach; less is better.

        Args:
            rows: the rows.
            drawn: sensitivity of each choice.
            ordered: judge how well networks work by their order, else by what is measured.
        """
        index = np.array(rows)
        real = self._problem.model(index) if self._problem.model is not None else {}
        costs = self._problem.objective_costs
        columns = []
        for column, objective in enumerate(self._problem.objectives):
            name = metric_of(objective)
            sign = -1.0 if is_maximised(objective) else 1.0
            if column in self._curves:
                lost = np.log(np.maximum(totals(drawn, rows), _LEAST))
                curves = self._curves[column]
                columns.append((curves.order if ordered else curves.of_sensitivity)(lost))
            elif METRICS[name].measured or name == "sensitivity":
                columns.append(totals(drawn, rows))
            elif name in real:
                columns.append(sign * np.asarray(real[name], dtype=float))
            elif objective in costs:
                # As far as it is known: moved and scaled like the values of the front.
                columns.append(totals(costs[objective], rows))
            else:
                columns.append(np.full(len(rows), self._history.front_losses[:, column].mean()))
        return np.stack(columns, axis=1)

    def _correct(self) -> None:
        """Correct the sensitivity, every few finished trials.

        By the number of finished trials alone, so that a resumed search corrects at the same ones.
        """
        finished = len(self._history.finished) // _REFIT_EVERY * _REFIT_EVERY
        if finished in (self._fitted, 0) or not self._judges_accuracy:
            return
        self._fitted = finished
        begin = max(0, finished - MOST)
        rows, losses = self._history.measured("loss", begin, finished)
        self._sensitivity = corrected(self._problem.sensitivity, rows, losses)
        ranked = self._history.losses(begin, finished, ranked=True)
        plain = self._history.losses(begin, finished, ranked=False)
        every = [self._history.row(trial) for trial in self._history.finished[begin:finished]]
        lost = np.log(np.maximum(totals(self._sensitivity.scores, every), _LEAST))
        for column, objective in enumerate(self._problem.objectives):
            if METRICS[metric_of(objective)].measured:
                self._curves[column] = Curves(
                    Curve.through(ranked[:, column], plain[:, column]),
                    Curve.through(lost, plain[:, column]),
                    Curve.through(lost, ranked[:, column]),
                )

    def _scalarised(
        self, sensitivity: Sequence[FloatArray], rng: np.random.Generator
    ) -> list[FloatArray]:
        """Per group the weighted sum of sensitivity and costs, for a random trade-off.

        Accuracy falls with the logarithm of the sensitivity rather than with the sensitivity: its
        scores are divided by the total of a design of the front, near which they are its
        logarithm's. Costs are divided by their range over the front.
        """
        chosen = self._history.front_table + self._starts
        by_sensitivity = self._judges_accuracy or not self._costs
        weights = rng.dirichlet(np.ones(by_sensitivity + len(self._costs)))
        scores = np.zeros(int(self._sizes.sum()))
        if by_sensitivity:
            every = np.concatenate(sensitivity)
            lost = np.maximum(every[chosen].sum(axis=1), _LEAST)
            scale = _spread(np.log(lost)) * float(lost[int(rng.integers(len(lost)))])
            scores += weights[-1] / scale * every
        for weight, cost in zip(weights, self._costs, strict=False):
            scores += weight / _spread(cost[chosen].sum(axis=1)) * cost
        return np.split(scores, self._starts[1:])

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
            child = mutate(child, self._problem.space, rng, moves)
        return self._solver.repair(child), how

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


def _gain(known: FloatArray, row: FloatArray) -> float:
    """What a point adds to the hypervolume of others, with the reference point (1, ..., 1)."""
    if (row >= 1).any() or (known <= row).all(axis=1).any():
        return 0.0
    # Only the part that the point dominates counts: the others are cut to it.
    box = float(np.prod(1 - row))
    cut = (np.maximum(known, row) - row) / (1 - row)
    return box * (1.0 - box_volume(cut))


def _spread(values: FloatArray) -> float:
    """The range of values; of a single one, a tenth of its size."""
    return float(np.ptp(values)) or 0.1 * abs(float(values[0])) or 1.0
