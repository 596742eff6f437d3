"""How much of a network a design has destroyed, and the learning rate that repairs it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from epim_nas.data.base import Batch
from epim_nas.errors import InputError
from epim_nas.supernet.evaluation import autocast, evaluation_mode, resolve_device, to_device
from epim_nas.supernet.training import distillation_loss

GENTLE, STRONG = (0.03, 0.005), (1.0, 0.04)
"""(damage in nats, peak rate): a network that is almost what it was loses accuracy at a high rate,
and one that hardly works needs it. Taken from fine-tunings of a few ResNet-20 designs;
benchmarks/learning_rate.py checks them on any network."""


def measure_damage(
    model: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Batch],
    device: str | torch.device = "cpu",
    precision: str = "auto",
) -> float:
    """KL(teacher || model), mean over the images, in nats.

    Args:
        model: the network of a design, its batch norm recalibrated.
        teacher: the network that it was made of.
        batches: augmented training images; labels are not used.
        device: see :func:`~epim_nas.supernet.evaluation.resolve_device`.
        precision: see :func:`~epim_nas.supernet.evaluation.autocast`.

    Raises:
        InputError: there are no images, or an output is not finite.
    """
    device = resolve_device(device)
    model.to(device)
    teacher.to(device)
    total, images = 0.0, 0
    with (
        evaluation_mode(model),
        evaluation_mode(teacher),
        torch.no_grad(),
        autocast(device, precision),
    ):
        for x, _ in batches:
            x = to_device(x, device)
            total += float(distillation_loss(model(x), teacher(x))) * len(x)
            images += len(x)
    if images == 0:
        raise InputError("damage", "there are no images to measure it on", "at least one batch")
    if not math.isfinite(total):
        raise InputError(
            "damage", "the network's output is not finite", hint="Check its weights for NaN."
        )
    # Of two equal outputs rounding may leave less than nothing.
    return max(0.0, total / images)


def peak_rate(lr: float | Literal["auto"], damage: float) -> float:
    """A learning rate as given, or the one that follows the damage (nats)."""
    return learning_rate_for(damage) if lr == "auto" else lr


def learning_rate_for(damage: float) -> float:
    """The peak learning rate of a fine-tuning that follows the damage.

    A straight line in logarithms between :data:`GENTLE` and :data:`STRONG`, constant beyond them.

    Args:
        damage: nats.
    """
    (low, slow), (high, fast) = GENTLE, STRONG
    part = math.log(max(damage, low) / low) / math.log(high / low)
    return slow * (fast / slow) ** min(1.0, part)
