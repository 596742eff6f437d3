"""The two maps between a convolution's weight and its epitome, differentiable in torch.

``expand`` copies the epitome's patches into the weight; ``project`` is its least-squares inverse.
Both read nothing but the :class:`~epim_nas.epitome.plan.SamplingPlan`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epim_nas.epitome.plan import Patch, SamplingPlan


def expand(epitome: Tensor, plan: SamplingPlan) -> Tensor:
    """The weight (O, I/groups, Kh, Kw) that ``plan`` samples from ``epitome`` (Oe, Ie, He, We).

    The gradient of an epitome element is the sum over its replicas. The identity plan returns the
    epitome itself.
    """
    if plan.is_identity:
        return epitome
    if is_tracing():
        return _sample(epitome, plan)
    weight: Tensor = _Expand.apply(epitome, plan)
    return weight


def expand_distinct(epitome: Tensor, plan: SamplingPlan) -> Tensor:
    """The part of the weight that has to be convolved with.

    With output wrapping these are the rows ``plan.output_index[0]``: the first slab's, in every
    group. With input wrapping they are the first slab's columns, at the plan's positions.
    """
    part = distinct_part(plan)
    weight = expand(epitome, part)
    if part is plan or plan.groups == 1 or not plan.wrap:
        return weight
    # Every group begins at its own channel of the slab.
    rows = np.arange(plan.conv_shape[0]) % (plan.conv_shape[0] // plan.groups) < plan.patch[0]
    first = np.flatnonzero(rows) % plan.patch[0]
    return weight.index_select(0, channel_index(tuple(first.tolist()), weight.device))


@lru_cache(maxsize=4096)
def distinct_part(plan: SamplingPlan) -> SamplingPlan:
    """The plan of the distinct slabs alone; ``plan`` itself where all are."""
    outputs, inputs, kernel_h, kernel_w = plan.conv_shape
    rows = outputs if not plan.wrap or plan.patch[0] >= outputs // plan.groups else plan.patch[0]
    columns = plan.patch[1] if plan.summed_slabs > 1 else inputs
    if (rows, columns) == (outputs, inputs):
        return plan
    patches = tuple(
        patch for patch in plan.patches if patch.target_out < rows and patch.target_in < columns
    )
    whole_inputs = columns == inputs
    return SamplingPlan(
        (rows, columns, kernel_h, kernel_w),
        plan.shape,
        plan.patch,
        False,
        1,
        patches,
        out_order=None if rows < outputs else plan.out_order,
        in_order=plan.in_order and plan.in_order[: -(-rows // plan.patch[0])]
        if whole_inputs
        else None,
    )


def is_tracing() -> bool:
    """Whether operations are being recorded (compiled, exported) rather than run."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@lru_cache(maxsize=1024)
def _cached_index(channels: tuple[int, ...], device: torch.device) -> Tensor:
    # An index that was made in inference mode could not be saved for a backward pass later.
    with torch.inference_mode(False):
        return torch.tensor(channels, device=device)


def channel_index(channels: tuple[int, ...], device: torch.device) -> Tensor:
    """The channels as an index tensor; kept for the next call."""
    if is_tracing():
        return torch.tensor(channels, device=device)
    return _cached_index(channels, device)


@lru_cache(maxsize=1024)
def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """Channel of the weight -> position in the plan."""
    return tuple(np.argsort(order).tolist())


class _Expand(torch.autograd.Function):
    """:func:`_sample`, with a backward pass that adds slices up.

    Autograd's own would fill a whole epitome with zeros for every patch.
    """

    @staticmethod
    def forward(epitome: Tensor, plan: SamplingPlan) -> Tensor:
        return _sample(epitome, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.plan = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Collect.apply(grads[0], ctx.plan), None


class _Collect(torch.autograd.Function):
    """:func:`_collect`, the adjoint of :class:`_Expand`."""

    @staticmethod
    def forward(weight: Tensor, plan: SamplingPlan) -> Tensor:
        return _collect(weight, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.plan = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Expand.apply(grads[0], ctx.plan), None


def _sample(epitome: Tensor, plan: SamplingPlan) -> Tensor:
    slabs = [_out_slab(epitome, plan, s) for s in range(plan.out_slabs)]
    weight = _joined(slabs, 0)
    if plan.out_order is None:
        return weight
    return weight.index_select(0, channel_index(inverse(plan.out_order), weight.device))


def _out_slab(epitome: Tensor, plan: SamplingPlan, s: int) -> Tensor:
    patches = plan.patches[s * plan.in_slabs : (s + 1) * plan.in_slabs]
    slab = _joined([piece for patch in patches for piece in _read(epitome, plan, patch)], 1)
    if plan.in_order is None:
        return slab
    return slab.index_select(1, channel_index(inverse(plan.in_order[s]), slab.device))


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _read(epitome: Tensor, plan: SamplingPlan, patch: Patch) -> list[Tensor]:
    """The patch as views of the epitome: two where a rotation wraps around."""
    _, _, kernel_h, kernel_w = plan.conv_shape
    straight = min(patch.in_channels, plan.patch[1] - patch.rotation)
    runs = [(patch.source_in + patch.rotation, straight)]
    if straight < patch.in_channels:
        runs.append((patch.source_in, patch.in_channels - straight))
    return [
        epitome[
            patch.source_out : patch.source_out + patch.out_channels,
            start : start + count,
            patch.top : patch.top + kernel_h,
            patch.left : patch.left + kernel_w,
        ]
        for start, count in runs
    ]


def project(weight: Tensor, plan: SamplingPlan, importance: Tensor | None = None) -> Tensor:
    """The epitome whose expansion is closest to ``weight`` in least squares.

    Every weight element has one source in the epitome, so the problem separates:
    E[e] = sum_w f_w w / sum_w f_w over the elements w that map to e; plain mean without
    ``importance``. Elements that no patch reads are 0.

    Args:
        weight: (O, I/groups, Kh, Kw).
        plan: the sampling plan.
        importance: non-negative f of the weight's shape, e.g. its Fisher information.

    Returns:
        (Oe, Ie, He, We), differentiable with respect to ``weight``.
    """
    if plan.is_identity:
        return weight
    if importance is None:
        count = torch.as_tensor(plan.repeats, device=weight.device, dtype=weight.dtype)
        return _sum_replicas(weight, plan) / count.clamp(min=1)
    factor = importance.to(weight.dtype)
    # A vanishing importance everywhere would lose the element; a tiny floor keeps the mean.
    factor = factor + factor.mean().clamp(min=torch.finfo(weight.dtype).tiny) * 1e-6
    norm = _sum_replicas(factor, plan)
    total = _sum_replicas(weight * factor, plan)
    return total / torch.where(norm > 0, norm, torch.ones_like(norm))


def _sum_replicas(weight: Tensor, plan: SamplingPlan) -> Tensor:
    if is_tracing():
        return _collect(weight, plan)
    total: Tensor = _Collect.apply(weight, plan)
    return total


def _collect(weight: Tensor, plan: SamplingPlan) -> Tensor:
    """The sum over the replicas of every epitome element: the adjoint of :func:`expand`."""
    total = weight.new_zeros(plan.shape.as_tuple)
    if plan.out_order is not None:
        weight = weight.index_select(0, channel_index(plan.out_order, weight.device))
    for s in range(plan.out_slabs):
        slab = weight[s * plan.patch[0] : (s + 1) * plan.patch[0]]
        if plan.in_order is not None:
            slab = slab.index_select(1, channel_index(plan.in_order[s], slab.device))
        for patch in plan.patches[s * plan.in_slabs : (s + 1) * plan.in_slabs]:
            start = patch.target_in
            for piece in _read(total, plan, patch):
                piece += slab[:, start : start + piece.shape[1]]
                start += piece.shape[1]
    return total
