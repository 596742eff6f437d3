"""Projection by the error of a layer's outputs instead of its weight."""

from __future__ import annotations

import torch
from torch import Tensor

from epim_nas.epitome.plan import SamplingPlan
from epim_nas.epitome.sampling import collect, expand, project
from epim_nas.errors import InputError


@torch.no_grad()
def project_outputs(
    weight: Tensor,
    plan: SamplingPlan,
    covariance: Tensor,
    *,
    importance: Tensor | None = None,
    steps: int = 100,
    damping: float = 0.01,
    tolerance: float = 1e-5,
) -> Tensor:
    """The epitome whose expansion changes the layer's outputs least.

    Minimises sum_o f_o d_o^T (Sigma + damping * mean(diag Sigma)) d_o over E, where d_o is the
    error of filter o: a linear least-squares problem, solved by conjugate gradients from the
    solution for the weight. The damping keeps directions that few images excite near it.

    Args:
        weight: (O, I/groups, Kh, Kw).
        plan: the sampling plan.
        covariance: (groups, n, n) of the layer's inputs, n = I/groups * Kh * Kw
            (:func:`.statistics.input_covariances`).
        importance: non-negative f, (O, 1, 1, 1); by default 1.
        steps: largest number of steps.
        damping: as a fraction of the mean variance.
        tolerance: the solver stops when the gradient has become so much smaller.

    Returns:
        (Oe, Ie, He, We).

    Raises:
        InputError: a covariance or an importance of another size.
    """
    if importance is not None and tuple(importance.shape) != (plan.conv_shape[0], 1, 1, 1):
        raise InputError(
            "importance",
            f"got the shape {tuple(importance.shape)}",
            f"one value an output channel, {(plan.conv_shape[0], 1, 1, 1)}",
        )
    factor = None if importance is None else importance.expand_as(weight)
    epitome = project(weight, plan, factor)
    size = plan.conv_shape[1] * plan.conv_shape[2] * plan.conv_shape[3]
    if tuple(covariance.shape) != (plan.groups, size, size):
        raise InputError(
            "covariance", f"got {tuple(covariance.shape)}", f"{(plan.groups, size, size)}"
        )
    if plan.is_identity:
        return epitome
    sigma = covariance.to(weight)
    level = sigma.diagonal(dim1=1, dim2=2).mean()
    sigma = sigma + damping * level * torch.eye(size, dtype=weight.dtype, device=weight.device)

    def excited(error: Tensor) -> Tensor:
        """f_o Sigma d_o, gathered in the epitome."""
        rows = error.reshape(plan.groups, -1, size) @ sigma
        rows = rows.reshape(plan.conv_shape)
        return collect(rows if factor is None else rows * factor, plan)

    residual = excited(weight - expand(epitome, plan))
    direction, norm = residual, residual.square().sum()
    goal = tolerance**2 * norm
    for _ in range(steps):
        if norm <= goal:
            break
        image = excited(expand(direction, plan))
        rate = norm / (direction * image).sum()
        epitome = epitome + rate * direction
        residual = residual - rate * image
        last, norm = norm, residual.square().sum()
        direction = residual + norm / last * direction
    return epitome
