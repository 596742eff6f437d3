"""How a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from epim_nas.errors import InputError


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: number of optimizer steps.
        batch_size: images in a step.
        accumulation: parts that a batch is split into, one after the other, so that less memory is
            used. Batch norm sees a part at a time.
        lr: peak learning rate.
        momentum: momentum of SGD.
        nesterov: whether the momentum is Nesterov's.
        weight_decay: L2 penalty of weights with at least two dimensions; biases and normalisation
            parameters are not decayed.
        warmup: fraction of the steps in which the rate rises linearly; then it falls to 0 along a
            half cosine.
        label_smoothing: probability mass spread over all classes.
        distillation: weight of the teacher in the loss, 0..1; at 1 labels are not used.
        temperature: softmax temperature of the distillation (Hinton, Vinyals and Dean,
            arXiv 1503.02531).
        clip_norm: largest L2 norm of the gradient, or None.
        ema: decay of an exponential moving average of the weights, which the model has at the end,
            and where the training stops on its way; None for the weights themselves. The average is
            over fewer steps at first (:func:`~epim_nas.supernet.averaging.decay_at`).
    """

    steps: int
    batch_size: int = 128
    accumulation: int = 1
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    warmup: float = 0.0
    label_smoothing: float = 0.0
    distillation: float = 0.0
    temperature: float = 1.0
    clip_norm: float | None = None
    ema: float | None = None

    def __post_init__(self) -> None:
        checks = {
            "steps": (self.steps >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "accumulation": (
                1 <= self.accumulation <= self.batch_size,
                f"1 to batch_size ({self.batch_size})",
            ),
            "lr": (0 < self.lr < math.inf, "greater than 0"),
            "momentum": (0 <= self.momentum < 1, "0 to below 1"),
            "nesterov": (not self.nesterov or self.momentum > 0, "false where momentum is 0"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or greater"),
            "warmup": (0 <= self.warmup <= 1, "0 to 1"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "0 to below 1"),
            "distillation": (0 <= self.distillation <= 1, "0 to 1"),
            "temperature": (0 < self.temperature < math.inf, "greater than 0"),
            "clip_norm": (
                self.clip_norm is None or 0 < self.clip_norm < math.inf,
                "greater than 0, or none",
            ),
            "ema": (self.ema is None or 0 <= self.ema < 1, "0 to below 1, or none"),
        }
        for name, (good, allowed) in checks.items():
            if not good:
                raise InputError(f"training.{name}", f"got {getattr(self, name)}", allowed)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step (the first is 0)."""
        warmup_steps = round(self.warmup * self.steps)
        if step < warmup_steps:
            return self.lr * (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, self.steps - warmup_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
