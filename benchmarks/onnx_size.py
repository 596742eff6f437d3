"""Sizes of exported ONNX files: whole weights against epitomes and index tables.

    OMP_NUM_THREADS=1 python benchmarks/onnx_size.py

Networks have random weights: sizes do not depend on them. Every convolution that can has an
epitome of half its channels each way, at 3 bits.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from epim_nas import Choice, Design, EpitomeShape, apply_design, trace
from epim_nas.export.onnx import export_onnx
from epim_nas.models.registry import build_model

SUBJECTS = (
    ("resnet20", 1, 10, (1, 28, 28), 1, False),
    ("resnet50", 3, 1000, (3, 224, 224), 0, True),
)
"""(network, image channels, classes, input, growth of the kernel, wrapping)."""


def main() -> None:
    """Export and print."""
    table = Table(
        "network", "expanded (MB)", "epitomes (MB)", "of it index tables (kB)", "compared"
    )
    for name, channels, classes, shape, growth, wrap in SUBJECTS:
        torch.manual_seed(0)
        model = build_model(name, in_channels=channels, num_classes=classes)
        network = trace(model, shape, name)
        choices = {}
        for layer in network.weighted:
            out_channels, in_channels, height, width = layer.weight_shape
            choices[layer.name] = Choice(weight_bits=3, activation_bits=9)
            if layer.type == "conv" and in_channels > 3:
                size = EpitomeShape(
                    out_channels // 2, in_channels // 2, height + growth, width + growth
                )
                choices[layer.name] = Choice(size, wrap, 3, 9)
        small = apply_design(model, Design(name, choices))
        small(torch.randn(2, *shape))  # the ranges of its inputs
        with tempfile.TemporaryDirectory() as folder:
            made = export_onnx(small, shape, Path(folder) / "a.onnx", form="epitomes")
        table.add_row(
            name, f"{made.expanded_bytes / 1e6:.2f}", f"{made.epitomes_bytes / 1e6:.2f}",
            f"{made.index_bytes / 1e3:.1f}", str(made).partition("; ")[2],
        )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
