"""From a network to a trained design in thirty lines: python thirty_lines.py (in this folder)."""

import sys

import torch
from torch import nn

from epim_nas import CostModel, load_chip, load_design, search, trace, trained_model


def network(in_channels: int, num_classes: int) -> nn.Module:
    """A small network as of torchvision; any `nn.Module` that `torch.fx` traces will do."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    body = [block(in_channels, 32, 2), block(32, 64, 2), block(64, 64, 1)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


if __name__ == "__main__":
    out = sys.argv[1] if len(sys.argv) > 1 else "runs/thirty_lines"
    changes = ["model={name: thirty_lines:network}", "baseline={steps: 300, lr: 0.05}",
               "budget={compression: 16}", "search.trials=20", "finalists.count=2"]  # fmt: skip
    result = search("demo", out, overrides=changes)  # data and chip are those of the demo
    print(f"{len(result.trials)} designs scored, {len(result.front)} on the front")

    design = load_design(f"{out}/best.yaml")
    cost = CostModel(trace(network(1, 10), (1, 28, 28), design.network), load_chip("xbar_64"))
    dense, small = cost.evaluate(weight_bits=32).totals, cost.evaluate(design).totals
    print(f"{dense.crossbars} crossbars became {small.crossbars}")

    model = trained_model(out)
    print(model(torch.zeros(1, 1, 28, 28)).shape, result.finalists[0].test_accuracy)
