"""The additive sensitivity, corrected by the losses that were measured of whole designs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from epim_nas.solver.additive_gp import fit_additive
from epim_nas.solver.exact import totals
from epim_nas.solver.knapsack import FloatArray
from epim_nas.space.space import Row

LEAST = 10
"""Measured designs below which the table is left as it is."""
MOST = 150
"""Newest designs that are fitted; the time grows with the cube of their number."""
_POWERS = (0.2, 2.0)
"""Smallest and largest exponent between sensitivity and loss."""


@dataclass(frozen=True)
class Sensitivity:
    """An additive score of what designs lose, and how far it can be trusted.

    Attributes:
        scores: per group the expected loss (nats) of each choice.
        error: standard deviation of a design's logarithmic score.
    """

    scores: list[FloatArray]
    error: float

    def drawn(self, rng: np.random.Generator) -> list[FloatArray]:
        """Scores as they might truly be: every one times a log-normal factor.

        A design's total has a smaller spread than each of its scores, since they err apart; with
        G groups of like share the factor's is ``error`` times the root of G.
        """
        spread = min(1.0, self.error * len(self.scores) ** 0.5)
        return [score * np.exp(spread * rng.standard_normal(len(score))) for score in self.scores]


def corrected(
    prior: Sequence[FloatArray], rows: Sequence[Row], losses: FloatArray, error: float = 0.1
) -> Sensitivity:
    """The scores after some designs were measured.

    Losses of networks with shared weights lie on another scale than the scores, and saturate. So
    first log L = a + b log S is fitted; it says which sensitivity each loss stands for, and those
    are fitted by :func:`~epim_nas.solver.additive_gp.fit_additive`. Its noise is proportional to
    the sensitivity.

    Args:
        prior: per group the sensitivity of each choice.
        rows: measured designs.
        losses: (rows,) their losses (nats).
        error: standard deviation to assume while too few are known.
    """
    rows, losses = rows[-MOST:], losses[-MOST:]
    if len(rows) < LEAST or np.ptp(losses) == 0:
        return Sensitivity(list(prior), error)
    index = np.array(rows)
    sums = totals(prior, rows)
    log_sums, log_losses = np.log(np.maximum(sums, 1e-12)), np.log(np.maximum(losses, 1e-12))
    if np.ptp(log_sums) < 1e-9:
        return Sensitivity(list(prior), error)
    power = float(np.clip(np.polyfit(log_sums, log_losses, 1)[0], *_POWERS))
    stands_for = np.exp(
        log_sums.mean() + (log_losses - log_losses.mean()) / power
    )  # the same line, with its slope bounded
    model = fit_additive(index, stands_for, prior, deviations=sums)
    predicted = np.maximum(model.predict(index), 1e-12)
    spread = float(np.std(np.log(predicted) - np.log(stands_for)))
    # What no choice changes belongs to no group; the solver needs no constant.
    return Sensitivity(model.scores, max(spread, 0.02))
