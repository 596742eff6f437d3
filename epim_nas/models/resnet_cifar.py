"""The small residual networks of He et al. for 32x32 images (CIFAR).

Architecture: "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2, with its
option A shortcut, which has no weights. The names of the parameters are those of the widely used
checkpoints of akamaster/pytorch_resnet_cifar10, so these load.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from epim_nas.models.init import he_init


class OptionAShortcut(nn.Module):
    """Every second pixel, and zero channels on both sides: (N, I, H, W) -> (N, O, H/2, W/2).

    Args:
        in_channels: channels I of the input.
        out_channels: channels O of the output, at least as many.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The subsampled and widened feature map."""
        return functional.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, I, H, W) -> (N, O, H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = OptionAShortcut(in_channels, out_channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        out = torch.relu(self.bn1(self.conv1(images)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + self.shortcut(images))


class CifarResNet(nn.Module):
    """A CIFAR ResNet of depth 6n + 2: (N, in_channels, H, W) -> (N, num_classes).

    Args:
        blocks: blocks n in each of the three stages.
        in_channels: channels of the images.
        num_classes: classes.
        width: channels of the first stage; the second and third have twice and four times as many.
    """

    def __init__(
        self, blocks: int, in_channels: int = 3, num_classes: int = 10, width: int = 16
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * width, num_classes)
        he_init(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores (logits)."""
        out = torch.relu(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(torch.flatten(self.pool(out), 1))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    rest = [BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def cifar_resnet(
    depth: int, in_channels: int = 3, num_classes: int = 10, width: int = 16
) -> CifarResNet:
    """The CIFAR ResNet of a depth 6n + 2 (20, 32, 44, 56, 110)."""
    return CifarResNet((depth - 2) // 6, in_channels, num_classes, width)
