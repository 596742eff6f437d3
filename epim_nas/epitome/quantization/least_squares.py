"""The quantization step of least squared error, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 2**21
"""Thresholds that are sorted at once (below 200 MB)."""


def least_squares_step(values: Tensor, counts: Tensor | None, levels: int) -> Tensor:
    """(blocks,) the steps s that minimise sum_i n_i (x_i - s q_i)^2, q_i = -levels..levels.

    With integers q fixed, the best step is A / B and the error sum_i n_i x_i^2 - A^2 / B, where
    A = sum_i n_i x_i q_i and B = sum_i n_i q_i^2. Rounding to the nearest integer is the best q of
    a step, so the best pair is among the integers that rounding gives while s falls from infinity
    to 0. |q_i| goes from k - 1 to k where s passes |x_i| / (k - 1/2); that adds n_i |x_i| to A and
    n_i (2k - 1) to B. Sorting these thresholds visits every q, and the largest A^2 / B wins.

    Args:
        values: (blocks, elements) x.
        counts: (blocks, elements) n >= 0, e.g. how often the weight repeats an element; None: 1.
        levels: the largest integer. The work grows with levels * elements; :func:`clipping_step`
            does without the factor.

    Returns:
        The steps; 0 for a block of zeros.
    """
    rows = max(1, _CHUNK // max(1, values.shape[1] * levels))
    parts = values.split(rows)
    part_counts = [None] * len(parts) if counts is None else counts.split(rows)
    return torch.cat([_best_step(x, n, levels) for x, n in zip(parts, part_counts, strict=True)])


def _best_step(values: Tensor, counts: Tensor | None, levels: int) -> Tensor:
    x = values.abs().double()
    n = torch.ones_like(x) if counts is None else counts.double()
    odd = 2 * torch.arange(1, levels + 1, device=values.device, dtype=torch.double) - 1
    # Half the thresholds; times what B gains, n (2k - 1), they are what A gains, n |x|.
    thresholds, order = (x[:, :, None] / odd).flatten(1).sort(dim=1, descending=True)
    b_gained = (n[:, :, None] * odd).flatten(1).gather(1, order)
    a, b = (thresholds * b_gained).cumsum(1), b_gained.cumsum(1)
    best = torch.where(b > 0, a.square() / b, 0).argmax(1, keepdim=True)
    numerator, denominator = a.gather(1, best)[:, 0], b.gather(1, best)[:, 0]
    return torch.where(denominator > 0, numerator / denominator, 0).to(values.dtype)


def clipping_step(values: Tensor, counts: Tensor | None, levels: int) -> Tensor:
    """(blocks,) steps of small squared error: the best of 36 clipping ranges, refined once.

    With many levels the error is flat in the step, and clipping little is best: ranges from 0.3
    to 1 times the largest magnitude are tried. Arguments and result as :func:`least_squares_step`.
    """
    x = values.double()
    count = torch.ones_like(x) if counts is None else counts.double()
    peak = (x.abs() * (count > 0)).amax(1, keepdim=True) / levels
    peak = peak.clamp(min=torch.finfo(torch.float32).tiny)
    best, least = peak, torch.full_like(peak, torch.inf)
    for fraction in torch.linspace(0.3, 1.0, 36).tolist():
        step = peak * fraction
        integers = torch.clamp(torch.round(x / step), -levels, levels)
        error = (count * (x - integers * step).square()).sum(1, keepdim=True)
        best = torch.where(error < least, step, best)
        least = torch.minimum(error, least)
    integers = torch.clamp(torch.round(x / best), -levels, levels)
    square = (count * integers.square()).sum(1)
    refined = (count * x * integers).sum(1) / square.clamp(min=torch.finfo(torch.double).tiny)
    return torch.where(square > 0, refined, 0).to(values.dtype)
