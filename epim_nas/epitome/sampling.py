"""The two maps between a convolution's weight and its epitome, differentiable in torch.

``expand`` copies the epitome's patches into the weight; ``project`` is its least-squares inverse.
Both read nothing but the :class:`~epim_nas.epitome.plan.SamplingPlan`.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import Any

import torch
from torch import Tensor

from epim_nas.epitome.plan import Order, Patch, SamplingPlan
from epim_nas.errors import InputError

Part = tuple[int, int]
"""The first rows and columns of the weight, in the plan's order."""


def expand(epitome: Tensor, plan: SamplingPlan) -> Tensor:
    """The weight (O, I/groups, Kh, Kw) that ``plan`` samples from ``epitome`` (Oe, Ie, He, We).

    The gradient of an epitome element is the sum over its replicas. The identity plan returns the
    epitome itself.
    """
    return _expand(epitome, plan, (plan.conv_shape[0], plan.conv_shape[1]))


def expand_distinct(epitome: Tensor, plan: SamplingPlan) -> Tensor:
    """The part of the weight that has to be convolved with.

    With output wrapping these are the rows ``plan.output_index[0]``: the first slab's, in every
    group. With input wrapping they are the first slab's columns, at the plan's positions.
    """
    weight = _expand(epitome, plan, plan.distinct)
    if plan.groups == 1 or len(weight) == plan.conv_shape[0]:
        return weight
    # The first channels of a group begin anywhere in the slab.
    size, period = plan.conv_shape[0] // plan.groups, plan.patch[0]
    rows = tuple((g * size + i) % period for g in range(plan.groups) for i in range(period))
    return weight.index_select(0, channel_index(rows, weight.device))


def _expand(epitome: Tensor, plan: SamplingPlan, part: Part) -> Tensor:
    if plan.is_identity:
        return epitome
    if is_tracing():
        return _sample(epitome, plan, part)
    weight: Tensor = _Expand.apply(epitome, plan, part)
    return weight


def is_tracing() -> bool:
    """Whether operations are being recorded (compiled, exported) rather than run."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def channel_index(channels: Order, device: torch.device, *, inverse: bool = False) -> Tensor:
    """The channels, or the inverse of their permutation, as an index; kept for the next call."""
    if is_tracing():  # a kept tensor would not be part of what is recorded
        return torch.tensor(_inverse(channels) if inverse else channels, device=device)
    return _kept_index(channels, device, inverse)


# A step of a wide supernet takes several designs of fifty layers, each with an order for every
# slab: a cache that holds fewer than all of them finds none.
@lru_cache(maxsize=8192)
def _kept_index(channels: Order, device: torch.device, inverse: bool) -> Tensor:
    # An index that was made in inference mode could not be saved for a backward pass later.
    with torch.inference_mode(False):
        return torch.tensor(_inverse(channels) if inverse else channels, device=device)


def _inverse(order: Order) -> list[int]:
    positions = [0] * len(order)
    for position, channel in enumerate(order):
        positions[channel] = position
    return positions


class _Expand(torch.autograd.Function):
    """:func:`_sample`, with a backward pass that adds slices up.

    Autograd's own would fill a whole epitome with zeros for every patch.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(epitome: Tensor, plan: SamplingPlan, part: Part) -> Tensor:
        return _sample(epitome, plan, part)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.plan, ctx.part = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Collect.apply(grads[0], ctx.plan, ctx.part), None, None


class _Collect(torch.autograd.Function):
    """:func:`_add_up`, the adjoint of :class:`_Expand`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, plan: SamplingPlan, part: Part) -> Tensor:
        return _add_up(weight, plan, part)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.plan, ctx.part = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Expand.apply(grads[0], ctx.plan, ctx.part), None, None


def _sample(epitome: Tensor, plan: SamplingPlan, part: Part) -> Tensor:
    rows, columns = part
    slabs = []
    for s in range(ceil(rows / plan.patch[0])):
        pieces = [
            piece for patch in _patches(plan, s, columns) for piece in _read(epitome, plan, patch)
        ]
        slab = _joined(pieces, 1)
        if plan.in_order is not None and columns == plan.conv_shape[1]:
            index = channel_index(plan.in_order[s], slab.device, inverse=True)
            slab = slab.index_select(1, index)
        slabs.append(slab)
    weight = _joined(slabs, 0)
    if plan.out_order is None or rows < plan.conv_shape[0]:
        return weight
    return weight.index_select(0, channel_index(plan.out_order, weight.device, inverse=True))


def _patches(plan: SamplingPlan, s: int, columns: int) -> tuple[Patch, ...]:
    """The patches of output slab ``s`` that fill the first columns."""
    first = s * plan.in_slabs
    return plan.patches[first : first + ceil(columns / plan.patch[1])]


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

    Raises:
        InputError: the weight or its importance has another shape than the plan's weight.
    """
    for name, values in (("weight", weight), ("importance", importance)):
        if values is not None and tuple(values.shape) != plan.conv_shape:
            raise InputError(name, f"got {tuple(values.shape)}", f"{plan.conv_shape}")
    if plan.is_identity:
        return weight
    if importance is None:
        count = torch.as_tensor(plan.repeats, device=weight.device, dtype=weight.dtype)
        return collect(weight, plan) / count.clamp(min=1)
    factor = importance.to(weight.dtype)
    # A vanishing importance everywhere would lose the element; a tiny floor keeps the mean.
    factor = factor + factor.mean().clamp(min=torch.finfo(weight.dtype).tiny) * 1e-6
    norm = collect(factor, plan)
    total = collect(weight * factor, plan)
    return total / torch.where(norm > 0, norm, torch.ones_like(norm))


def collect(weight: Tensor, plan: SamplingPlan) -> Tensor:
    """(Oe, Ie, He, We) the sum over the replicas of every element: the adjoint of expand."""
    everything = (plan.conv_shape[0], plan.conv_shape[1])
    if is_tracing():
        return _add_up(weight, plan, everything)
    total: Tensor = _Collect.apply(weight, plan, everything)
    return total


def _add_up(weight: Tensor, plan: SamplingPlan, part: Part) -> Tensor:
    """The adjoint of :func:`_sample`."""
    rows, columns = part
    total = weight.new_zeros(plan.shape.as_tuple)
    if plan.out_order is not None and rows == plan.conv_shape[0]:
        weight = weight.index_select(0, channel_index(plan.out_order, weight.device))
    for s in range(ceil(rows / plan.patch[0])):
        slab = weight[s * plan.patch[0] : (s + 1) * plan.patch[0]]
        if plan.in_order is not None and columns == plan.conv_shape[1]:
            slab = slab.index_select(1, channel_index(plan.in_order[s], slab.device))
        for patch in _patches(plan, s, columns):
            start = patch.target_in
            for piece in _read(total, plan, patch):
                piece += slab[:, start : start + piece.shape[1]]
                start += piece.shape[1]
    return total
