"""The quantization steps of an epitome's blocks by a rule."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from epim_nas.epitome.plan import SamplingPlan
from epim_nas.epitome.quantization.blocks import Blocks
from epim_nas.epitome.quantization.least_squares import clipping_step, least_squares_step
from epim_nas.epitome.quantization.options import Quantization
from epim_nas.epitome.quantization.ranges import (
    StepRule,
    gaussian_step,
    max_step,
    overlap_step,
    rms_step,
)
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError

_DISTRIBUTION_BITS = 5
"""Up to here the step follows the distribution; beyond, clipping costs more than rounding."""


def weight_levels(bits: int) -> int:
    """Largest integer of a symmetric ``bits``-bit weight: 1 for 2 bits (ternary), 3, 7, ...

    Raises:
        InputError: fewer than 2 or more than 32 bits.
    """
    if isinstance(bits, bool) or not 2 <= bits <= 32:
        raise InputError("weight_bits", f"got {bits}", "2 to 32, or none for floating point")
    return int(2 ** (bits - 1) - 1)


class StepEstimator:
    """Computes the steps of one layer's epitome.

    Args:
        bits: bits of an element, 2 to 32.
        shape: the epitome's size.
        plan: which weight elements it fills; None if every element fills one.
        options: what shares a step, and its rule.

    Attributes:
        levels: the largest integer.
        blocks: the elements that share a step.

    Raises:
        InputError: bits out of range, or a crossbar granularity without its block.
    """

    def __init__(
        self, bits: int, shape: EpitomeShape, plan: SamplingPlan | None, options: Quantization
    ) -> None:
        self.levels = weight_levels(bits)
        self.blocks = Blocks.of(shape, options)
        self._plan = plan
        self._options = options
        self._rule = _rule(options, bits, self.levels)
        self._mean_repeats = 1.0
        if plan is not None and options.overlap_weights is not None:
            self._mean_repeats = float(plan.repeats[plan.repeats > 0].mean())

    def of(self, epitome: Tensor) -> Tensor:
        """(blocks,) float32 steps of ``epitome`` (Oe, Ie, He, We)."""
        options, plan = self._options, self._plan
        values = self.blocks.gather(epitome.detach().float())
        weights = options.overlap_weights
        if plan is not None and weights is not None:
            repeats = self._repeats(plan, values)
            step = overlap_step(self._rule, values, repeats, self._mean_repeats, weights)
        else:
            counts = None
            if plan is not None and options.by_repeats:
                counts = self._repeats(plan, values)
            elif self.blocks.ragged:
                counts = self.blocks.gather(torch.ones_like(epitome, dtype=torch.float32))
            step = self._rule(values, counts)
            if weights is not None:
                step = step * sum(weights)
        return step.clamp(min=torch.finfo(torch.float32).tiny)

    def spread(self, epitome: Tensor) -> Tensor:
        """:meth:`of`, in a shape that broadcasts with the epitome, and of its type."""
        return self.blocks.spread(self.of(epitome)).to(epitome.dtype)

    def _repeats(self, plan: SamplingPlan, like: Tensor) -> Tensor:
        counts = torch.as_tensor(plan.repeats, dtype=like.dtype, device=like.device)
        return self.blocks.gather(counts)


def _rule(options: Quantization, bits: int, levels: int) -> StepRule:
    name = options.weight_range
    if name == "auto":
        name = "gaussian" if bits <= _DISTRIBUTION_BITS else "max"
    if name == "gaussian":
        return partial(rms_step, factor=gaussian_step(levels))
    if name == "max":
        return partial(max_step, levels=levels)
    # The exact search grows with the levels, and with many of them has little to find.
    exact = bits <= _DISTRIBUTION_BITS
    return partial(least_squares_step if exact else clipping_step, levels=levels)
