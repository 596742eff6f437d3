"""Speed of the crossbar simulator on ResNet-20 at 32x32, as a ratio to the float forward pass.

Crossbars of 64x64 cells of one bit, weights of 9 bits (8 slices), inputs of 8 bits (8 bit-serial
cycles). Dense, so that every weight is on crossbars. Both networks run on the same images in the
same process, one thread; the float pass is timed before and after, and the faster counts.

    OMP_NUM_THREADS=1 python benchmarks/simulator.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from epim_nas import Design, apply_design, load_chip, trace
from epim_nas.datapath.simulator.layers import SimulatedLayer
from epim_nas.datapath.simulator.network import simulate
from epim_nas.datapath.simulator.options import Converter, Devices
from epim_nas.models.registry import build_model

CASES: tuple[tuple[str, int, Sequence[str], Converter, Devices], ...] = (
    ("all lines at once, packed", 64, ("mapping.packing=packed",), Converter(4), Devices()),
    ("all lines at once, sliced", 64, ("mapping.packing=sliced",), Converter(4), Devices()),
    ("two row turns, packed", 32, ("mapping.packing=packed",), Converter(4), Devices()),
    ("cells vary", 64, (), Converter(4), Devices(variation=0.1)),
    ("cells vary, noisy reads", 64, (), Converter(4), Devices(variation=0.1, read_noise=0.05)),
    ("cannot clip: integer convolution", 64, (), Converter(7), Devices()),
)


def seconds(model: nn.Module, images: Tensor, repeats: int) -> float:
    """CPU time of the fastest of several passes."""
    times = []
    with torch.no_grad():
        model(images)
        for _ in range(repeats):
            started = time.process_time()
            model(images)
            times.append(time.process_time() - started)
    return min(times)


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build_model("resnet20", in_channels=3, num_classes=10).eval()
    network = trace(model, (3, 32, 32), "resnet20")
    design = Design.uniform(network, weight_bits=9, activation_bits=8)
    images = torch.randn(options.images, 3, 32, 32)
    quantized = apply_design(model, design).eval()
    with torch.no_grad():
        quantized(images)
    print("case                                 columns that clip   float forward passes")
    for name, dacs, changes, converter, devices in CASES:
        chip = load_chip("xbar_64", [*changes, f"interface.dacs_per_subarray={dacs}"])
        simulated = simulate(quantized, design, chip, converter, devices)
        layers = [m for m in simulated.modules() if isinstance(m, SimulatedLayer)]
        share = sum(layer.arrays.clipping_share() for layer in layers) / len(layers)
        before = seconds(model, images, 3 * options.repeats)
        simulated_s = seconds(simulated, images, options.repeats)
        dense_s = min(before, seconds(model, images, 3 * options.repeats))
        print(f"{name:<37}{100 * share:>15.1f} %{simulated_s / dense_s:>21.1f}", flush=True)


if __name__ == "__main__":
    main()
