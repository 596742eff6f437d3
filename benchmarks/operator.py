"""Speed of the epitome convolution against ``nn.Conv2d``, forward and backward, on ResNet-50.

Every layer shape of ResNet-50 is timed dense and as epitomes in turn, several times over, in one
run; what counts are the ratios of the medians, per layer and for the whole network (each shape
times how often it occurs). On one thread the time is that of the process's CPU, so that other
programs on the machine matter less.

    OMP_NUM_THREADS=1 python benchmarks/operator.py
    python benchmarks/operator.py --batch 8 --repeats 3 --threads 2 --plans O/2 "wrap 4"
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from epim_nas import EpitomeConv2d, EpitomeShape, trace
from epim_nas.models.registry import build_model


@dataclass(frozen=True)
class Plan:
    """An epitome of a layer: its channels as fractions of the layer's, and what it shares.

    Attributes:
        out_part: O / Oe.
        in_part: I / Ie.
        growth: rows and columns more than the kernel; such a plan is for 3x3 kernels only.
        wrap: output-channel wrapping.
        wrap_in: input-channel wrapping.
        goal: largest ratio to the dense time that is aimed at.
    """

    out_part: int = 1
    in_part: int = 1
    growth: int = 0
    wrap: bool = False
    wrap_in: bool = False
    goal: float = 1.10


PLANS = {
    "O/2": Plan(2),
    "I/2": Plan(1, 2),
    "O/2 I/2": Plan(2, 2),
    "O/2 4x4": Plan(2, growth=1),
    "wrap 2": Plan(2, wrap=True, goal=1.15 / 2),
    "wrap 4": Plan(4, wrap=True, goal=1.15 / 4),
    "wrap in 2": Plan(1, 2, wrap_in=True, goal=1.15 / 2),
    "wrap in 4": Plan(1, 4, wrap_in=True, goal=1.15 / 4),
}


@dataclass(frozen=True)
class Shape:
    """A convolution of the network, without its name."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    size: int

    def __str__(self) -> str:
        stride = f" /{self.stride}" if self.stride > 1 else ""
        return f"{self.inputs}->{self.outputs} {self.kernel}x{self.kernel}{stride} @{self.size}"

    def dense(self) -> nn.Conv2d:
        """The dense layer."""
        return nn.Conv2d(
            self.inputs, self.outputs, self.kernel, self.stride, self.padding, bias=False
        )

    def epitome(self, plan: Plan) -> EpitomeConv2d | None:
        """The layer of a plan, None where it does not apply."""
        if self.inputs < 64 or (plan.growth and self.kernel != 3):
            return None  # the stem, which sees the image, is dense in every search space
        kernel = self.kernel + plan.growth
        return EpitomeConv2d(
            self.inputs,
            self.outputs,
            self.kernel,
            self.stride,
            self.padding,
            bias=False,
            shape=EpitomeShape(
                self.outputs // plan.out_part, self.inputs // plan.in_part, kernel, kernel
            ),
            wrap=plan.wrap,
            wrap_in=plan.wrap_in,
        )


def shapes() -> Counter[Shape]:
    """The convolutions of ResNet-50 and how often they occur."""
    model = build_model("resnet50", in_channels=3, num_classes=1000)
    network = trace(model, (3, 224, 224), "resnet50")
    return Counter(
        Shape(
            layer.in_channels,
            layer.out_channels,
            layer.kernel[0],
            layer.stride[0],
            layer.padding[0],
            layer.input_size[0],
        )
        for layer in network.weighted
        if layer.type == "conv"
    )


def medians(
    layers: Mapping[str, nn.Module], x: Tensor, repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of forward and backward; the layers take turns."""
    with torch.no_grad():
        grad = torch.randn_like(next(iter(layers.values()))(x))
    times: dict[str, list[float]] = {name: [] for name in layers}
    for repeat in range(repeats + 1):  # the first warms up
        for name, layer in layers.items():
            x.grad = None
            layer.zero_grad()
            started = clock()
            layer(x).backward(grad)
            if repeat:
                times[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in times.items()}


class Replicas(nn.Module):
    """Nothing but the copies that wrapping by ``ratio`` has to write, and their gradient's sum."""

    def __init__(self, layer: Shape, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.few = nn.Conv2d(
            layer.inputs, layer.outputs // ratio, layer.kernel, layer.stride, layer.padding
        )
        self.value: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, O, H, W), from a result that is computed once."""
        if self.value is None:
            with torch.no_grad():
                self.value = self.few(x)
            self.value.requires_grad_()
        copies = self.value.unsqueeze(-4).expand(-1, self.ratio, -1, -1, -1)
        return copies.flatten(-4, -3)


def report(
    counts: Mapping[Shape, int], plans: Sequence[str], arguments: argparse.Namespace
) -> None:
    """Print ratios per layer and for the network."""
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    copies = [f"copies {PLANS[name].out_part}" for name in plans if PLANS[name].wrap]
    columns = [*plans, *copies]
    print(f"{'layer':>24} {'x':>2} {'dense ms':>9} " + " ".join(f"{n:>9}" for n in columns))
    dense_total = 0.0
    totals: dict[str, tuple[float, float]] = dict.fromkeys(columns, (0.0, 0.0))
    for shape, count in counts.items():
        layers: dict[str, nn.Module] = {"dense": shape.dense()}
        for name in plans:
            epitome = shape.epitome(PLANS[name])
            if epitome is not None:
                layers[name] = epitome
                if PLANS[name].wrap:
                    ratio = PLANS[name].out_part
                    layers[f"copies {ratio}"] = Replicas(shape, ratio)
        x = torch.randn(arguments.batch, shape.inputs, shape.size, shape.size)
        if arguments.channels_last:
            x = x.to(memory_format=torch.channels_last)
            for layer in layers.values():
                layer.to(memory_format=torch.channels_last)
        found = medians(layers, x.requires_grad_(), arguments.repeats, clock)
        dense = found["dense"]
        dense_total += dense * count
        cells = []
        for name in columns:
            if name in found:
                spent, of = totals[name]
                totals[name] = (spent + found[name] * count, of + dense * count)
            cells.append(f"{found[name] / dense:9.3f}" if name in found else f"{'':9}")
        print(f"{shape!s:>24} {count:2} {dense * 1e3:9.1f} " + " ".join(cells), flush=True)
    ratios = " ".join(f"{spent / of if of else 0:9.3f}" for spent, of in totals.values())
    print(f"{'all that apply':>24} {sum(counts.values()):2} {dense_total * 1e3:9.1f} {ratios}")
    goals = " ".join(f"{PLANS[n].goal:9.3f}" if n in PLANS else f"{'':9}" for n in columns)
    print(f"{'goal':>24} {'':2} {'':9} {goals}")


def main() -> None:
    """Time what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--layers", help="only shapes whose text contains this")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    counts = {s: n for s, n in shapes().items() if (arguments.layers or "") in str(s)}
    report(counts, arguments.plans, arguments)


if __name__ == "__main__":
    main()
