"""The supernet under draws of every layer's choices, differentiable in the draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from epim_nas.epitome.sampling import expand
from epim_nas.supernet.evaluation import autocast, evaluation_mode
from epim_nas.supernet.supernet import SuperLayer, Supernet


class Relaxation:
    """What the supernet loses against the float network under a draw of choices.

    The weights stay as they are. A layer's weight is the sum of its choices' weights times a
    one-hot draw, which is that of the drawn choice; its gradient to the draw is the inner product
    of the weight's gradient with each choice's weight. Only the latter takes all choices, and they
    are computed one after the other, so that memory holds one at a time.

    Args:
        supernet: the supernet, trained or not, on the device to compute on.
        teacher: the float network, likewise.
        images: (N, C, H, W) batches that the steps take in turn.
        precision: see :func:`~epim_nas.supernet.evaluation.autocast`.
        cache_bytes: memory for the choices' weights; beyond it they are computed again every step.
    """

    def __init__(
        self,
        supernet: Supernet,
        teacher: nn.Module,
        images: Sequence[Tensor],
        precision: str = "auto",
        cache_bytes: int = 2**30,
    ) -> None:
        self._supernet = supernet
        self._images = list(images)
        self._precision = precision
        self._weights = _Weights(cache_bytes)
        with evaluation_mode(teacher), torch.no_grad():
            self._wanted = [F.log_softmax(teacher(x).float(), dim=1) for x in self._images]

    def __call__(self, draws: Sequence[Tensor], step: int) -> Tensor:
        """KL divergence (nats) from the float network, with batch statistics.

        Args:
            draws: for every group of the space (choices,) weights of its choices, one-hot.
            step: which images.
        """
        images = self._images[step % len(self._images)]
        wanted = self._wanted[step % len(self._images)]
        with self._drawn(draws), autocast(images.device, self._precision):
            output = self._supernet(images)
        output = F.log_softmax(output.float(), dim=1)
        return F.kl_div(output, wanted, reduction="batchmean", log_target=True)

    @contextmanager
    def _drawn(self, draws: Sequence[Tensor]) -> Iterator[None]:
        """The supernet's layers under the draws; batch norm keeps its running statistics."""
        supernet = self._supernet
        norms = [module for module in supernet.modules() if isinstance(module, _BatchNorm)]
        tracked = [norm.track_running_stats for norm in norms]
        required = {name: p.requires_grad for name, p in supernet.named_parameters()}
        supernet.requires_grad_(False)
        hooks = []
        for group, draw in zip(supernet.space.groups, draws, strict=True):
            for name in group.layers:
                layer = supernet.layers[name]
                hooks.append(_replace_forward(layer, draw, self._weights))
        with evaluation_mode(supernet):
            for norm in norms:
                norm.train()
                norm.track_running_stats = False
            try:
                yield
            finally:
                for undo in hooks:
                    undo()
                for norm, before in zip(norms, tracked, strict=True):
                    norm.track_running_stats = before
                for name, parameter in supernet.named_parameters():
                    parameter.requires_grad_(required[name])


class _Weights:
    """Quantized, expanded weights of choices, kept as long as there is room."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._kept: dict[tuple[int, int], Tensor] = {}

    @torch.no_grad()
    def of(self, layer: SuperLayer, index: int) -> Tensor:
        """(O, I, Kh, Kw) weight of a choice; the shared weights are not trained meanwhile."""
        key = (id(layer), index)
        weight = self._kept.get(key)
        if weight is None:
            weight = expand(layer.epitome(index), layer.plans[index])
            size = weight.numel() * weight.element_size()
            if size <= self._room:
                self._room -= size
                self._kept[key] = weight
        return weight


def _replace_forward(layer: SuperLayer, draw: Tensor, weights: _Weights) -> Callable[[], None]:
    """Let a layer compute under a draw; returns what undoes it."""

    def forward(x: Tensor) -> Tensor:
        shares = draw.to(device=x.device, dtype=layer.dense.weight.dtype)
        weight = _DrawnWeight.apply(shares, layer, weights)
        parameters = {"weight": weight.reshape(layer.dense.weight.shape)}
        output: Tensor = functional_call(layer.dense, parameters, (_drawn_input(layer, x, shares),))
        return output

    layer.forward = forward  # type: ignore[method-assign]

    def undo() -> None:
        del layer.forward  # the class's own again

    return undo


def _drawn_input(layer: SuperLayer, x: Tensor, shares: Tensor) -> Tensor:
    """The input as the drawn choice sees it; gradients flow to all numbers of bits."""
    with_bits: dict[int | None, list[int]] = {}
    for index, choice in enumerate(layer.choices):
        with_bits.setdefault(choice.activation_bits, []).append(index)
    if len(with_bits) == 1:
        return layer.quantize_input(x, 0)
    quantized = [
        shares[indices].sum() * layer.quantize_input(x, indices[0])
        for indices in with_bits.values()
    ]
    return torch.stack(quantized).sum(dim=0)


class _DrawnWeight(torch.autograd.Function):
    """(choices,) draw -> the weight of the layer, (O, I, Kh, Kw)."""

    @staticmethod
    def forward(ctx: Any, shares: Tensor, layer: SuperLayer, weights: _Weights) -> Tensor:
        ctx.layer, ctx.weights, ctx.count = layer, weights, len(shares)
        drawn = shares.nonzero()[:, 0].tolist()
        return torch.stack([shares[i] * weights.of(layer, i) for i in drawn]).sum(dim=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        products = [(gradient * ctx.weights.of(ctx.layer, i)).sum() for i in range(ctx.count)]
        return torch.stack(products), None, None
