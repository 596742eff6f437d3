"""Additive costs that fit the costs of whole designs best, where those are not sums."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from epim_nas.solver.additive_gp import fit_additive
from epim_nas.solver.design_costs import Costs
from epim_nas.solver.exact import minimise
from epim_nas.solver.knapsack import FloatArray, IntArray
from epim_nas.solver.metrics import METRICS
from epim_nas.solver.problem import SearchProblem
from epim_nas.space.space import Row

log = logging.getLogger(__name__)

_CALIBRATION_DESIGNS = 256
"""Designs whose whole costs the additive costs are fitted to; a fraction of a second."""
_ROUNDS = 8
"""Rounds of fitting; each adds designs that the last one's costs point to."""


def calibrated(problem: SearchProblem, costs: Costs, seed: int) -> SearchProblem:
    """The problem with its inexact additive costs fitted to the costs of whole designs.

    In rounds: what was fitted says which designs a search will look at, and those are fitted next.
    """
    prior = {
        name: [np.asarray(score, dtype=float) for score in scores]
        for name, scores in problem.costs.items()
        if not METRICS[name].exact
    }
    if not prior:
        return problem
    rng = np.random.default_rng([seed, 41])
    rows: dict[Row, None] = {}
    errors: dict[str, float] = {}
    for number in range(1, _ROUNDS + 1):
        _add_typical_rows(rows, _CALIBRATION_DESIGNS * number // _ROUNDS, problem, costs, rng)
        index = _at_least_three(rows)
        real = costs(index)
        scores, constants = dict(problem.costs), dict(problem.constants)
        for name, known in prior.items():
            values = np.asarray(real[name], dtype=float)
            model = fit_additive(index, values, known)
            scores[name], constants[name] = model.scores, model.constant
            errors[name] = model.error
        problem = replace(problem, costs=scores, constants=constants)
    for name, error in errors.items():
        log.info(
            "%s: additive costs fitted to %d whole designs explain %.0f %% of the variance of "
            "designs that are left out",
            name, len(rows), 100 * max(0.0, 1 - error**2),
        )  # fmt: skip
    return problem


def _add_typical_rows(
    rows: dict[Row, None],
    count: int,
    problem: SearchProblem,
    costs: Costs,
    rng: np.random.Generator,
) -> None:
    """Add designs like those that a search looks at (small, cheap, or precise) up to a count.

    Each is the exact solution of random weights of stored bits and additive costs, with noise on
    every choice, within a random share of the crossbars that the limits allow.
    """
    bits = problem.space.group_sums(costs.table.by_layer("weight_bits"))
    precision = [-np.log(np.maximum(np.asarray(b, dtype=float), 1.0)) for b in bits]
    terms = [precision, *([np.asarray(s, float) for s in c] for c in problem.costs.values())]
    spans = [sum(float(np.ptp(score)) for score in term) or 1.0 for term in terms]
    for _ in range(4 * _CALIBRATION_DESIGNS):
        if len(rows) >= count:
            return
        weights = rng.dirichlet(np.full(len(terms), 0.5)) / spans
        losses = []
        for group in zip(*terms, strict=True):
            scores = sum(
                (weight * score for weight, score in zip(weights, group, strict=True)),
                np.zeros(len(group[0])),
            )
            spread = float(np.ptp(scores)) or 1.0
            losses.append(scores + 0.5 * spread * rng.random(len(scores)))
        rows[_within(problem, losses, rng)] = None


def _at_least_three(rows: Iterable[Row]) -> IntArray:
    """(designs, groups) rows as an array, repeated where a space has one or two designs."""
    found = list(rows)
    return np.array(found + [found[0]] * (3 - len(found)), dtype=np.int64)


def _within(problem: SearchProblem, losses: Sequence[FloatArray], rng: np.random.Generator) -> Row:
    """The row of least loss within a random share of the whole-numbered limits' slack."""
    for name, limit in problem.additive_limits.items():
        if METRICS[name].exact and limit.whole:
            least = sum(float(np.min(score)) for score in limit.scores)
            share = rng.random() ** 0.5
            bound = int(least + share * max(0.0, limit.bound - least))
            return minimise(losses, [replace(limit, bound=bound)]).row
    return minimise(losses, []).row
