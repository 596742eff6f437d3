"""A network and data of one's own: what a run file names as ``gratings:network`` and so on.

The images are oriented gratings in noise, made here, so that the example needs no files. Replace
the two functions by your own network and data loaders; `gratings.yaml` is the run file. Start it in
this folder, from which `gratings` can be imported:

    epim-nas search gratings.yaml
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 6
PIXELS = 16


class Block(nn.Module):
    """Two 3x3 convolutions with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


def network(in_channels: int, num_classes: int, width: int = 32) -> nn.Module:
    """A small residual network. The first two arguments come from the data, others from the run.

    Args:
        in_channels: channels of the images.
        num_classes: classes.
        width: channels of the blocks; ``model.args.width`` in the run file.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Block(width),
        Block(width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )


def gratings(count: int, seed: int) -> TensorDataset:
    """``count`` images (1, 16, 16) of gratings in noise, and the class of their orientation."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    angle = labels * (math.pi / CLASSES)
    phase = 2 * math.pi * torch.rand(count, generator=generator)
    y, x = torch.meshgrid(torch.arange(PIXELS), torch.arange(PIXELS), indexing="ij")
    along = angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y
    images = torch.sin(1.2 * along + phase[:, None, None])
    noise = torch.randn(images.shape, generator=generator)
    return TensorDataset((images + 1.6 * noise)[:, None], labels)


def loaders(batch_size: int = 64) -> dict[str, object]:
    """What a run file's ``data.name`` names: three loaders and the number of classes.

    Images are float32 (N, C, H, W), normalised; labels are class indices. Validation images are
    what the search looks at, test images are used once, so keep the three apart.
    """
    return {
        "train": DataLoader(gratings(1920, seed=1), batch_size, shuffle=True),
        "validation": DataLoader(gratings(480, seed=2), batch_size),
        "test": DataLoader(gratings(480, seed=3), batch_size),
        "num_classes": CLASSES,
    }
