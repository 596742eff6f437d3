"""Speed of the epitome convolution against ``nn.Conv2d``, forward and backward, on ResNet-50.

Every layer shape of ResNet-50 is timed dense and as epitomes in turn, several times over, in one
run; what counts are the ratios of the medians, per layer and for the whole network (each shape
times how often it occurs). On one thread the time is that of the process's CPU, so that other
programs on the machine matter less.

`bare` beside a wrapped plan is the time of a dense convolution with the channels that are left and
of the bare copies or sums: what the plan cannot avoid as long as a dense convolution does the work.

    OMP_NUM_THREADS=1 python benchmarks/epitome_operator.py --reuse-memory
    OMP_NUM_THREADS=1 python benchmarks/epitome_operator.py --channels-last
    python benchmarks/epitome_operator.py --batch 8 --repeats 3 --threads 2 --plans O/2 "wrap 4"
"""

from __future__ import annotations

import argparse
import ctypes
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

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

    def epitome(self, plan: Plan, reorder: bool = False) -> EpitomeConv2d | None:
        """The layer of a plan, None where it does not apply."""
        if self.inputs < 64 or (plan.growth and self.kernel != 3):
            return None  # the stem, which sees the image, is dense in every search space
        kernel = self.kernel + plan.growth
        layer = EpitomeConv2d(
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
        if reorder:
            orders = torch.randperm(self.outputs), torch.randperm(self.inputs)
            layer.plan = layer.plan.reordered(orders[0].tolist(), [orders[1].tolist()])
        return layer


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


class Replicas(nn.Module):
    """Nothing but the copies that output wrapping has to write, and the sum of their gradients."""

    def __init__(self, layer: Shape, ratio: int, x: Tensor) -> None:
        super().__init__()
        self.ratio = ratio
        size = (layer.size + 2 * layer.padding - layer.kernel) // layer.stride + 1
        few = torch.randn(len(x), layer.outputs // ratio, size, size)
        self.few = nn.Parameter(few)

    def forward(self, x: Tensor) -> Tensor:
        """(N, O, H, W), whatever ``x`` is."""
        return torch.cat([self.few] * self.ratio, 1)


class Sums(nn.Module):
    """Nothing but the sum of the input slabs, and the copies of its gradient."""

    def __init__(self, layer: Shape, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        """(N, I / ratio, H, W)."""
        return sum(x.chunk(self.ratio, 1))


def modules(layer: Shape, plans: Sequence[str], x: Tensor, reorder: bool) -> dict[str, nn.Module]:
    """What is timed of a layer: dense, the epitomes, and the parts that wrapping cannot avoid.

    The parts of ``wrap 4`` are ``wrap 4: conv``, a dense convolution with a quarter of the
    outputs, and ``wrap 4: rest``, the copies.
    """
    found: dict[str, nn.Module] = {"dense": layer.dense()}
    for name in plans:
        plan, epitome = PLANS[name], layer.epitome(PLANS[name], reorder)
        if epitome is None:
            continue
        found[name] = epitome
        if plan.wrap:
            few = replace(layer, outputs=layer.outputs // plan.out_part)
            found[f"{name}: conv"] = few.dense()
            found[f"{name}: rest"] = Replicas(layer, plan.out_part, x)
        if plan.wrap_in:
            few = replace(layer, inputs=layer.inputs // plan.in_part)
            found[f"{name}: conv"] = few.dense()
            found[f"{name}: rest"] = Sums(layer, plan.in_part)
    return found


def medians(
    layers: Mapping[str, nn.Module], x: Tensor, repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of forward and backward; the layers take turns, in random order.

    What a layer finds in caches and in freed memory depends on the one before.
    """
    inputs, grads = {}, {}
    for name, layer in layers.items():
        width = layer.in_channels if isinstance(layer, nn.Conv2d) else x.shape[1]
        inputs[name] = x[:, :width].clone(memory_format=torch.preserve_format).requires_grad_()
        with torch.no_grad():
            grads[name] = torch.randn_like(layer(inputs[name]))
    times: dict[str, list[float]] = {name: [] for name in layers}
    for repeat in range(repeats + 1):  # the first warms up
        for name in random.sample(list(layers), len(layers)):
            layer = layers[name]
            inputs[name].grad = None
            layer.zero_grad()
            started = clock()
            layer(inputs[name]).backward(grads[name])
            if repeat:
                times[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def report(
    counts: Mapping[Shape, int], plans: Sequence[str], arguments: argparse.Namespace
) -> None:
    """Print ratios per layer and for the network; `bare` is what wrapping cannot avoid."""
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    columns = []
    for name in plans:
        columns += [name, "bare"] if PLANS[name].wrap or PLANS[name].wrap_in else [name]
    print(f"{'layer':>22} {'x':>2} {'dense ms':>8} " + " ".join(f"{n:>9}" for n in columns))
    dense_total = 0.0
    totals = [[0.0, 0.0] for _ in columns]
    for shape, count in counts.items():
        x = torch.randn(arguments.batch, shape.inputs, shape.size, shape.size)
        layers = modules(shape, plans, x, arguments.reorder)
        if arguments.channels_last:
            x = x.to(memory_format=torch.channels_last)
            for layer in layers.values():
                layer.to(memory_format=torch.channels_last)
        found = medians(layers, x, arguments.repeats, clock)
        dense = found["dense"]
        dense_total += dense * count
        cells, plan = [], ""
        for name, total in zip(columns, totals, strict=True):
            plan = plan if name == "bare" else name
            spent = found.get(name)
            if name == "bare" and plan in found:
                spent = found[f"{plan}: conv"] + found[f"{plan}: rest"]
            if spent is not None:
                total[0] += spent * count
                total[1] += dense * count
            cells.append("" if spent is None else f"{spent / dense:.3f}")
        line = " ".join(f"{cell:>9}" for cell in cells)
        print(f"{shape!s:>22} {count:2} {dense * 1e3:8.1f} {line}", flush=True)
    ratios = " ".join(f"{spent / of if of else 0:9.3f}" for spent, of in totals)
    print(f"{'all that apply':>22} {sum(counts.values()):2} {dense_total * 1e3:8.1f} {ratios}")
    goals = " ".join(f"{PLANS[n].goal:9.3f}" if n in PLANS else f"{'':9}" for n in columns)
    print(f"{'goal':>22} {'':2} {'':8} {goals}")


def reuse_memory() -> None:
    """Let glibc keep what was freed, as the caching allocators of GPUs do.

    It gives large blocks back otherwise, and the pages of every new tensor are faulted in anew:
    on a virtual machine that can take longer than to fill them.
    """
    mmap_max, trim_threshold = -4, -1
    library = ctypes.CDLL(None)
    assert library.mallopt(mmap_max, 0)
    assert library.mallopt(trim_threshold, 2**31 - 1)


def main() -> None:
    """Time what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--reuse-memory", action="store_true", help="keep freed memory (glibc)")
    parser.add_argument("--reorder", action="store_true", help="channels in another order")
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--layers", help="only shapes whose text contains this")
    arguments = parser.parse_args()
    if arguments.reuse_memory:
        reuse_memory()
    torch.manual_seed(0)
    random.seed(0)
    torch.set_num_threads(arguments.threads)
    counts = {s: n for s, n in shapes().items() if (arguments.layers or "") in str(s)}
    report(counts, arguments.plans, arguments)


if __name__ == "__main__":
    main()
