"""An exponential moving average of a network's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def decay_at(updates: int, decay: float) -> float:
    """The decay of an update: min(decay, (1 + n) / (10 + n)) after n updates.

    So the average is over the last few steps at first and does not remember the start; the
    schedule is that of TensorFlow's ``ExponentialMovingAverage``.

    Args:
        updates: updates before this one.
        decay: the final decay.
    """
    return min(decay, (1 + updates) / (10 + updates))


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that follows it: ``update_parameters(model)`` after every step.

    Buffers, such as batch-norm statistics, are those of the model.

    Args:
        model: the model.
        decay: share of the average that an update keeps, 0..1.
    """

    @torch.no_grad()
    def update(averages: Any, current: Any, updates: Tensor | int) -> None:
        # The first update copies the weights and is not counted here.
        torch._foreach_lerp_(averages, current, 1 - decay_at(int(updates), decay))

    return AveragedModel(model, multi_avg_fn=update)
