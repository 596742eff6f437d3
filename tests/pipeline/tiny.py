"""A network, a search space and a run file so small that a whole search takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from epim_nas.files import dump_yaml


class TinyNet(nn.Module):
    """Four convolutions, one residual sum and a linear layer, for images of 14x14 pixels."""

    def __init__(self, in_channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.left = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.left_norm = nn.BatchNorm2d(width)
        self.right = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.right_norm = nn.BatchNorm2d(width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(2 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(x)))
        y = torch.relu(self.left_norm(self.left(x)))
        x = torch.relu(self.right_norm(self.right(y)) + x)
        x = torch.relu(self.down_norm(self.down(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


def tiny_net(in_channels: int = 1, num_classes: int = 10, width: int = 32) -> nn.Module:
    """The network; what it starts from is a matter of torch's seed."""
    return TinyNet(in_channels, num_classes, width)


def tiny_run(**changes: Any) -> dict[str, Any]:
    """A run file as plain data; ``group__key=value`` changes ``group.key``."""
    run: dict[str, Any] = {
        "schema": "epim-nas/run@1",
        "name": "tiny",
        "seed": 3,
        "model": {"name": "tests.pipeline.tiny:tiny_net"},
        "data": {
            "name": "fashion_mnist_subset",
            "train_fraction": 0.05,
            "image_size": 14,
            "batch_size": 32,
        },
        "hardware": {"chip": "xbar_64"},
        "space": {
            "schema": "epim-nas/space@1",
            "name": "tiny",
            "defaults": {
                "epitome": {
                    "out_channels": ["1/2", 1],
                    "in_channels": ["1/4", "1/2", 1],
                    "wrap": [False, True],
                },
                "weight_bits": [2, 4],
                "activation_bits": [6, 8],
            },
            "rules": [
                {"position": "first", "epitome": "none", "weight_bits": [9]},
                {"type": "fc", "epitome": "none", "weight_bits": [9]},
            ],
        },
        "budget": {"compression": 24},
        "baseline": {"steps": 30, "lr": 0.1},
        "sensitivity": {"images": 64, "batch_size": 32},
        "supernet": {"steps": 30, "lr": 0.01, "random": 1},
        "search": {"trials": 14, "seeds": 5, "calibration_images": 64, "validation_images": 400},
        "finalists": {"count": 2, "steps": 12, "lr": 0.01},
        "device": "cpu",
        "precision": "float32",
    }
    for path, value in changes.items():
        group, _, key = path.partition("__")
        if key:
            run.setdefault(group, {})[key] = value
        else:
            run[group] = value
    return run


def write_run(folder: Path, **changes: Any) -> Path:
    """Write :func:`tiny_run` to ``folder/tiny.yaml``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(dump_yaml(tiny_run(**changes)), encoding="utf-8")
    return path
