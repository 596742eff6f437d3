"""Quantization of a layer's inputs: ranges from percentiles or least squares, or learned."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import hardtanh_

from epim_nas.epitome.quantization.options import Quantization
from epim_nas.errors import InputError

_DEFAULT = Quantization()


class _QuantizeActivation(torch.autograd.Function):
    """Learned step size quantization (LSQ; Esser et al., ICLR 2020, equations 1-4)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, step, low, high):  # type: ignore[no-untyped-def]
        # In place after the first step: activations are large, and memory is what this costs. For
        # `torch.func.vmap` there is a rule for this clamp, and none for `clamp_`.
        return hardtanh_((x / step).round_(), low, high).mul_(step)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        x, step, *ctx.range = inputs
        ctx.save_for_backward(x, step)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, step = ctx.saved_tensors
        low, high = ctx.range
        ratio = x / step
        # One fused pass: the gradient where low < ratio < high, else 0.
        grad_x = torch.ops.aten.hardtanh_backward(grad, ratio, low, high)
        grad_step = None
        if ctx.needs_input_grad[1]:
            # Inside the range the slope is round(ratio) - ratio; outside it the output is low or
            # high times the step, and the slope is that integer, the clamped ratio. In place:
            # these passes over large activations are what a training step of a design adds.
            clamped = hardtanh_(ratio, low, high)
            outside = (grad - grad_x).mul_(clamped).sum(dtype=torch.float32)
            inside = clamped.round().sub_(clamped).mul_(grad).sum(dtype=torch.float32)
            grad_step = (inside + outside) / sqrt(x.numel() * max(high, 1))
        return grad_x, grad_step, None, None


class ActivationQuantizer(nn.Module):
    """Quantizes a layer's input to ``bits`` bits with one step.

    The step and the sign are taken from the first batch that passes (unsigned where nothing is
    negative, as behind a ReLU), by the options' rule: the least squared error over a set of
    clipping ranges, or a percentile. A learned step is trained from there (LSQ), another stays.

    Args:
        bits: bits of an activation, 2 to 32.
        options: the rule, and whether the step is learned.

    Attributes:
        bits: bits of an activation.
        options: the rule, and whether the step is learned.
        step: () the quantization step; 0 until the first batch.
        signed: () whether negative values exist.
    """

    step: nn.Parameter
    signed: Tensor

    def __init__(self, bits: int, options: Quantization = _DEFAULT) -> None:
        super().__init__()
        if isinstance(bits, bool) or not 2 <= bits <= 32:
            raise InputError("activation_bits", f"got {bits}", "2 to 32, or none")
        self.bits = bits
        self.options = options
        self.step = nn.Parameter(torch.zeros(()), requires_grad=options.learned_activation_step)
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
            low, high = self.range(signed)
            if self.options.activation_range == "percentile":
                step = percentile_step(x, high, self.options.percentile)
            else:
                step = activation_step(x, low, high)
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
    """The step () of least squared error on (a sample of) ``x`` for the integers low..high.

    Raises:
        InputError: NaN or Inf in ``x``.
    """
    flat = _sample(x, samples)
    peak = flat.abs().amax()
    if peak == 0:
        return torch.ones((), device=x.device)
    steps = peak / high * torch.linspace(0.1, 1.0, 46, device=x.device)
    grid = steps[:, None]
    errors = (torch.clamp(torch.round(flat / grid), low, high) * grid - flat).square().mean(1)
    return steps[errors.argmin()]


def percentile_step(x: Tensor, high: int, percentile: float, samples: int = 65536) -> Tensor:
    """The step () at which a percentile of the magnitudes of ``x`` is the integer ``high``.

    Zeros count, as many as a ReLU leaves. Where the percentile is 0, the maximum takes its place.

    Args:
        x: activations.
        high: the largest integer.
        percentile: above 0, to 100 (the maximum).
        samples: values of ``x`` that are looked at, about.

    Raises:
        InputError: NaN or Inf in ``x``.
    """
    magnitude = _sample(x, samples).abs()
    top = torch.quantile(magnitude, percentile / 100)
    peak = magnitude.amax()
    if peak == 0:
        return torch.ones((), device=x.device)
    return torch.where(top > 0, top, peak) / high


def _sample(x: Tensor, samples: int) -> Tensor:
    """Evenly spaced values of ``x``, float32."""
    flat = x.reshape(-1).float()
    if flat.numel() > samples:
        flat = flat[:: flat.numel() // samples]
    if not torch.isfinite(flat).all():
        raise InputError(
            "activations",
            "got NaN or Inf",
            "finite activations",
            "Check the weights and the normalisation of the data.",
        )
    return flat
