"""The copies that output-channel wrapping makes of the channels it computes, differentiable.

Copies are bound by memory, so every element is written once, and the gradient of a computed
channel is the sum over its copies without an index.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from epim_nas.epitome.plan import SamplingPlan
from epim_nas.epitome.sampling import channel_index, is_tracing


def replicate(few: Tensor, bias: Tensor | None, plan: SamplingPlan, dim: int) -> Tensor:
    """All output channels from those that were computed.

    Args:
        few: (..., groups * Op, ...) results of the channels ``plan.output_index[0]``.
        bias: (O,), added to the copies, or None.
        plan: a plan with output-channel wrapping.
        dim: negative position of the channels in ``few``.

    Returns:
        (..., O, ...), in the memory format of ``few``.
    """
    if bias is not None:
        bias = bias.to(few.dtype)
    if is_tracing():
        return _traceable(few, bias, plan, dim)
    result: Tensor = _Replicate.apply(few, bias, plan, dim)
    return result


class _Replicate(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(few: Tensor, bias: Tensor | None, plan: SamplingPlan, dim: int) -> Tensor:
        return _copies(few, bias, plan, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, ctx.plan, ctx.dim = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        few = bias = None
        if ctx.needs_input_grad[0]:
            few = _SumOfCopies.apply(grad, ctx.plan, ctx.dim)
        if ctx.needs_input_grad[1]:
            bias = grad.transpose(ctx.dim, 0).flatten(1).sum(1)
        return few, bias, None, None


class _SumOfCopies(torch.autograd.Function):
    """The adjoint of :class:`_Replicate` with respect to what is copied."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, plan: SamplingPlan, dim: int) -> Tensor:
        return _sum_of_copies(grad, plan, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.plan, ctx.dim = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Replicate.apply(grads[0], None, ctx.plan, ctx.dim), None, None


def _copies(few: Tensor, bias: Tensor | None, plan: SamplingPlan, dim: int) -> Tensor:
    outputs, period, groups = plan.conv_shape[0], plan.patch[0], plan.groups
    if plan.out_order is not None:
        _, source = plan.output_index
        result = few.index_select(dim, channel_index(tuple(source.tolist()), few.device))
        result = result.contiguous(memory_format=memory_format(few))
    else:
        result = _empty(few, outputs, dim)
        by_group = result.unflatten(dim, (groups, outputs // groups))
        few = few.unflatten(dim, (groups, period))
        for copy in by_group.split(period, dim):
            copy.copy_(few.narrow(dim, 0, copy.shape[dim]))
    return result if bias is None else result.add_(_at(bias, dim))


def _empty(few: Tensor, outputs: int, dim: int) -> Tensor:
    shape = list(few.shape)
    shape[dim] = outputs
    if memory_format(few) == torch.contiguous_format:
        return few.new_empty(shape)
    _, channels, height, width = shape
    return few.new_empty_strided(shape, (channels * height * width, 1, channels * width, channels))


def _traceable(few: Tensor, bias: Tensor | None, plan: SamplingPlan, dim: int) -> Tensor:
    """:func:`_copies` in operations that can be recorded."""
    outputs, period, groups = plan.conv_shape[0], plan.patch[0], plan.groups
    whole, rest = divmod(outputs // groups, period)
    by_group = few.unflatten(dim, (groups, period))
    copies = [by_group] * whole + ([by_group.narrow(dim, 0, rest)] if rest else [])
    result = torch.cat(copies, dim).flatten(dim - 1, dim)
    if plan.out_order is not None:
        index = channel_index(plan.out_order, few.device, inverse=True)
        result = result.index_select(dim, index)
    return result if bias is None else result + _at(bias, dim)


def _sum_of_copies(grad: Tensor, plan: SamplingPlan, dim: int) -> Tensor:
    outputs, period, groups = plan.conv_shape[0], plan.patch[0], plan.groups
    if plan.out_order is not None:
        grad = grad.index_select(dim, channel_index(plan.out_order, grad.device))
    first, *others = grad.unflatten(dim, (groups, outputs // groups)).split(period, dim)
    # The first sum needs no copy to add to.
    whole = len(others) > 0 and others[0].shape == first.shape
    total = first + others.pop(0) if whole else first.clone()
    for copy in others:
        total.narrow(dim, 0, copy.shape[dim]).add_(copy)
    return total.flatten(dim - 1, dim)


def _at(bias: Tensor, dim: int) -> Tensor:
    """The bias, to be broadcast along ``dim``."""
    return bias.reshape(-1, *[1] * (-dim - 1))


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels-last if the channels of ``x`` (N, C, H, W) are neighbours in memory."""
    last = x.dim() == 4 and x.stride(1) == 1 and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
