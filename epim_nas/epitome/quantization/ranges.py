"""Quantization steps from the range of the elements: their maximum, or their distribution."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import erf, erfc, exp, pi, sqrt

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

StepRule = Callable[[Tensor, "Tensor | None"], Tensor]
"""(values, counts), both (blocks, elements) -> steps (blocks,)."""

StepOfLevels = Callable[[int], float]

_SUMMED_LEVELS = 255
"""Up to here the error is summed level by level; with more it is that of a fine grid."""


def _constant(function: StepOfLevels) -> StepOfLevels:
    """As ``torch.compiler.assume_constant_result``, which imports the whole compiler: a second."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@lru_cache(maxsize=32)
@_constant
def gaussian_step(levels: int) -> float:
    """The step, in standard deviations, that quantizes a normal variable with least error.

    The quantizer has the values -levels..levels times the step. Its mean squared error is
    minimised numerically (the classical uniform quantizer of Max, 1960, with a zero level).
    """

    def error(largest: float) -> float:
        step = largest / levels
        if levels > _SUMMED_LEVELS:
            return _error_of_fine_steps(step, largest)
        # E[(x - q)^2] = 1 - 2 E[x q] + E[q^2], with the decision thresholds (i - 1/2) step. As
        # sums over thresholds: q steps up by `step` at each one.
        thresholds = (np.arange(1, levels + 1) - 0.5) * step
        density = np.array([exp(-t * t / 2) / sqrt(2 * pi) for t in thresholds])
        tail = np.array([0.5 * (1 - erf(t / sqrt(2))) for t in thresholds])
        square_steps = (2 * np.arange(1, levels + 1) - 1) * step * step
        return float(1 - 4 * step * density.sum() + 2 * (square_steps * tail).sum())

    # Over the largest value, not the step: it is of the same order whatever the levels.
    result = minimize_scalar(error, bounds=(0.1, 12.0), method="bounded", options={"xatol": 1e-8})
    return float(result.x) / levels


def _error_of_fine_steps(step: float, largest: float) -> float:
    """The mean squared error where the density hardly changes within a step."""
    density, tail = exp(-largest * largest / 2) / sqrt(2 * pi), 0.5 * erfc(largest / sqrt(2))
    rounding = step * step / 12 * (1 - 2 * tail)
    # 2 E[(x - largest)^2; x > largest]
    return rounding + 2 * ((1 + largest * largest) * tail - largest * density)


def max_step(values: Tensor, counts: Tensor | None, levels: int) -> Tensor:
    """(blocks,) steps at which the largest magnitude becomes the largest integer.

    Args:
        values: (blocks, elements).
        counts: (blocks, elements) how often an element counts; those that count 0 are left out.
            None: each counts once.
        levels: the largest integer.
    """
    magnitude = values.abs() if counts is None else values.abs() * (counts > 0)
    return magnitude.amax(1) / levels


def rms_step(values: Tensor, counts: Tensor | None, factor: float) -> Tensor:
    """(blocks,) the root mean square times a factor, that of :func:`gaussian_step`.

    Other arguments as :func:`max_step`.
    """
    if counts is None:
        mean_square = values.square().mean(1)
    else:
        mean_square = (values.square() * counts).sum(1) / counts.sum(1).clamp(min=1)
    return mean_square.sqrt() * factor


def overlap_step(
    rule: StepRule,
    values: Tensor,
    repeats: Tensor,
    mean_repeats: float,
    weights: tuple[float, float],
) -> Tensor:
    """(blocks,) weights[0] times the overlapped elements' step + weights[1] times the others'.

    Elements overlap where the weight repeats them more often than the mean (EPIM, arXiv
    2311.07620). Where a block has elements of one kind only, their step stands for both.

    Args:
        rule: the step of (values, counts).
        values: (blocks, elements).
        repeats: (blocks, elements) how often the weight repeats an element; 0 leaves it out.
        mean_repeats: their mean over the epitome's used elements.
        weights: (overlapped, rest).
    """
    kinds = repeats > mean_repeats, (repeats > 0) & (repeats <= mean_repeats)
    overlapped, rest = (rule(values, kind.to(values.dtype)) for kind in kinds)
    has_overlapped, has_rest = (kind.any(1) for kind in kinds)
    both = weights[0] * torch.where(has_overlapped, overlapped, rest)
    return both + weights[1] * torch.where(has_rest, rest, overlapped)
