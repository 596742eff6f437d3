"""Layers whose weight is sampled from an epitome: drop-ins for ``nn.Conv2d`` and ``nn.Linear``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from epim_nas.epitome.functional import epitome_conv2d, epitome_linear
from epim_nas.epitome.output_projection import project_outputs
from epim_nas.epitome.plan import SamplingPlan
from epim_nas.epitome.quantization import (
    ActivationQuantizer,
    Quantization,
    QuantizationRule,
    WeightQuantizer,
    quantization_for,
)
from epim_nas.epitome.sampling import expand, project
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError

_DEFAULT_QUANTIZATION = Quantization()
ORDER_BUFFERS = ("out_order", "in_order")
"""Buffers of an epitome layer that are there only where its channels are reordered."""


class _EpitomeLayer(nn.Module):
    """What convolutions and linear layers share: the epitome, its plan and its bits."""

    epitome: nn.Parameter
    bias: nn.Parameter | None

    def _set_up(
        self,
        plan: SamplingPlan,
        bias: bool,
        weight_bits: int | None,
        activation_bits: int | None,
        quantization: Quantization | QuantizationRule,
        device: Any,
        dtype: Any,
    ) -> None:
        quantization = quantization_for(quantization, plan, weight_bits)
        self.plan = plan
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        options = {"device": device, "dtype": dtype}
        self.epitome = nn.Parameter(torch.empty(plan.shape.as_tuple, **options))
        if bias:
            self.bias = nn.Parameter(torch.empty(plan.conv_shape[0], **options))
        else:
            self.register_parameter("bias", None)
        self.weight_quantizer = WeightQuantizer(weight_bits, plan, quantization)
        self.activation = (
            None if activation_bits is None else ActivationQuantizer(activation_bits, quantization)
        )
        if device is not None:
            self.weight_quantizer.to(device)
            if self.activation is not None:
                self.activation.to(device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random start, with the variance of ``nn.Conv2d`` for the sampled weight."""
        _, in_channels, kernel_h, kernel_w = self.plan.conv_shape
        bound = 1 / math.sqrt(in_channels * kernel_h * kernel_w)
        nn.init.uniform_(self.epitome, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def quantized_epitome(self) -> Tensor:
        """(Oe, Ie, He, We) what is programmed into the crossbars."""
        quantized: Tensor = self.weight_quantizer(self.epitome)
        return quantized

    @torch.no_grad()
    def project_from(
        self, weight: Tensor, importance: Tensor | None = None, covariance: Tensor | None = None
    ) -> None:
        """Start from a trained dense weight by least squares.

        By the error of the weight (:func:`.sampling.project`), or, with a covariance, by that of
        the layer's outputs (:func:`.output_projection.project_outputs`).

        Args:
            weight: the dense weight, of the convolution's (O, I/groups, Kh, Kw) or of a linear
                layer's (O, I).
            importance: optional importance of its elements, of a shape that broadcasts to the
                convolution's; with a covariance (O, 1, 1, 1).
            covariance: (groups, n, n) of the layer's inputs, n = I/groups * Kh * Kw.

        Raises:
            InputError: the weight has another shape, or NaN or Inf in it.
        """
        if weight.numel() != math.prod(self.plan.conv_shape):
            raise InputError("weight", f"got {tuple(weight.shape)}", f"{self.plan.conv_shape}")
        if not torch.isfinite(weight).all():
            raise InputError("weight", "has NaN or Inf in it", "finite values")
        shape = self.plan.conv_shape
        weight = weight.reshape(shape)
        if importance is not None and importance.dim() < 4:  # of a linear layer
            importance = importance[..., None, None]
        if covariance is not None:
            epitome = project_outputs(weight, self.plan, covariance, importance=importance)
        elif importance is not None:
            epitome = project(weight, self.plan, importance.expand(shape))
        else:
            epitome = project(weight, self.plan)
        self.epitome.copy_(epitome)
        self.weight_quantizer.calibrate(self.epitome)

    def reorder(
        self, out_order: Sequence[int] | None, in_order: Sequence[Sequence[int]] | None
    ) -> None:
        """Put other channels at the plan's positions (:meth:`.SamplingPlan.reordered`).

        The epitome stays as it is: project again, or load its weights. The orders become buffers of
        the layer, so that they travel with its state.

        Raises:
            InputError: not a permutation, or one that the hardware cannot follow.
        """
        self.plan = self.plan.reordered(out_order, in_order)
        for name in ORDER_BUFFERS:
            order = getattr(self.plan, name)
            if order is None:
                self._buffers.pop(name, None)
            else:
                values = torch.tensor(order, dtype=torch.int32, device=self.epitome.device)
                self.register_buffer(name, values)

    def _load_from_state_dict(  # type: ignore[no-untyped-def]
        self, state_dict, prefix, *args, **kwargs
    ) -> None:
        if prefix + "epitome" in state_dict:
            # An epitome means nothing without the order that it was made for.
            orders = [state_dict.get(prefix + name) for name in ORDER_BUFFERS]
            self.reorder(*(None if order is None else order.tolist() for order in orders))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _input(self, x: Tensor) -> Tensor:
        return x if self.activation is None else self.activation(x)

    def _describe(self) -> str:
        plan = self.plan
        shape = "dense" if plan.is_identity else f"epitome={plan.shape}"
        wrap = (", wrap=True" if plan.wrap else "") + (", wrap_in=True" if plan.wrap_in else "")
        return f"{shape}{wrap}, weight_bits={self.weight_bits}"


class EpitomeConv2d(_EpitomeLayer):
    """A drop-in for ``nn.Conv2d`` whose weight is sampled from an epitome.

    A wrapped layer computes only the distinct output channels and replicates them; with wrapped
    inputs it sums the input slabs and convolves once.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: kernel (height, width) or one number.
        stride: stride, as in ``nn.Conv2d``.
        padding: padding or ``"same"``, ``"valid"``, as in ``nn.Conv2d``.
        dilation: dilation, as in ``nn.Conv2d``.
        groups: groups, as in ``nn.Conv2d``.
        bias: whether there is a bias (one value per output channel, never wrapped).
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        shape: size of the epitome.
        wrap: output-channel wrapping.
        wrap_in: input-channel wrapping.
        weight_bits: bits of the epitome's elements, None for floating point.
        activation_bits: bits of the layer's input, None for floating point.
        patch: (Op, Ip), by default the epitome's channels.
        quantization: how weights and inputs are quantized, or a rule that says it of a plan.
        device: device of the parameters.
        dtype: type of the parameters.

    Attributes:
        epitome: parameter (Oe, Ie, He, We).
        plan: the :class:`SamplingPlan`.

    Raises:
        InputError: the epitome does not fit the convolution, or bits are out of range.

    Example:
        >>> layer = EpitomeConv2d(16, 32, 3, padding=1, shape=EpitomeShape(16, 8, 3, 3))
        >>> layer.weight.shape, layer.plan.rounds
        (torch.Size([32, 16, 3, 3]), 4)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        shape: EpitomeShape,
        wrap: bool = False,
        wrap_in: bool = False,
        weight_bits: int | None = None,
        activation_bits: int | None = None,
        patch: tuple[int, int] | None = None,
        quantization: Quantization | QuantizationRule = _DEFAULT_QUANTIZATION,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise InputError(
                "groups", f"got {groups}", f"a divisor of {in_channels} and {out_channels} channels"
            )
        if padding_mode not in ("zeros", "reflect", "replicate", "circular"):
            raise InputError(
                "padding_mode", f"got `{padding_mode}`", "zeros, reflect, replicate, circular"
            )
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise InputError("padding", f"got `{padding}`", "same, valid, or numbers")
            if padding == "same" and _pair(stride) != (1, 1):
                raise InputError("padding", "`same` with a stride", "`same` with stride 1")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size: tuple[int, int] = _pair(kernel_size)
        self.stride: tuple[int, int] = _pair(stride)
        self.dilation: tuple[int, int] = _pair(dilation)
        self.padding: tuple[int, int] | str = (
            padding if isinstance(padding, str) else _pair(padding)
        )
        self.groups = groups
        self.padding_mode = padding_mode
        conv_shape = (out_channels, in_channels // groups, *self.kernel_size)
        plan = SamplingPlan.build(
            conv_shape, shape, wrap, patch=patch, groups=groups, wrap_in=wrap_in
        )
        self._set_up(plan, bias, weight_bits, activation_bits, quantization, device, dtype)

    @property
    def weight(self) -> Tensor:
        """(O, I/groups, Kh, Kw) the expanded, quantized weight the layer convolves with."""
        return expand(self.quantized_epitome, self.plan)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` (N, C, H, W) or (C, H, W)."""
        return epitome_conv2d(self, self._input(x), self.quantized_epitome, self.plan)

    def extra_repr(self) -> str:
        """The geometry, for ``repr``."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, {self._describe()}"
        )


class EpitomeLinear(_EpitomeLayer):
    """A drop-in for ``nn.Linear`` whose weight is sampled from an epitome.

    It is the 1x1 case of :class:`EpitomeConv2d`; the epitome is (Oe, Ie, He, We) all the same.

    Args:
        in_features: features of the input.
        out_features: features of the output.
        bias: whether there is a bias.
        shape: size of the epitome.
        wrap: output-channel wrapping.
        wrap_in: input-channel wrapping.
        weight_bits: bits of the epitome's elements, None for floating point.
        activation_bits: bits of the layer's input, None for floating point.
        patch: (Op, Ip), by default the epitome's channels.
        quantization: how weights and inputs are quantized, or a rule that says it of a plan.
        device: device of the parameters.
        dtype: type of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        shape: EpitomeShape,
        wrap: bool = False,
        wrap_in: bool = False,
        weight_bits: int | None = None,
        activation_bits: int | None = None,
        patch: tuple[int, int] | None = None,
        quantization: Quantization | QuantizationRule = _DEFAULT_QUANTIZATION,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        plan = SamplingPlan.build(
            (out_features, in_features, 1, 1), shape, wrap, patch=patch, wrap_in=wrap_in
        )
        self._set_up(plan, bias, weight_bits, activation_bits, quantization, device, dtype)

    @property
    def weight(self) -> Tensor:
        """(O, I) the expanded, quantized weight."""
        return expand(self.quantized_epitome, self.plan).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x`` (..., I)."""
        return epitome_linear(self.bias, self._input(x), self.quantized_epitome, self.plan)

    def extra_repr(self) -> str:
        """The geometry, for ``repr``."""
        return f"{self.in_features}, {self.out_features}, {self._describe()}"
