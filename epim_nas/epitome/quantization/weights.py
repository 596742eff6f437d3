"""Quantization of an epitome's elements to symmetric integers, with straight-through gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from epim_nas.epitome.plan import SamplingPlan
from epim_nas.epitome.quantization.options import Quantization
from epim_nas.epitome.quantization.steps import StepEstimator, weight_levels
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError

_DEFAULT = Quantization()


def weight_step(
    epitome: Tensor,
    bits: int,
    plan: SamplingPlan | None = None,
    options: Quantization = _DEFAULT,
) -> Tensor:
    """The quantization steps by the rule of the options, whether or not they are learned.

    Args:
        epitome: (Oe, Ie, He, We).
        bits: 2 to 32.
        plan: which weight elements it fills; None if every element fills one.
        options: what shares a step, and its rule.

    Returns:
        Steps in a shape that broadcasts with the epitome: (1, 1, 1, 1) for a tensor,
        (Oe, 1, 1, 1) for channels, (Oe, Ie, 1, 1) for crossbars.
    """
    return StepEstimator(bits, EpitomeShape(*epitome.shape), plan, options).spread(epitome)


def quantize_weight(
    epitome: Tensor,
    bits: int | None,
    plan: SamplingPlan | None = None,
    options: Quantization = _DEFAULT,
) -> Tensor:
    """``epitome`` rounded to ``bits`` bits by the rule; the gradient passes straight through.

    Args:
        epitome: (Oe, Ie, He, We).
        bits: 2 (ternary) to 32, None for no quantization.
        plan: which weight elements it fills; None if every element fills one.
        options: what shares a step, and its rule. A learned step needs a
            :class:`WeightQuantizer`.
    """
    if bits is None:
        return epitome
    return _rounded(epitome, weight_levels(bits), weight_step(epitome, bits, plan, options))


def _rounded(epitome: Tensor, levels: int, step: Tensor) -> Tensor:
    rounded = torch.clamp(torch.round(epitome.detach() / step), -levels, levels) * step
    return _with_gradient_of(epitome, rounded)


class WeightQuantizer(nn.Module):
    """Quantizes the epitome of one layer.

    Without a learned step it has no state: the step follows the elements. A learned step starts
    from the rule at the first use, or at :meth:`calibrate`, and is trained from there.

    Args:
        bits: 2 (ternary) to 32, None for no quantization.
        plan: the layer's sampling plan.
        options: what shares a step, and where it comes from.

    Attributes:
        step: parameter (blocks,), 0 until the first use; None where it is not learned.

    Raises:
        InputError: bits out of range, or a crossbar granularity without its block.
    """

    step: nn.Parameter | None

    def __init__(
        self, bits: int | None, plan: SamplingPlan, options: Quantization = _DEFAULT
    ) -> None:
        super().__init__()
        self.bits = bits
        self.options = options
        self._rule = None if bits is None else StepEstimator(bits, plan.shape, plan, options)
        self.step = None
        if self._rule is not None and options.learned_weight_step:
            self.step = nn.Parameter(torch.zeros(self._rule.blocks.count))
        self._ready = False

    def forward(self, epitome: Tensor) -> Tensor:
        """``epitome`` (Oe, Ie, He, We) rounded to its grid."""
        if self._rule is None:
            return epitome
        levels = self._rule.levels
        if self.step is None:
            return _rounded(epitome, levels, self._rule.spread(epitome))
        self._prepare(epitome)
        # LSQ, section 2.2: the gradient of a step is scaled by 1 / sqrt(elements * levels).
        sizes = torch.as_tensor(self._rule.blocks.sizes, device=self.step.device)
        scaled = self.step * (sizes * levels).to(self.step.dtype).rsqrt()
        learned = _with_gradient_of(scaled, self.step)
        step = self._rule.blocks.spread(_positive(learned)).to(epitome.dtype)
        # Equations 3 and 5: only the rounding is passed straight through, not the clipping.
        clipped = torch.clamp(epitome / step, -levels, levels)
        return _with_gradient_of(clipped, clipped.round()) * step

    @torch.no_grad()
    def calibrate(self, epitome: Tensor) -> None:
        """Start a learned step anew, from the rule.

        Raises:
            InputError: NaN or Inf in the epitome.
        """
        if self._rule is None or self.step is None:
            return
        _check_finite(epitome)
        self.step.copy_(self._rule.of(epitome))
        self._ready = True

    @torch.no_grad()
    def steps(self, epitome: Tensor) -> Tensor:
        """The steps of ``epitome``, in a shape that broadcasts with it (:func:`weight_step`).

        Raises:
            InputError: the layer's weights are not quantized, or NaN or Inf in the epitome.
        """
        if self._rule is None:
            raise InputError("weight_bits", "is none, so that there are no steps", "2 to 32")
        _check_finite(epitome)
        if self.step is None:
            return self._rule.spread(epitome)
        self._prepare(epitome)
        return self._rule.blocks.spread(_positive(self.step)).to(epitome.dtype)

    @torch.no_grad()
    def integers(self, epitome: Tensor) -> Tensor:
        """(Oe, Ie, He, We) int64: what the cells hold; times :meth:`steps` it is the weight.

        Raises:
            InputError: as :meth:`steps`.
        """
        steps = self.steps(epitome)
        assert self._rule is not None
        levels = self._rule.levels
        # Float32 has no integers next to the bounds of many bits.
        return torch.clamp(torch.round(epitome / steps).double(), -levels, levels).long()

    def _prepare(self, epitome: Tensor) -> None:
        if not self._ready:
            assert self.step is not None
            if bool((self.step.detach() == 0).all()):
                self.calibrate(epitome.detach())
            self._ready = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._ready = False
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        """The bits and the granularity, for ``repr``."""
        return f"bits={self.bits}, granularity={self.options.granularity}"


def _with_gradient_of(source: Tensor, value: Tensor) -> Tensor:
    """``value``, exactly, with the gradient of ``source`` (the straight-through estimator)."""
    return value.detach() + (source - source.detach())


def _positive(step: Tensor) -> Tensor:
    return step.abs().clamp(min=torch.finfo(torch.float32).tiny)


def _check_finite(epitome: Tensor) -> None:
    if not torch.isfinite(epitome).all():
        raise InputError("epitome", "has NaN or Inf in it", "finite values")
