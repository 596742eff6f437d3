"""Copies of channels and sums over copies: what wrapping adds to a convolution, differentiable.

Output wrapping copies the channels that were computed; input wrapping sums the channels that meet
the same weights. Each is the other's gradient. Both are bound by memory: every element is read or
written once, without an index as long as channels are in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epim_nas.epitome.plan import Order, SamplingPlan
from epim_nas.epitome.sampling import channel_index, is_tracing


@dataclass(frozen=True)
class Repetition:
    """In each of several groups, ``period`` channels that repeat until the group is full.

    Attributes:
        groups: the groups.
        period: distinct channels of a group.
        size: channels of a group; the last repetition may be partial.
        order: the channel at each of the ``groups * size`` positions, None where in order.
    """

    groups: int
    period: int
    size: int
    order: Order | None = None

    @classmethod
    def of_outputs(cls, plan: SamplingPlan) -> Repetition:
        """How the outputs of a plan with output wrapping repeat."""
        outputs = plan.conv_shape[0]
        return cls(plan.groups, plan.patch[0], outputs // plan.groups, plan.out_order)

    @classmethod
    def of_inputs(cls, plan: SamplingPlan) -> Repetition:
        """How the weights of the inputs of a plan with input wrapping repeat."""
        inputs, groups = plan.conv_shape[1], plan.groups
        order = None
        if plan.in_order is not None:
            order = tuple(
                g * inputs + channel for g in range(groups) for channel in plan.in_order[0]
            )
        return cls(groups, plan.patch[1], inputs, order)


def repeat_channels(few: Tensor, repetition: Repetition, dim: int) -> Tensor:
    """All channels from the distinct ones.

    Args:
        few: (..., groups * period, ...).
        repetition: how they repeat.
        dim: negative position of the channels.

    Returns:
        (..., groups * size, ...), in the memory format of ``few``.
    """
    if is_tracing():
        return _repeat(few, repetition, dim)
    result: Tensor = _Repeat.apply(few, repetition, dim)
    return result


def sum_channels(x: Tensor, repetition: Repetition, dim: int) -> Tensor:
    """The sum over the repetitions of every distinct channel, the adjoint of the above.

    Args:
        x: (..., groups * size, ...).
        repetition: how they repeat.
        dim: negative position of the channels.

    Returns:
        (..., groups * period, ...), in the memory format of ``x``.
    """
    if is_tracing():
        return _sum(x, repetition, dim)
    result: Tensor = _Sum.apply(x, repetition, dim)
    return result


class _Repeat(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(few: Tensor, repetition: Repetition, dim: int) -> Tensor:
        return _repeat(few, repetition, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.repetition, ctx.dim = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Sum.apply(grads[0], ctx.repetition, ctx.dim), None, None


class _Sum(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, repetition: Repetition, dim: int) -> Tensor:
        return _sum(x, repetition, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.repetition, ctx.dim = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Repeat.apply(grads[0], ctx.repetition, ctx.dim), None, None


def _repeat(few: Tensor, repetition: Repetition, dim: int) -> Tensor:
    if repetition.order is not None and not is_tracing():
        result = few.index_select(dim, channel_index(_sources(repetition), few.device))
    else:
        whole, rest = divmod(repetition.size, repetition.period)
        part = few.unflatten(dim, (repetition.groups, repetition.period))
        # Without the axis of groups, which has one element, a memory format is kept.
        part = part.squeeze(dim - 1) if repetition.groups == 1 else part
        copies = [part] * whole + ([part.narrow(dim, 0, rest)] if rest else [])
        result = torch.cat(copies, dim)
        result = result if repetition.groups == 1 else result.flatten(dim - 1, dim)
        if repetition.order is not None:
            index = channel_index(repetition.order, few.device, inverse=True)
            result = result.index_select(dim, index)
    return result.contiguous(memory_format=_memory_format(few))


def _sum(x: Tensor, repetition: Repetition, dim: int) -> Tensor:
    format_ = _memory_format(x)
    if repetition.order is not None:
        x = x.index_select(dim, channel_index(repetition.order, x.device))
    x = x.unflatten(dim, (repetition.groups, repetition.size))
    first, *others = x.split(repetition.period, dim)
    rest = repetition.size % repetition.period
    last = others.pop() if others and rest else None
    # The first sum needs no copy to add to.
    total = first + others.pop(0) if others else first.clone()
    for copy in others:
        total.add_(copy)
    if last is not None:
        # Not in place: the legacy ONNX exporter loses what is written to a view.
        head, tail = total.split((rest, repetition.period - rest), dim)
        total = torch.cat([head + last, tail], dim)
    return total.flatten(dim - 1, dim).contiguous(memory_format=format_)


@lru_cache(maxsize=1024)
def _sources(repetition: Repetition) -> Order:
    """Per channel, the distinct one that it repeats."""
    positions = np.arange(repetition.groups * repetition.size)
    group, within = np.divmod(positions, repetition.size)
    source = group * repetition.period + within % repetition.period
    if repetition.order is not None:
        source = source[np.argsort(repetition.order)]
    return tuple(source.tolist())


def _memory_format(x: Tensor) -> torch.memory_format:
    """Channels-last if the channels of ``x`` (N, C, H, W) are neighbours in memory."""
    last = x.dim() == 4 and x.stride(1) == 1 and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
