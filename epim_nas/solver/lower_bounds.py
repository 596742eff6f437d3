"""Lower bounds of energy, pipelined latency and their product over all designs within a budget.

A search finds good designs; these say how much better any other could be. They rest on floors of
what every choice costs (:mod:`~epim_nas.hardware.lower_bounds.floors`):

- **energy**: a sum for given sizes of the buffers, hence a knapsack for every pair of sizes. Where
  the floors are exact, the least of the solutions is the least energy that there is.
- **latency**: the longest of all paths through the output positions. A path's length is a sum over
  layers, so that any set of paths bounds the latency from below by a linear program: shares of
  choices (a design has shares of 0 and 1) within the budget, whose longest path in the set is
  shortest. The longest path at the mean steps of these shares joins the set, until none is longer
  (cutting planes): then the program's optimum is the least latency at mean steps, which is convex
  in the shares and equals the latency for designs.
- **product**: a design's latency lies between two of some rising times, t(i) and t(i + 1). Its
  energy is then at least the least one of shares whose paths are no longer than t(i + 1), so that
  no product is below the least of t(i) times that energy.

Bounds of latency and product are a millionth lower than what the programs say: their tolerance.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from epim_nas.hardware.lower_bounds.floors import Floors
from epim_nas.solver.exact import Certificate, Exact, Limit, Unreachable, minimise, total
from epim_nas.solver.knapsack import FloatArray, Infeasible, IntArray
from epim_nas.space.space import Row, SearchSpace

log = logging.getLogger(__name__)

_PATHS = 100
"""Most paths that the bound of latency finds."""
_CONVERGED = 1e-4
"""Relative gap between a program's optimum and the latency of its shares at which it ends."""
_MORE_PATHS = 5
"""Most programs that are solved for the least energy within a latency, each with one path more."""
_STEP = 1.005
"""Ratio of the times between which the product is bounded."""
_STEPS = 1000
"""Most such times."""
_TOLERANCE = 1e-6
"""What is taken off the programs' optima."""


_Path = tuple[FloatArray, float]
"""All choices' scores on a path through the output positions, and what other layers add (ns)."""


@dataclass(frozen=True)
class EnergyCase:
    """Energies (nJ) for given SRAMs of the buffers.

    Attributes:
        scores: per group those of each choice; infinite for choices that need larger buffers.
        constant: of the layers without choices.
        least: the row of least sum.
    """

    scores: list[FloatArray]
    constant: float
    least: Exact

    @property
    def value(self) -> float:
        """No row has less energy."""
        return self.least.certificate.bound + self.constant


@dataclass(frozen=True)
class _LatencyBound:
    """The bound (ns), all choices' scores of the mix of paths that proves it, and the paths."""

    bound: float
    mix: FloatArray
    paths: tuple[_Path, ...]


class Bounds:
    """Lower bounds over the designs of a space with at most so many crossbars.

    Args:
        space: the search space.
        floors: the least costs of its choices.
        crossbars: per group the crossbars of each choice.
        budget: most crossbars.

    Raises:
        Infeasible: no design has so few crossbars.

    Energy and product raise :class:`~epim_nas.errors.InputError` or :class:`~.exact.Unreachable`
    where the SRAM tables have the buffers of no design.
    """

    def __init__(
        self, space: SearchSpace, floors: Floors, crossbars: Sequence[IntArray], budget: int
    ) -> None:
        self._space = space
        self._floors = floors
        self._limit = Limit([np.asarray(c, dtype=np.int64) for c in crossbars], budget)
        self._ends = np.cumsum([len(c) for c in crossbars])
        tiles = space.group_sums(floors.tiles)
        most = self._least([-1.0 * count for count in tiles])
        if most is None:
            raise Infeasible(sum(int(np.min(c)) for c in self._limit.scores), budget)
        # Whole numbers, but for rounding in the integer program.
        most_tiles = math.ceil(-most.certificate.bound) + floors.other_tiles
        self._steps = floors.steps(most_tiles)

    @cached_property
    def energy_nj(self) -> Exact:
        """The design of least energy, as far as the floors say: ``certificate.bound`` is the bound.

        ``loss`` is what the floors say of the design: its energy where ``Floors.exact`` holds, else
        less than it. No design has less than the bound, which equals ``loss`` unless an integer
        program ran out of time.
        """
        best = min(self.cases, key=lambda case: case.least.loss + case.constant)
        loss, method = best.least.loss + best.constant, best.least.certificate.method
        return Exact(best.least.row, loss, Certificate(loss, self.cases[0].value, method))

    @cached_property
    def latency_ns(self) -> float:
        """No design's pipelined latency is below this."""
        return self._latency.bound

    @cached_property
    def product(self) -> float:
        """No design's energy times latency (nJ ns) is below this."""
        time, least, best = self.latency_ns, self.cases[0].value, np.inf
        paths = list(self._latency.paths)
        # Designs that take longer than a time have at least its product with the least energy.
        for _ in range(_STEPS):
            if time * least >= best:
                break
            energy = self._least_within(time * _STEP, paths)
            best = min(best, time * energy)
            time *= _STEP
        return min(best, time * least)

    @cached_property
    def path_mix(self) -> list[FloatArray]:
        """Per group the choices' scores (ns) of the mix of paths that proves the latency's bound.

        No mix of paths is longer than a design's latency.
        """
        return self._split(self._latency.mix)

    def longest_path(self, row: Row) -> list[FloatArray]:
        """Per group the choices' scores (ns) of a path that is the longest in one design."""
        shares = np.zeros(self._ends[-1])
        shares[np.r_[0, self._ends[:-1]] + np.array(row)] = 1.0
        _, (path, _) = self._longest_path(shares)
        return self._split(path)

    @cached_property
    def cases(self) -> list[EnergyCase]:
        """The sizes of buffers with which there is a design, those of the least bound first."""
        cases = sorted(self._solved(), key=lambda case: case.value)
        if not cases:
            raise Unreachable("the buffers of no design within the budget are in the tables")
        return cases

    def _solved(self) -> Iterator[EnergyCase]:
        for case in self._floors.cases():
            scores = self._space.group_sums(case.energy_nj)
            least = self._least(scores)
            if least is not None:
                yield EnergyCase(scores, case.other_nj, least)

    def _least(self, scores: list[FloatArray]) -> Exact | None:
        """The row of least sum within the budget; None where no row has a finite one."""
        lightest = [
            np.where(np.isfinite(own), weights, np.inf)
            for own, weights in zip(scores, self._limit.scores, strict=True)
        ]
        if sum(float(weights.min()) for weights in lightest) > self._limit.bound:
            return None
        try:
            return minimise(scores, [self._limit])
        except Unreachable as error:  # there is a row, but the integer program found none in time
            log.debug("the lightest design stands for the best one: %s", error)
            row = tuple(int(np.argmin(weights)) for weights in lightest)
            loss, least = total(scores, row), sum(float(own.min()) for own in scores)
            return Exact(row, loss, Certificate(loss, least, "each group's best choice"))

    @cached_property
    def _latency(self) -> _LatencyBound:
        shares = np.zeros(self._ends[-1])
        starts = np.r_[0, self._ends[:-1]]
        shares[starts + [int(np.argmin(score)) for score in self._limit.scores]] = 1.0
        bound, mix = 0.0, np.ones(1)
        paths: list[_Path] = []
        for _ in range(_PATHS):
            longest, (path, constant) = self._longest_path(shares)
            paths.append((path, constant))
            # Every design takes at least the fastest choices along a path.
            bound = max(bound, constant + sum(float(own.min()) for own in self._split(path)))
            if longest <= (1 + _CONVERGED) * bound:
                break
            scale = paths[0][1] + float(paths[0][0].sum())
            rows = [np.append(scores / scale, -1.0) for scores, _ in paths]
            found = self._program(
                np.append(np.zeros(len(shares)), 1.0), rows, [-c / scale for _, c in paths]
            )
            if found.status != 0:
                log.debug("the bound of the latency stays where it is: %s", found.message)
                break
            bound, shares = max(bound, found.fun * scale), found.x[:-1]
            mix = -found.ineqlin.marginals[1:]
        scores = sum(
            (weight * path for weight, (path, _) in zip(mix, paths, strict=False)),
            np.zeros(len(shares)),
        )
        return _LatencyBound(bound * (1 - _TOLERANCE), scores, tuple(paths))

    def _least_within(self, time: float, paths: list[_Path]) -> float:
        """No design of at most a latency (ns) has less energy (nJ); infinite if there is none.

        Any set of paths will do; those that are found here join it.
        """
        best = np.inf
        for case in self.cases:
            if case.value >= best:
                break  # the cases that follow have no less
            best = min(best, self._cheapest(case, time, paths))
        return best

    def _cheapest(self, case: EnergyCase, time: float, paths: list[_Path]) -> float:
        """The least energy in a case within a latency."""
        energies = np.concatenate(case.scores)
        allowed = np.isfinite(energies)
        scale = case.value or 1.0
        value = case.value
        for _ in range(_MORE_PATHS):
            found = self._program(
                np.where(allowed, energies, 0.0) / scale,
                [scores / time for scores, _ in paths],
                [1 - constant / time for _, constant in paths],
                allowed,
            )
            if found.status == 2:
                return np.inf  # no shares have such short paths
            if found.status != 0:
                return value
            optimum = found.fun * scale + case.constant
            value = max(value, optimum * (1 - _TOLERANCE))
            longest, path = self._longest_path(found.x)
            paths.append(path)
            if longest <= (1 + _CONVERGED) * time:
                break
        return value

    def _program(
        self,
        costs: FloatArray,
        rows: Sequence[FloatArray],
        limits: Sequence[float],
        allowed: Any = 1.0,
    ) -> Any:
        """Shares (and what else has a cost) of least cost, within the budget and further limits."""
        from scipy.optimize import linprog
        from scipy.sparse import csr_matrix

        choices = int(self._ends[-1])
        crossbars = np.zeros(len(costs))
        crossbars[:choices] = np.concatenate(self._limit.scores)
        group = np.repeat(np.arange(len(self._ends)), np.diff(self._ends, prepend=0))
        one_each = csr_matrix(
            (np.ones(choices), (group, np.arange(choices))), shape=(len(self._ends), len(costs))
        )
        highest = np.full(len(costs), np.inf)
        highest[:choices] = allowed
        size = self._limit.bound or 1
        return linprog(
            costs,
            np.stack([crossbars / size, *rows]),
            [self._limit.bound / size, *limits],
            one_each,
            np.ones(len(self._ends)),
            np.stack([np.zeros(len(costs)), highest], axis=1),
            method="highs",
        )

    def _longest_path(self, shares: FloatArray) -> tuple[float, _Path]:
        """The longest path at the mean steps of shares, and its length (ns)."""
        steps = self._steps.fixed.copy()
        index = self._floors.network.index
        for group, share in zip(self._space.groups, self._split(shares), strict=True):
            for layer in group.layers:
                steps[:, index[layer]] = self._steps.choices[layer] @ share
        length, counts = self._floors.critical_path(steps)
        scores = self._space.group_sums({
            layer: counts[:, index[layer]] @ each for layer, each in self._steps.choices.items()
        })  # fmt: skip
        return length, (np.concatenate(scores), float((counts * self._steps.fixed).sum()))

    def _split(self, values: FloatArray) -> list[FloatArray]:
        """All choices' values by group."""
        return np.split(values, self._ends[:-1])
