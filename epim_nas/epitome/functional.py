"""Convolution and linear map with a weight that is sampled from an epitome.

Only what is distinct is computed: wrapped input slabs are summed before, wrapped output slabs are
replicated after the convolution.
"""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from epim_nas.epitome.plan import SamplingPlan
from epim_nas.epitome.replicas import Repetition, repeat_channels, sum_channels
from epim_nas.epitome.sampling import expand_distinct
from epim_nas.errors import InputError


class ConvGeometry(Protocol):
    """What a convolution needs beside its weight, as ``nn.Conv2d`` and ``EpitomeConv2d`` have."""

    # Read-only members: those of the layers are narrower.
    @property
    def kernel_size(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def stride(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def padding(self) -> str | tuple[int, ...]: ...  # noqa: D102
    @property
    def dilation(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def groups(self) -> int: ...  # noqa: D102
    @property
    def bias(self) -> Tensor | None: ...  # noqa: D102
    @property
    def padding_mode(self) -> str: ...  # noqa: D102


def epitome_conv2d(
    geometry: ConvGeometry, x: Tensor, epitome: Tensor, plan: SamplingPlan
) -> Tensor:
    """Convolve ``x`` with the weight that ``plan`` samples from ``epitome``.

    Args:
        geometry: a convolution that gives stride, padding, dilation, groups and bias.
        x: (N, C, H, W) or (C, H, W).
        epitome: (Oe, Ie, He, We), already quantized.
        plan: the sampling plan.
    """
    x = sum_input_slabs(x, plan, dim=-3)
    padding = geometry.padding
    if geometry.padding_mode != "zeros":
        x, padding = F.pad(x, explicit_padding(geometry), mode=geometry.padding_mode), (0, 0)
    weight = expand_distinct(epitome, plan)
    wrapped = len(weight) < plan.conv_shape[0]
    bias = None if wrapped else geometry.bias
    out = F.conv2d(x, weight, bias, geometry.stride, padding, geometry.dilation, geometry.groups)
    return _replicate(out, geometry.bias, plan, dim=-3) if wrapped else out


def epitome_linear(bias: Tensor | None, x: Tensor, epitome: Tensor, plan: SamplingPlan) -> Tensor:
    """Apply to ``x`` (..., I) the linear map that ``plan`` samples from ``epitome``."""
    x = sum_input_slabs(x, plan, dim=-1)
    weight = expand_distinct(epitome, plan).flatten(1)
    wrapped = len(weight) < plan.conv_shape[0]
    out = F.linear(x, weight, None if wrapped else bias)
    return _replicate(out, bias, plan, dim=-1) if wrapped else out


def sum_input_slabs(x: Tensor, plan: SamplingPlan, dim: int) -> Tensor:
    """The input that a plan with ``wrap_in`` convolves: the sum of its slabs, in every group.

    Args:
        x: (..., groups * I, ...) with its channels at ``dim``.
        plan: the plan; without input wrapping ``x`` is returned.
        dim: negative position of the channels.

    Returns:
        (..., groups * Ip, ...).

    Raises:
        InputError: ``x`` has another number of channels.
    """
    if plan.summed_slabs == 1:
        return x
    channels = plan.groups * plan.conv_shape[1]
    if x.dim() < -dim or x.shape[dim] != channels:
        raise InputError("input", f"got shape {tuple(x.shape)}", f"{channels} channels")
    return sum_channels(x, Repetition.of_inputs(plan), dim)


def _replicate(few: Tensor, bias: Tensor | None, plan: SamplingPlan, dim: int) -> Tensor:
    out = repeat_channels(few, Repetition.of_outputs(plan), dim)
    return out if bias is None else out + bias.to(out.dtype).reshape(-1, *[1] * (-dim - 1))


def explicit_padding(geometry: ConvGeometry) -> list[int]:
    """[left, right, top, bottom] for ``F.pad``."""
    sides: list[int] = []
    for axis in (1, 0):
        padding = geometry.padding
        if isinstance(padding, str):
            total = geometry.dilation[axis] * (geometry.kernel_size[axis] - 1)
            total = total if padding == "same" else 0
            sides += [total // 2, total - total // 2]
        else:
            sides += [padding[axis], padding[axis]]
    return sides
