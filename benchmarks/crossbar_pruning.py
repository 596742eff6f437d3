"""Pruning of whole crossbars: the baseline that keeps the network's shape and drops what is weak.

On each group of a layer's columns the input channels are ranked by the squares of their weights,
with batch norm folded in, and the weakest are pruned as many at a time as a crossbar holds. Which
input channels a crossbar reads is free, as it is for epitomes. A crossbar's strength is relative to
its layer's; over all layers the weakest go first. This is the crossbar-grained form of pruning by
magnitude (Liang et al., "Crossbar-aware neural network pruning", arXiv 1807.10816), with the greedy
order in place of their optimisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from epim_nas.epitome.design import Design
from epim_nas.epitome.quantization import CrossbarBlock
from epim_nas.epitome.statistics import batch_norm_importance
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.mapping import crossbar_granularity, map_layer
from epim_nas.network.spec import Network


@dataclass(frozen=True)
class KeptCrossbars:
    """What is left of a dense network.

    Attributes:
        masks: layer -> (O, I, 1, 1), 1 where a weight is kept.
        saved: crossbars that are pruned.
    """

    masks: Mapping[str, Tensor]
    saved: int


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
        None where a layer would have none left. Where a place on the grid stands for several
        crossbars (the slices of `sliced` packing), more may be saved than asked for.
    """
    importance = batch_norm_importance(model)
    places: list[_Place] = []
    masks = {}
    for layer in network.weighted[1:-1]:
        choice = design[layer.name]
        weight = model.get_submodule(layer.name).weight.detach()
        masks[layer.name] = torch.ones(*weight.shape[:2], 1, 1)
        energy = (weight.square() * importance.get(layer.name, torch.ones(()))).sum((2, 3))
        block = crossbar_granularity(choice.plan(layer), choice.weight_bits, chip)
        mine = list(_places(layer.name, energy, block))
        crossbars = map_layer(layer, choice, chip).crossbars
        assert crossbars % len(mine) == 0, "the grid is not that of the mapping"
        mine = [replace(place, crossbars=crossbars // len(mine)) for place in mine]
        mine.sort(key=lambda place: place.strength)
        places += mine[:-1]  # a layer keeps one
    saved = 0
    for place in sorted(places, key=lambda place: place.strength):
        if saved >= save:
            break
        masks[place.layer][place.outputs[:, None], place.inputs] = 0
        saved += place.crossbars
    return KeptCrossbars(masks, saved) if saved >= save else None


@dataclass(frozen=True)
class _Place:
    """A place on a layer's grid of crossbars: some inputs of the outputs that share its columns.

    Attributes:
        layer: name of the layer.
        strength: squares of its weights over those of the layer.
        outputs: the output channels with a column in it.
        inputs: the input channels on its rows.
        crossbars: how many it stands for.
    """

    layer: str
    strength: float
    outputs: Tensor
    inputs: Tensor
    crossbars: int = 1


def _places(layer: str, energy: Tensor, block: CrossbarBlock) -> Iterator[_Place]:
    """The places of a layer; of each column group the strongest input channels together.

    Args:
        layer: name of the layer.
        energy: (O, I) squares of the weights.
        block: what a crossbar holds.
    """
    outputs = torch.arange(len(energy))
    width = block.columns_per_output
    # The columns of an output may lie on two crossbars. It is pruned with either.
    first, last = outputs * width // block.columns, ((outputs + 1) * width - 1) // block.columns
    for group in range(int(last[-1]) + 1):
        members = outputs[(first <= group) & (group <= last)]
        strength = energy[members].sum(0)
        order = strength.argsort(descending=True, stable=True)
        for inputs in order.split(block.in_channels):
            part = float(strength[inputs].sum() / energy.sum())
            yield _Place(layer, part, members, inputs)


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
