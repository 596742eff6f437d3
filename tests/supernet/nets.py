"""A tiny network with everything a supernet has to handle, and a space for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from epim_nas import Choice, EpitomeShape, Network, SearchSpace, trace
from epim_nas.space import Group


class TinyNet(nn.Module):
    """Two convolutions with batch norm and a residual sum, one without, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 3, stride=2)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = (x + self.bn2(self.conv2(x))).relu()
        return self.fc(self.conv3(x).relu().mean((2, 3)))


def tiny() -> tuple[TinyNet, Network, SearchSpace]:
    torch.manual_seed(0)
    model = TinyNet().eval()
    with torch.no_grad():
        for norm in (model.bn1, model.bn2):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    network = trace(model, (1, 8, 8), "tiny")
    lossless = Choice()
    epitomes = [
        Choice(EpitomeShape(4, 8, 3, 3), wrap=True, weight_bits=4, activation_bits=8),
        Choice(EpitomeShape(8, 4, 3, 3), weight_bits=2, activation_bits=6),
        Choice(EpitomeShape(4, 4, 4, 4), weight_bits=9, activation_bits=8),
    ]
    options = {
        "conv1": [lossless, Choice(weight_bits=9, activation_bits=9)],
        "conv2": [lossless, *epitomes, *(Choice(weight_bits=b) for b in (2, 3, 5, 9))],
        "conv3": [lossless, *epitomes],
        "fc": [lossless, Choice(EpitomeShape(4, 4, 1, 1), weight_bits=8, activation_bits=8)],
    }
    groups = tuple(
        Group(name, (name,), tuple((choice,) for choice in choices))
        for name, choices in options.items()
    )
    return model, network, SearchSpace("tiny", "tiny", groups)
