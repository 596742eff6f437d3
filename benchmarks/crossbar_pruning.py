"""Pruning of whole crossbars: the baseline that keeps the network's shape and drops what is weak.

On each group of a layer's columns the input channels are ranked by the squares of their weights,
with batch norm folded in, and the weakest are pruned as many at a time as a crossbar holds. Which
input channels a crossbar reads is free, as it is for epitomes. A crossbar's strength is relative to
its layer's; over all layers the weakest go first. This is the crossbar-grained form of pruning by
magnitude (Liang et al., "Crossbar-aware neural network pruning", arXiv 1807.10816), with the greedy
order in place of their optimisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from epim_nas.epitome.design import Design
from epim_nas.epitome.statistics import batch_norm_importance
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.mapping import crossbar_granularity
from epim_nas.network.spec import Network


@dataclass(frozen=True)
class KeptCrossbars:
    """What is left of a dense network.

    Attributes:
        masks: layer -> (O, I, 1, 1), 1 where a weight is kept.
        pruned: crossbars that are saved.
    """

    masks: Mapping[str, Tensor]
    pruned: int


def strongest_crossbars(
    model: nn.Module, network: Network, design: Design, chip: Chip, save: int
) -> KeptCrossbars | None:
    """Keep the strongest crossbars of all layers but the first and the last.

    Args:
        model: the trained network.
        network: its layers.
        design: its bits; every layer dense.
        chip: the chip.
        save: crossbars to save.

    Returns:
        None where a layer would have none left.
    """
    importance = batch_norm_importance(model)
    layers = network.weighted[1:-1]
    places: list[tuple[float, str, Tensor, Tensor]] = []
    masks = {}
    for layer in layers:
        choice = design[layer.name]
        weight = model.get_submodule(layer.name).weight.detach()
        block = crossbar_granularity(choice.plan(layer), choice.weight_bits, chip)
        energy = (weight.square() * importance.get(layer.name, torch.ones(()))).sum((2, 3))
        outputs = torch.arange(len(weight))
        group_of = outputs * block.columns_per_output // block.columns
        masks[layer.name] = torch.ones(*weight.shape[:2], 1, 1)
        mine = []
        for group in group_of.unique():
            members = outputs[group_of == group]
            strength = energy[members].sum(0)
            order = strength.argsort(descending=True, stable=True)
            for channels in order.split(block.in_channels):
                part = float(strength[channels].sum() / energy.sum())
                mine.append((part, layer.name, members, channels))
        mine.sort(key=lambda place: place[0])
        places += mine[:-1]  # a layer keeps one
    if save > len(places):
        return None
    places.sort(key=lambda place: place[0])
    for _, name, members, channels in places[:save]:
        masks[name][members[:, None], channels] = 0
    return KeptCrossbars(masks, save)


class _Masked(nn.Module):
    """Keeps pruned weights at zero, also while the others are trained."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, epitome: Tensor) -> Tensor:
        return epitome * self.mask


def prune_crossbars(model: nn.Module, kept: KeptCrossbars) -> nn.Module:
    """Hold the pruned weights of a network of a dense design at zero; ``model`` changes."""
    for name, mask in kept.masks.items():
        if not mask.all():
            layer = model.get_submodule(name)
            parametrize.register_parametrization(layer, "epitome", _Masked(mask))
    return model
