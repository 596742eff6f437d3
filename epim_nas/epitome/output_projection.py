"""Projection by the error of a layer's outputs instead of its weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from epim_nas.epitome.plan import SamplingPlan
from epim_nas.epitome.sampling import collect, expand, project
from epim_nas.errors import InputError

_WORTHWHILE = 0.75
"""A reduced operator is built where its step costs less than this part of the whole one's."""


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
        InputError: a weight, a covariance or an importance of another size.
    """
    projection = OutputProjection(weight, covariance, damping)
    return projection.epitome(plan, importance=importance, steps=steps, tolerance=tolerance)


class OutputProjection:
    """:func:`project_outputs` of one weight under many plans.

    On a GPU the last bits differ between runs, since `index_add_` adds in any order there, except
    under `torch.use_deterministic_algorithms`. (An order of its own made this three times slower
    on a CPU, where the order is always the same.)

    Args:
        weight: (O, I/groups, Kh, Kw).
        covariance: (groups, n, n) of the layer's inputs.
        damping: as a fraction of the mean variance.

    Raises:
        InputError: a covariance of another size.
    """

    def __init__(self, weight: Tensor, covariance: Tensor, damping: float = 0.01) -> None:
        outputs, size, shape = len(weight), weight[0].numel(), tuple(covariance.shape)
        if shape[1:] != (size, size) or not shape[0] or outputs % shape[0]:
            raise InputError(
                "covariance", f"got {shape}", f"(groups, {size}, {size}) of {outputs} outputs"
            )
        self.weight = weight.detach()
        sigma = covariance.to(self.weight)
        level = sigma.diagonal(dim1=1, dim2=2).mean()
        self.sigma = sigma.clone()
        self.sigma.diagonal(dim1=1, dim2=2).add_(damping * level)

    @torch.no_grad()
    def epitome(
        self,
        plan: SamplingPlan,
        *,
        importance: Tensor | None = None,
        steps: int = 100,
        tolerance: float = 1e-5,
    ) -> Tensor:
        """(Oe, Ie, He, We) of a plan; the arguments are those of :func:`project_outputs`.

        Raises:
            InputError: a plan for another weight, or an importance of another size.
        """
        if plan.conv_shape != tuple(self.weight.shape) or plan.groups != len(self.sigma):
            raise InputError(
                "plan",
                f"is for {plan.conv_shape} in {plan.groups} groups",
                f"the weight's {tuple(self.weight.shape)} in the {len(self.sigma)} groups of the "
                "covariance",
            )
        if importance is not None and tuple(importance.shape) != (plan.conv_shape[0], 1, 1, 1):
            raise InputError(
                "importance",
                f"got the shape {tuple(importance.shape)}",
                f"one value an output channel, {(plan.conv_shape[0], 1, 1, 1)}",
            )
        factor = None if importance is None else importance.expand_as(self.weight)
        epitome = project(self.weight, plan, factor)
        if plan.is_identity:
            return epitome
        operator = self._operator(plan, factor)
        wanted = self._excited if factor is None else self._excited * factor
        residual = collect(wanted, plan) - operator(epitome)
        direction, norm = residual, residual.square().sum()
        goal = tolerance**2 * norm
        for _ in range(steps):
            if norm <= goal:
                break
            image = operator(direction)
            rate = norm / (direction * image).sum()
            epitome = epitome + rate * direction
            residual = residual - rate * image
            last, norm = norm, residual.square().sum()
            direction = residual + norm / last * direction
        return epitome

    @cached_property
    def _excited(self) -> Tensor:
        """Sigma w_o of every filter; the same for all plans."""
        return self._excite(self.weight)

    def _excite(self, filters: Tensor) -> Tensor:
        groups, size, _ = self.sigma.shape
        return (filters.reshape(groups, -1, size) @ self.sigma).reshape(filters.shape)

    def _operator(self, plan: SamplingPlan, factor: Tensor | None) -> Callable[[Tensor], Tensor]:
        """E -> f_o Sigma (expansion of E), gathered in the epitome."""
        outputs, size = plan.conv_shape[0], self.sigma.shape[-1]
        channel = plan.shape.size // plan.shape.out_channels
        if (
            factor is None
            and plan.groups == 1
            and plan.patch[0] == plan.shape.out_channels
            and plan.patch[0] * channel**2 < _WORTHWHILE * outputs * size**2
        ):
            return self._reduced(plan)

        def whole(epitome: Tensor) -> Tensor:
            filters = self._excite(expand(epitome, plan))
            return collect(filters if factor is None else filters * factor, plan)

        return whole

    def _reduced(self, plan: SamplingPlan) -> Callable[[Tensor], Tensor]:
        """The operator as a matrix of one output channel of the epitome.

        Where every output slab reads all output channels, each of them stands for one filter of
        every slab, and its elements go to the same places of these filters as those of any
        other. So A = sum_s P_s^T Sigma P_s, P_s the places in a filter of slab s, serves all: an
        epitome of half the channels each way takes an eighth of the multiplications. Channels
        that a last, partial slab does not reach lack its term.
        """
        outputs, period = plan.conv_shape[0], plan.patch[0]
        full, rest = divmod(outputs, period)
        index = plan.find_weight_index().reshape(outputs, -1)
        order = plan.out_order or range(outputs)
        places = [index[order[s * period]].tobytes() for s in range(full + (rest > 0))]
        channel = plan.shape.size // plan.shape.out_channels

        def gathered(slabs: Counter[bytes]) -> Tensor:
            total = self.sigma.new_zeros(channel, channel)
            for raw, count in slabs.items():
                place = torch.frombuffer(bytearray(raw), dtype=torch.int64).to(total.device)
                rows = self.sigma.new_zeros(channel, len(place))
                rows.index_add_(0, place, self.sigma[0], alpha=count)
                total.index_add_(1, place, rows)
            return total

        common = gathered(Counter(places[:full]))
        partial = common + gathered(Counter(places[full:])) if rest else common

        def reduced(epitome: Tensor) -> Tensor:
            channels = epitome.reshape(period, channel)
            parts = [channels[:rest] @ partial, channels[rest:] @ common]
            return torch.cat(parts).reshape(epitome.shape)

        return reduced
