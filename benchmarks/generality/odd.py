"""A network of one's own with what libraries' networks seldom have, and images of an odd size.

The run file `odd.yaml` names both functions. Start it in this folder, from which `odd` can be
imported:

    epim-nas search odd.yaml
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from epim_nas.data.fashion_mnist import MEAN, STD, fashion_mnist_subset

HEIGHT, WIDTH = 45, 37


def unit(inputs: int, outputs: int, kernel: tuple[int, int], **geometry: object) -> nn.Sequential:
    """A convolution that keeps the size at stride 1, batch norm and ReLU."""
    dilation = geometry.get("dilation", 1)
    padding = tuple(dilation * (size - 1) // 2 for size in kernel)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False, **geometry)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class OddNet(nn.Module):
    """(N, in_channels, 45, 37) -> (N, num_classes): odd channel counts, kernels and joins.

    Args:
        in_channels: channels of the images.
        num_classes: classes.
        width: channels of the stem, a prime by default; the others follow.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 23) -> None:
        super().__init__()
        middle, wide = 37, 3 * width + 4
        self.stem = unit(in_channels, width, (5, 3), stride=2)
        self.depthwise = unit(width, width, (5, 5), groups=width)
        self.expand = unit(width, middle, (1, 1))
        self.across = unit(middle, middle, (1, 5))
        self.down = unit(middle, middle, (3, 1))
        self.dilated = unit(middle, middle, (3, 3), dilation=2, groups=middle)
        joined = width + middle  # 60: the groups of 15 divide it
        self.grouped = unit(joined, 75, (3, 3), stride=2, groups=15)
        self.mix = unit(75, wide, (1, 1))
        self.even = nn.Conv2d(wide, wide, (4, 2), stride=(2, 1))
        self.head = nn.Linear(wide, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (logits)."""
        x = self.stem(x)
        y = self.expand(self.depthwise(x))
        y = self.down(self.across(y)) + y
        y = self.dilated(y) + y
        z = self.mix(self.grouped(torch.cat([x, y], 1)))
        z = torch.relu(self.even(z))
        return self.head(z.mean((2, 3)))


def network(in_channels: int, num_classes: int, width: int = 23) -> nn.Module:
    """The network that ``model.name: odd:network`` builds."""
    return OddNet(in_channels, num_classes, width)


def loaders(batch_size: int = 64, every: int = 1) -> dict[str, object]:
    """Fashion-MNIST's shipped subset, stretched to 45x37 pixels; (N, 1, 45, 37) float32.

    Args:
        batch_size: images in a batch.
        every: use one image of so many; ``data.args.every`` in the run file.
    """
    data = fashion_mnist_subset()
    sets = {}
    for name, part in data.splits.items():
        images = (torch.from_numpy(part.images[::every]).float() / 255 - MEAN[0]) / STD[0]
        images = functional.interpolate(images, (HEIGHT, WIDTH), mode="bilinear")
        sets[name] = TensorDataset(images, torch.from_numpy(part.labels[::every]))
    return {
        "train": DataLoader(sets["train"], batch_size, shuffle=True),
        "validation": DataLoader(sets["validation"], batch_size),
        "test": DataLoader(sets["test"], batch_size),
        "num_classes": data.num_classes,
    }
