"""Structured channel pruning of the small ResNets: the baseline that makes a network narrower.

Channels are ranked by the L1 norm of their filters with batch norm folded in (Li et al., "Pruning
filters for efficient ConvNets", arXiv 1608.08710). The channels inside a block are its own; those
of a residual stream are shared by all its convolutions, so their norms are added. What is left is a
smaller network, not a mask.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from epim_nas.models.resnet_cifar import BasicBlock, CifarResNet, OptionAShortcut


class PrunedShortcut(nn.Module):
    """An option-A shortcut between pruned streams: (N, I', H, W) -> (N, O', H/2, W/2).

    Args:
        shortcut: that of the whole network.
        kept_in: channels of its input that are left.
        kept_out: channels of its output that are left.
    """

    def __init__(self, shortcut: OptionAShortcut, kept_in: Tensor, kept_out: Tensor) -> None:
        super().__init__()
        position = {int(channel) + shortcut.before: p for p, channel in enumerate(kept_in)}
        absent = len(kept_in)  # a channel of zeros, added behind the others
        self.register_buffer(
            "source", torch.tensor([position.get(int(channel), absent) for channel in kept_out])
        )

    def forward(self, images: Tensor) -> Tensor:
        """The subsampled feature map, its channels where they belong, zeros elsewhere."""
        padded = functional.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, 0, 1))
        return torch.index_select(padded, 1, self.source)


def pruned(model: CifarResNet, stream: float, inner: float) -> CifarResNet:
    """The network with the strongest channels only.

    Args:
        model: a trained network.
        stream: part of the channels of every residual stream to keep.
        inner: part of the channels inside every block to keep.
    """
    model = copy.deepcopy(model)
    stages = [model.layer1, model.layer2, model.layer3]
    producers: list[list[tuple[nn.Conv2d, nn.BatchNorm2d]]] = [
        [(block.conv2, block.bn2) for block in stage] for stage in stages
    ]
    producers[0].insert(0, (model.conv1, model.bn1))
    kept = [
        _strongest(torch.stack([_strength(*pair) for pair in pairs]).sum(0), stream)
        for pairs in producers
    ]
    _keep_outputs(model.conv1, model.bn1, kept[0])
    before = kept[0]
    for stage, after in zip(stages, kept, strict=True):
        for block in stage:
            assert isinstance(block, BasicBlock)
            inside = _strongest(_strength(block.conv1, block.bn1), inner)
            _keep_inputs(block.conv1, before)
            _keep_outputs(block.conv1, block.bn1, inside)
            _keep_inputs(block.conv2, inside)
            _keep_outputs(block.conv2, block.bn2, after)
            if isinstance(block.shortcut, OptionAShortcut):
                block.shortcut = PrunedShortcut(block.shortcut, before, after)
            before = after
    model.linear.weight = nn.Parameter(model.linear.weight.detach()[:, before])
    model.linear.in_features = len(before)
    return model


def _strength(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """(O,) L1 norm of every filter as batch norm scales it."""
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (conv.weight.flatten(1).abs().sum(1) * scale.abs()).detach()


def _strongest(strength: Tensor, part: float) -> Tensor:
    """Indices of the strongest channels, in their order."""
    count = max(1, round(part * len(strength)))
    return strength.argsort(descending=True, stable=True)[:count].sort().values


def _keep_outputs(conv: nn.Conv2d, norm: nn.BatchNorm2d, kept: Tensor) -> None:
    conv.weight = nn.Parameter(conv.weight.detach()[kept])
    conv.out_channels = norm.num_features = len(kept)
    for name in ("weight", "bias"):
        setattr(norm, name, nn.Parameter(getattr(norm, name).detach()[kept]))
    for name in ("running_mean", "running_var"):
        setattr(norm, name, getattr(norm, name)[kept])


def _keep_inputs(conv: nn.Conv2d, kept: Tensor) -> None:
    conv.weight = nn.Parameter(conv.weight.detach()[:, kept])
    conv.in_channels = len(kept)
