"""Additive scores corrected by what was measured of whole designs.

A value y of a design x (its latency, its loss) is modelled as

    y = c + sum over groups of p_g(x) (beta + u_g + v_g(x)) + noise,

p the additive scores that are known before, u_g a relative error of a group's scores, v a relative
error of a single choice, both Gaussian with mean zero: a Gaussian process whose kernel is a sum
over groups (Duvenaud et al., "Additive Gaussian Processes", 2011), and whose mean is the prior
score. Its posterior mean is additive again, so that the exact solver can solve with it. Where
little was measured it stays at the prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_GROUP, _CHOICE = 1.0, 0.3
"""Relative variances of u and v: a layer's choices err together more than each on its own."""
_RIDGES = np.geomspace(1e-4, 1e2, 13)
"""Candidate variances of the noise, relative to the mean variance of a design under the prior."""


@dataclass(frozen=True)
class Additive:
    """An additive model of a value.

    Attributes:
        scores: per group the score of each choice.
        constant: what no choice changes.
        error: root mean square of the leave-one-out errors, relative to the root mean square of
            the values around their mean; 1 says that nothing was learned.
    """

    scores: list[FloatArray]
    constant: float
    error: float

    def predict(self, rows: IntArray) -> FloatArray:
        """(N,) values of (N, groups) rows."""
        picked = [score[rows[:, group]] for group, score in enumerate(self.scores)]
        total: FloatArray = np.sum(picked, axis=0) + self.constant
        return total


def fit_additive(
    rows: npt.ArrayLike,
    values: npt.ArrayLike,
    prior: Sequence[FloatArray],
    deviations: npt.ArrayLike | None = None,
) -> Additive:
    """The additive model of measured values.

    Args:
        rows: (N, groups) choice indices of the designs.
        values: (N,) what was measured of them.
        prior: per group the score of each choice that is known before.
        deviations: (N,) relative standard deviations of the noise; equal by default.

    Raises:
        ValueError: fewer than three designs.
    """
    index, y = np.asarray(rows, dtype=np.int64), np.asarray(values, dtype=np.float64)
    if len(index) < 3:
        raise ValueError(f"{len(index)} designs are too few to fit")
    features = np.stack([p[index[:, group]] for group, p in enumerate(prior)], axis=1)
    kernel = _GROUP * features @ features.T
    for group in range(index.shape[1]):
        column, feature = index[:, group], features[:, group]
        same = column[:, None] == column[None, :]
        kernel += _CHOICE * same * np.outer(feature, feature)
    noise = np.ones(len(y)) if deviations is None else np.asarray(deviations, dtype=float)
    noise = noise / np.sqrt(np.mean(noise**2))
    size = float(np.mean(np.diag(kernel))) or 1.0
    basis = np.stack([np.ones(len(y)), features.sum(axis=1)], axis=1)
    # Divided by the noise's deviation, all noise is alike, and one decomposition serves all ridges.
    values, vectors = np.linalg.eigh(kernel / np.outer(noise, noise))
    best: tuple[float, FloatArray, FloatArray] | None = None
    for ridge in _RIDGES:
        inverse = 1.0 / (np.maximum(values, 0.0) + ridge * size)
        coefficients, weights, errors = _solve(inverse, vectors, basis / noise[:, None], y / noise)
        score = float(np.sqrt(np.mean(errors**2)))
        if best is None or score < best[0]:
            best = score, coefficients, weights / noise
    assert best is not None
    error, (constant, beta), weights = best
    scores = []
    for group, p in enumerate(prior):
        column, feature = index[:, group], features[:, group]
        by_choice = np.bincount(column, weights * feature, minlength=len(p))
        scores.append(p * (beta + _GROUP * float(weights @ feature) + _CHOICE * by_choice))
    spread = float(np.sqrt(np.mean((y - y.mean()) ** 2))) or 1.0
    return Additive(scores, float(constant), error / spread)


def _solve(
    inverse: FloatArray, vectors: FloatArray, basis: FloatArray, y: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Generalised least squares: coefficients of the basis, weights, leave-one-out errors.

    With P = C^-1 - C^-1 B (B' C^-1 B)^+ B' C^-1 the weights are P y, and the error of leaving out
    design i is (P y)_i / P_ii (Dubrule, "Cross validation of kriging in a unique neighborhood",
    1983).

    Args:
        inverse: (N,) reciprocal eigenvalues of the covariance C.
        vectors: (N, N) its eigenvectors, in columns.
        basis: (N, 2) B.
        y: (N,) values.
    """
    projected = vectors @ (inverse[:, None] * (vectors.T @ basis))
    # The scores may be the same for all designs: then the basis has one dimension only.
    inner = np.linalg.pinv(basis.T @ projected, hermitian=True)
    coefficients = inner @ (projected.T @ y)
    weights = vectors @ (inverse * (vectors.T @ y)) - projected @ coefficients
    diagonal = (vectors**2) @ inverse - ((projected @ inner) * projected).sum(axis=1)
    return coefficients, weights, weights / np.maximum(diagonal, 1e-300)
