"""Straight-through quantization of epitomes and activations."""

from __future__ import annotations

from functools import lru_cache
from math import erf, exp, pi, sqrt

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from epim_nas.errors import InputError

_RMS_BITS = 5
"""Up to here the step follows the distribution; beyond, clipping costs more than rounding."""


def weight_levels(bits: int) -> int:
    """Largest integer of a symmetric ``bits``-bit weight: 1 for 2 bits (ternary), 3, 7, ..."""
    if not 2 <= bits <= 32:
        raise InputError("weight_bits", f"got {bits}", "2 to 32, or none for floating point")
    return int(2 ** (bits - 1) - 1)


@lru_cache(maxsize=32)
@torch.compiler.assume_constant_result
def gaussian_step(levels: int) -> float:
    """The step, in standard deviations, that quantizes a normal variable with least error.

    The quantizer has the values -levels..levels times the step. Its mean squared error is
    minimised numerically (the classical uniform quantizer of Max, 1960, with a zero level).
    """

    def error(step: float) -> float:
        # E[(x - q)^2] = 1 - 2 E[x q] + E[q^2], with the decision thresholds (i - 1/2) step. As
        # sums over thresholds: q steps up by `step` at each one.
        thresholds = (np.arange(1, levels + 1) - 0.5) * step
        density = np.array([exp(-t * t / 2) / sqrt(2 * pi) for t in thresholds])
        tail = np.array([0.5 * (1 - erf(t / sqrt(2))) for t in thresholds])
        square_steps = (2 * np.arange(1, levels + 1) - 1) * step * step
        return float(1 - 4 * step * density.sum() + 2 * (square_steps * tail).sum())

    result = minimize_scalar(
        error, bounds=(1e-3 / levels, 4.0), method="bounded", options={"xatol": 1e-8}
    )
    return float(result.x)


def weight_step(epitome: Tensor, bits: int) -> Tensor:
    """The quantization step of every output channel, (Oe, 1, 1, 1).

    A channel's scale folds into the normalisation behind the crossbar. Up to 5 bits the step is
    the root mean square times :func:`gaussian_step`; with more bits the range is the maximum.
    """
    levels = weight_levels(bits)
    flat = epitome.detach().float().flatten(1)
    if bits <= _RMS_BITS:
        step = flat.square().mean(1).sqrt() * gaussian_step(levels)
    else:
        step = flat.abs().amax(1) / levels
    tiny = torch.finfo(torch.float32).tiny
    shape = (-1, *([1] * (epitome.dim() - 1)))
    return step.clamp(min=tiny).reshape(shape).to(epitome.dtype)


def quantize_weight(epitome: Tensor, bits: int | None) -> Tensor:
    """``epitome`` rounded to ``bits`` bits; the gradient passes straight through.

    Args:
        epitome: (Oe, ...), quantized per output channel.
        bits: 2 (ternary) to 32, None for no quantization.
    """
    if bits is None:
        return epitome
    levels, step = weight_levels(bits), weight_step(epitome, bits)
    rounded = torch.clamp(torch.round(epitome.detach() / step), -levels, levels) * step
    return epitome + (rounded - epitome.detach())


class _QuantizeActivation(torch.autograd.Function):
    """Learned step size quantization (LSQ; Esser et al., ICLR 2020, equations 1-4)."""

    @staticmethod
    def forward(ctx, x, step, low, high):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, step)
        ctx.range = (low, high)
        # In place after the first step: activations are large, and memory is what this costs.
        return (x / step).round_().clamp_(low, high).mul_(step)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, step = ctx.saved_tensors
        low, high = ctx.range
        ratio = x / step
        inside = (ratio > low) & (ratio < high)
        grad_x = grad * inside
        grad_step = None
        if ctx.needs_input_grad[1]:
            # Outside the range the output is low or high times the step.
            slope = torch.clamp(torch.round(ratio), low, high) - ratio * inside
            scale = 1.0 / sqrt(x.numel() * max(high, 1))
            grad_step = (grad.float() * slope.float()).sum() * scale
        return grad_x, grad_step, None, None


class ActivationQuantizer(nn.Module):
    """Quantizes a layer's input to ``bits`` bits with one learned step.

    The step and the sign are taken from the first batch that passes (unsigned where nothing is
    negative, as behind a ReLU), by the least squared error over a set of clipping ranges, and the
    step is trained from there.

    Attributes:
        bits: bits of an activation.
        step: () the quantization step; 0 until the first batch.
        signed: () whether negative values exist.
    """

    step: nn.Parameter
    signed: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        if not 2 <= bits <= 32:
            raise InputError("activation_bits", f"got {bits}", "2 to 32, or none")
        self.bits = bits
        self.step = nn.Parameter(torch.zeros(()))
        self.register_buffer("signed", torch.zeros((), dtype=torch.bool))
        self._ready = False

    def range(self, signed: bool) -> tuple[int, int]:
        """Smallest and largest integer."""
        if signed:
            top = 2 ** (self.bits - 1) - 1
            return -top, top
        return 0, 2**self.bits - 1

    def reset(self) -> None:
        """Forget step and sign; the next batch sets them."""
        with torch.no_grad():
            self.step.zero_()
        self._ready = False

    def calibrate(self, x: Tensor) -> None:
        """Set step and sign from a batch of activations."""
        with torch.no_grad():
            signed = bool((x < 0).any())
            step = activation_step(x, *self.range(signed))
            self.signed.fill_(signed)
            self.step.copy_(step)
        self._set_ready(signed)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` rounded to the grid, same shape and dtype."""
        if not self._ready:
            if float(self.step.detach()) != 0:
                self._set_ready(bool(self.signed))
            else:
                self.calibrate(x.detach())
        low, high = self._range
        return _QuantizeActivation.apply(x, self.step.to(x.dtype).abs(), low, high)

    def _set_ready(self, signed: bool) -> None:
        self._range = self.range(signed)
        self._ready = True

    def _load_from_state_dict(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        self._ready = False
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        """The bits, for ``repr``."""
        return f"bits={self.bits}"


def activation_step(x: Tensor, low: int, high: int, samples: int = 65536) -> Tensor:
    """The step () of least squared error on (a sample of) ``x`` for the integers low..high."""
    flat = x.reshape(-1).float()
    if flat.numel() > samples:
        flat = flat[:: flat.numel() // samples]
    peak = flat.abs().amax()
    if not torch.isfinite(peak):
        raise InputError(
            "activations",
            "got NaN or Inf",
            "finite activations",
            "Check the weights and the normalisation of the data.",
        )
    if peak == 0:
        return torch.ones((), device=x.device)
    steps = peak / high * torch.linspace(0.1, 1.0, 46, device=x.device)
    grid = steps[:, None]
    errors = (torch.clamp(torch.round(flat / grid), low, high) * grid - flat).square().mean(1)
    return steps[errors.argmin()]
