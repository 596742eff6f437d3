"""VGG networks, with torchvision's parameter names.

Architecture: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition" (ICLR 2015), table 1, configurations A, B, D and E, without or with batch norm.
"""

from __future__ import annotations

import torch
from torch import nn

from epim_nas.models.init import he_init

_STAGES: dict[int, tuple[int, int, int, int, int]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Depth -> convolutions in each of the five stages."""

_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """A VGG network: (N, in_channels, H, W) -> (N, num_classes).

    Args:
        depth: 11, 13, 16 or 19.
        in_channels: channels of the images.
        num_classes: classes.
        batch_norm: batch norm after every convolution.
        small_input: global pooling and one linear layer as the classifier, for images of about
            32x32, instead of 7x7 features and three linear layers.
        dropout: probability of dropout in the large classifier.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        num_classes: int = 1000,
        batch_norm: bool = False,
        small_input: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for count, width in zip(_STAGES[depth], _WIDTHS, strict=True):
            for _ in range(count):
                layers.append(nn.Conv2d(in_channels, width, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                in_channels = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1 if small_input else 7)
        if small_input:
            self.classifier = nn.Sequential(nn.Linear(512, num_classes))
        else:
            self.classifier = nn.Sequential(
                nn.Linear(512 * 7 * 7, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(4096, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(4096, num_classes),
            )
        he_init(self, linear_std=0.01)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores (logits)."""
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))


def vgg(
    depth: int,
    in_channels: int = 3,
    num_classes: int = 1000,
    batch_norm: bool = False,
    small_input: bool = False,
    dropout: float = 0.5,
) -> VGG:
    """The VGG network of a depth (11, 13, 16, 19)."""
    return VGG(depth, in_channels, num_classes, batch_norm, small_input, dropout)
