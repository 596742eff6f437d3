"""The two maps between a convolution's weight and its epitome, differentiable in torch.

``expand`` copies the epitome's patches into the weight; ``project`` is its least-squares inverse.
Both read nothing but the :class:`~epim_nas.epitome.plan.SamplingPlan`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from epim_nas.epitome.plan import Order, Patch, SamplingPlan


def expand(epitome: Tensor, plan: SamplingPlan) -> Tensor:
    """The weight (O, I/groups, Kh, Kw) that ``plan`` samples from ``epitome`` (Oe, Ie, He, We).

    Patches are slices, so no index tensor is kept and the gradient of an epitome element is the
    sum over its replicas. The identity plan returns the epitome itself.
    """
    if plan.is_identity:
        return epitome
    weight = torch.cat([_out_slab(epitome, plan, s) for s in range(plan.out_slabs)])
    return weight if plan.out_order is None else weight[_inverse(plan.out_order, weight)]


def expand_distinct(epitome: Tensor, plan: SamplingPlan) -> Tensor:
    """The rows of the weight that have to be computed: those of ``plan.output_index[0]``.

    With wrapping these are the first slab's (in every group), otherwise all.
    """
    rows, _ = plan.output_index
    if len(rows) == plan.conv_shape[0]:
        return expand(epitome, plan)
    if plan.groups == 1:
        return _out_slab(epitome, plan, 0)
    return expand(epitome, plan)[torch.as_tensor(rows, device=epitome.device)]


def _out_slab(epitome: Tensor, plan: SamplingPlan, s: int) -> Tensor:
    patches = plan.patches[s * plan.in_slabs : (s + 1) * plan.in_slabs]
    slab = torch.cat([_read(epitome, plan, patch) for patch in patches], dim=1)
    return slab if plan.in_order is None else slab[:, _inverse(plan.in_order[s], slab)]


def _inverse(order: Order, like: Tensor) -> Tensor:
    """Channel of the weight -> position in the plan."""
    return torch.as_tensor(np.argsort(order), device=like.device)


def _read(epitome: Tensor, plan: SamplingPlan, patch: Patch) -> Tensor:
    _, _, kernel_h, kernel_w = plan.conv_shape
    block = epitome[
        patch.source_out : patch.source_out + patch.out_channels,
        patch.source_in : patch.source_in + plan.patch[1],
        patch.top : patch.top + kernel_h,
        patch.left : patch.left + kernel_w,
    ]
    if patch.rotation:
        block = block.roll(-patch.rotation, dims=1)
    return block[:, : patch.in_channels]


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
        return collect(weight, plan) / count.clamp(min=1)
    factor = importance.to(weight.dtype)
    # A vanishing importance everywhere would lose the element; a tiny floor keeps the mean.
    factor = factor + factor.mean().clamp(min=torch.finfo(weight.dtype).tiny) * 1e-6
    norm = collect(factor, plan)
    return collect(weight * factor, plan) / torch.where(norm > 0, norm, torch.ones_like(norm))


def collect(weight: Tensor, plan: SamplingPlan) -> Tensor:
    """The sum over the replicas of every epitome element: the adjoint of :func:`expand`."""
    _, _, kernel_h, kernel_w = plan.conv_shape
    total = weight.new_zeros(plan.shape.as_tuple)
    if plan.out_order is not None:
        weight = weight[list(plan.out_order)]
    for patch in plan.patches:
        slab = weight[patch.target_out : patch.target_out + patch.out_channels]
        positions = slice(patch.target_in, patch.target_in + patch.in_channels)
        if plan.in_order is None:
            slab = slab[:, positions]
        else:
            slab = slab[:, list(plan.in_order[patch.target_out // plan.patch[0]][positions])]
        if patch.rotation:
            missing = plan.patch[1] - patch.in_channels
            slab = functional.pad(slab, (0, 0, 0, 0, 0, missing)).roll(patch.rotation, dims=1)
        total[
            patch.source_out : patch.source_out + patch.out_channels,
            patch.source_in : patch.source_in + slab.shape[1],
            patch.top : patch.top + kernel_h,
            patch.left : patch.left + kernel_w,
        ] += slab
    return total
