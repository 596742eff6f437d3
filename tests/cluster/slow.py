"""A network that takes its time, so that what a test does to its search comes before the end."""

from __future__ import annotations

import time

from torch import Tensor, nn

from tests.pipeline.tiny import TinyNet

PAUSE_SECONDS = 0.08


class SlowNet(TinyNet):
    """Waits at every evaluation; a scored design takes several."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            time.sleep(PAUSE_SECONDS)
        return super().forward(x)


def slow_net(in_channels: int = 1, num_classes: int = 10, width: int = 32) -> nn.Module:
    """The network; what it starts from is a matter of torch's seed."""
    return SlowNet(in_channels, num_classes, width)
