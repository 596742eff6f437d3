"""What each part of epitome-aware quantization gains, on ResNet-20 and Fashion-MNIST.

Starts from the shipped checkpoint, once with every layer dense and once with epitomes of
overlapping patches, which are trained briefly in floating point first. The first and the last
layer keep 9 bits. Columns:

- error: |W_q - W|^2 / |W|^2 of the expanded weight, mean over the quantized layers
- KL: of the class probabilities of the network before quantization from those after it, and after
  batch-norm recalibration on augmented training images, mean over images in millinats
- recalibrated: top-1 of the same
- fine-tuned: top-1 after a few SGD steps of 64 images, mean over seeds and half the range

Images are the 4,000 of the validation and test splits: about 0.5 points of standard error in an
accuracy of 90 %, less between rows, which see the same images.

Last, the CPU time of quantizing one epitome, forward and backward, relative to the default's.

    OMP_NUM_THREADS=1 python benchmarks/quantization.py [--steps 40] [--seeds 2] [--only PART]
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epim_nas import (
    Choice,
    Design,
    EpitomeShape,
    Network,
    SamplingPlan,
    apply_design,
    load_chip,
    trace,
)
from epim_nas.data.base import Data
from epim_nas.data.config import DataConfig
from epim_nas.data.registry import load_data
from epim_nas.epitome.layers import EpitomeConv2d, EpitomeLinear
from epim_nas.epitome.quantization import (
    Quantization,
    QuantizationRule,
    WeightQuantizer,
    quantization_for,
)
from epim_nas.epitome.sampling import expand
from epim_nas.hardware.mapping import quantized_by_crossbar
from epim_nas.models.registry import build_model
from epim_nas.models.weights import find_weights, load_weights
from epim_nas.supernet.evaluation import autocast, recalibrate_batch_norm
from epim_nas.supernet.training import TrainConfig, train

CHIP = load_chip("xbar_64")
MAX = Quantization(weight_range="max")
GAUSSIAN = Quantization(weight_range="gaussian")
LEAST_SQUARES = Quantization(weight_range="least_squares")

Options = Quantization | QuantizationRule


def tensor(options: Quantization) -> Quantization:
    """A step for the whole epitome."""
    return replace(options, granularity="tensor")


def crossbar(options: Quantization) -> QuantizationRule:
    """A step for each crossbar."""
    return quantized_by_crossbar(options, CHIP)


def overlap(options: Quantization, *weights: float) -> Quantization:
    """Weighted ranges of the overlapped elements and of the rest."""
    return replace(options, overlap_weights=(weights[0], weights[1]))


def by_repeats(options: Quantization) -> Quantization:
    """Elements count as often as the weight repeats them."""
    return replace(options, by_repeats=True)


def learned(options: Quantization) -> Quantization:
    """Steps are trained."""
    return replace(options, learned_weight_step=True)


@dataclass(frozen=True)
class Row:
    """A row: its name, its options, and whether it is fine-tuned (the others say enough before)."""

    name: str
    options: Options
    tune: bool = True


DENSE = [
    Row("tensor, max (baseline)", tensor(MAX)),
    Row("crossbar, max", crossbar(MAX), False),
    Row("channel, max", MAX, False),
    Row("tensor, least squares", tensor(LEAST_SQUARES), False),
    Row("crossbar, least squares", crossbar(LEAST_SQUARES), False),
    Row("channel, Gaussian (default)", GAUSSIAN),
    Row("channel, least squares", LEAST_SQUARES, False),
    Row("tensor, max, learned", tensor(learned(MAX))),
    Row("channel, least squares, learned", learned(LEAST_SQUARES)),
]

# Ternary weights leave the most to be trained.
TERNARY = [
    Row("tensor, max (baseline)", tensor(MAX), False),
    Row("crossbar, max", crossbar(MAX), False),
    Row("channel, max", MAX, False),
    Row("tensor, least squares", tensor(LEAST_SQUARES)),
    Row("crossbar, least squares", crossbar(LEAST_SQUARES), False),
    Row("channel, Gaussian (default)", GAUSSIAN),
    Row("channel, least squares", LEAST_SQUARES, False),
    Row("tensor, least squares, learned", tensor(learned(LEAST_SQUARES))),
    Row("channel, Gaussian, learned", learned(GAUSSIAN)),
]

OVERLAPPING = [
    Row("tensor, max (baseline)", tensor(MAX)),
    Row("channel, max", MAX, False),
    Row("crossbar, max", crossbar(MAX)),
    Row("crossbar, max, overlap 0.7 / 0.3", crossbar(overlap(MAX, 0.7, 0.3))),
    Row("crossbar, max, overlap 1 / 0", crossbar(overlap(MAX, 1, 0)), False),
    Row("crossbar, max, overlap 0.5 / 0.1", crossbar(overlap(MAX, 0.5, 0.1)), False),
    Row("channel, Gaussian (default)", GAUSSIAN),
    Row("channel, Gaussian, overlap 0.7 / 0.3", overlap(GAUSSIAN, 0.7, 0.3), False),
    Row("channel, Gaussian, by repeats", by_repeats(GAUSSIAN), False),
    Row("crossbar, least squares", crossbar(LEAST_SQUARES), False),
    Row("crossbar, least squares, by repeats", crossbar(by_repeats(LEAST_SQUARES)), False),
    Row("channel, least squares", LEAST_SQUARES, False),
    Row("channel, least squares, by repeats", by_repeats(LEAST_SQUARES)),
    Row("channel, Gaussian, learned", learned(GAUSSIAN), False),
    Row("crossbar, least squares by repeats, learned",
        crossbar(learned(by_repeats(LEAST_SQUARES)))),
    Row("channel, least squares by repeats, learned", learned(by_repeats(LEAST_SQUARES))),
]  # fmt: skip

FIXED = Quantization(learned_activation_step=False)
INPUTS = [
    Row("maximum (baseline)", replace(FIXED, activation_range="percentile", percentile=100.0)),
    Row("percentile 99.9", replace(FIXED, activation_range="percentile"), False),
    Row("percentile 99", replace(FIXED, activation_range="percentile", percentile=99.0)),
    Row("least squares", FIXED),
    Row("maximum, learned", Quantization(activation_range="percentile", percentile=100.0)),
    Row("least squares, learned (default)", Quantization()),
]


class Bench:
    """The network, the images, and how to measure.

    Args:
        model: the trained dense network.
        network: its geometry.
        data: the images.
        steps: steps of a fine-tuning.
        seeds: fine-tunings of a row.
    """

    def __init__(
        self, model: nn.Module, network: Network, data: Data, steps: int, seeds: int
    ) -> None:
        self.model, self.network, self.data = model, network, data
        self.steps, self.seeds = steps, seeds
        self.calibration = data.calibration_batches(1000, 500, seed=3)
        splits = [batch for split in ("validation", "test") for batch in data.batches(split, 500)]  # type: ignore[arg-type]
        self.images = [images for images, _ in splits]
        self.labels = torch.cat([labels for _, labels in splits])

    @torch.no_grad()
    def scores(self, model: nn.Module) -> Tensor:
        """(N, classes) log-probabilities of the held-out images, after recalibration."""
        recalibrate_batch_norm(model, self.calibration)
        model.eval()
        with autocast(torch.device("cpu")):
            return torch.cat([F.log_softmax(model(x).float(), 1) for x in self.images])

    def accuracy(self, scores: Tensor) -> float:
        """Top-1 in percent."""
        return 100 * float((scores.argmax(1) == self.labels).float().mean())

    def train(self, model: nn.Module, steps: int, seed: int) -> nn.Module:
        """A copy, trained."""
        model = copy.deepcopy(model)
        train(model, self.data, TrainConfig(steps, 64, lr=0.01), seed=seed, device="cpu")
        return model

    def print_row(
        self, row: Row, model: nn.Module, reference: Tensor, error: str, steps: int
    ) -> None:
        """Measure a quantized model and print its row."""
        scores = self.scores(model)
        divergence = F.kl_div(scores, reference, reduction="batchmean", log_target=True)
        tuned = "-"
        if row.tune:
            found = [
                self.accuracy(self.scores(self.train(model, steps, seed)))
                for seed in range(self.seeds)
            ]
            tuned = f"{sum(found) / len(found):.1f} ±{(max(found) - min(found)) / 2:.1f}"
        cells = [row.name, *([error] if error else []), f"{1000 * float(divergence):.1f}"]
        print(f"| {' | '.join(cells)} | {self.accuracy(scores):.1f} | {tuned} |", flush=True)


def design_of(network: Network, choose: Callable[[tuple[int, int, int, int]], Choice]) -> Design:
    """The design of a choice for each weight shape; the first and the last layer dense at 9 bits.

    Layers that have no bits keep none there either.
    """
    choices = {layer.name: choose(layer.weight_shape) for layer in network.weighted}
    for name in (network.weighted[0].name, network.weighted[-1].name):
        inner = choices[name]
        choices[name] = Choice(
            weight_bits=inner.weight_bits and 9, activation_bits=inner.activation_bits and 9
        )
    return Design(network.name, choices)


def dense(network: Network, weight_bits: int | None, input_bits: int | None = None) -> Design:
    """Every layer dense."""
    choice = Choice(weight_bits=weight_bits, activation_bits=input_bits)
    return design_of(network, lambda _: choice)


def overlapping(network: Network, weight_bits: int | None) -> Design:
    """Epitomes of 4x4 and half of the input channels, read by patches of 3x3 and a quarter."""

    def choose(shape: tuple[int, int, int, int]) -> Choice:
        outs, ins = shape[:2]
        if shape[2:] != (3, 3):
            return Choice(weight_bits=weight_bits)
        epitome = EpitomeShape(outs, max(1, ins // 2), 4, 4)
        return Choice(epitome, weight_bits=weight_bits, patch=(outs, max(1, ins // 4)))

    return design_of(network, choose)


def started_from(source: nn.Module, model: nn.Module) -> nn.Module:
    """``model`` with the parameters and statistics of ``source``; learned steps start from them."""
    model.load_state_dict(source.state_dict(), strict=False)
    for layer in model.modules():
        if isinstance(layer, (EpitomeConv2d, EpitomeLinear)):
            layer.weight_quantizer.calibrate(layer.epitome)
    return model


@torch.no_grad()
def relative_error(model: nn.Module, bits: int) -> float:
    """Mean over the layers of ``bits`` bits of |W_q - W|^2 / |W|^2, W the expanded epitome."""
    errors = []
    for layer in model.modules():
        if isinstance(layer, EpitomeConv2d) and layer.weight_bits == bits:
            weight = expand(layer.epitome, layer.plan)
            errors.append(float((layer.weight - weight).square().sum() / weight.square().sum()))
    return sum(errors) / len(errors)


def dense_weights(bench: Bench, bits: int, rows: Sequence[Row], steps: int) -> None:
    """The table of the weights' options where every layer is dense."""
    reference = bench.scores(copy.deepcopy(bench.model))
    accuracy = bench.accuracy(reference)
    print_head(f"Dense, weights of {bits} bits, {steps} steps (floating point {accuracy:.1f} %)")
    for row in rows:
        model = apply_design(bench.model, dense(bench.network, bits), quantization=row.options)
        error = f"{relative_error(model, bits):.4f}"
        bench.print_row(row, model, reference, error, steps)


def overlapping_weights(bench: Bench, bits: int, steps: int) -> None:
    """The table of the weights' options where patches overlap."""
    projected = apply_design(bench.model, overlapping(bench.network, None))
    before = bench.accuracy(bench.scores(projected))
    trained = bench.train(projected, steps, seed=10)
    reference = bench.scores(trained)
    design, first = overlapping(bench.network, bits), bench.network.weighted[1]
    repeats = np.bincount(design[first.name].plan(first).repeats.ravel())
    shares = ", ".join(f"{n}: {share:.0%}" for n, share in enumerate(repeats / repeats.sum()))
    print(f"\nElements of {first.name} by how often they are repeated: {shares}")
    print_head(
        f"Overlapping patches, weights of {bits} bits (floating point {before:.1f} % projected, "
        f"{bench.accuracy(reference):.1f} % after {steps} steps)"
    )
    for row in OVERLAPPING:
        model = apply_design(bench.model, design, quantization=row.options)
        model = started_from(trained, model)
        error = f"{relative_error(model, bits):.4f}"
        bench.print_row(row, model, reference, error, bench.steps)


def inputs(bench: Bench, bits: int) -> None:
    """The table of the inputs' options, weights in floating point."""
    reference = bench.scores(copy.deepcopy(bench.model))
    print_head(f"Dense, inputs of {bits} bits", with_error=False)
    images = bench.data.calibration_batches(256, 256, seed=5)[0][0]
    for row in INPUTS:
        model = apply_design(
            bench.model, dense(bench.network, None, bits), quantization=row.options
        )
        with torch.no_grad():
            model.eval()(images)
        bench.print_row(row, model, reference, "", bench.steps)


def speed(repeats: int = 30) -> None:
    """The table of CPU times of a weight quantizer, on an epitome of 128x64x4x4 and 3 bits."""
    plan = SamplingPlan.build((128, 128, 3, 3), EpitomeShape(128, 64, 4, 4))
    epitome = torch.randn(plan.shape.as_tuple, requires_grad=True)
    options: list[tuple[str, Options]] = [
        ("channel, Gaussian (default)", GAUSSIAN),
        ("channel, Gaussian, by repeats", by_repeats(GAUSSIAN)),
        ("crossbar, max, overlap 0.7 / 0.3", crossbar(overlap(MAX, 0.7, 0.3))),
        ("channel, least squares, by repeats", by_repeats(LEAST_SQUARES)),
        ("channel, learned", learned(GAUSSIAN)),
    ]
    print("\nCPU time of a quantizer\n\n| options | relative |\n|---|---|")
    default = 0.0
    for name, option in options:
        quantizer = WeightQuantizer(3, plan, quantization_for(option, plan, 3))
        times = []
        for _ in range(repeats):
            started = time.process_time()
            quantizer(epitome).sum().backward()
            times.append(time.process_time() - started)
        default = default or min(times)
        print(f"| {name} | {min(times) / default:.1f} |", flush=True)


def print_head(title: str, with_error: bool = True) -> None:
    """A table's title and head."""
    columns = ["options", *(["error"] if with_error else []), "KL", "recalibrated", "fine-tuned"]
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Gains of epitome-aware quantization.")
    parser.add_argument("--steps", type=int, default=40, help="steps of a fine-tuning")
    parser.add_argument("--seeds", type=int, default=2, help="fine-tunings of a row")
    parser.add_argument("--only", choices=["overlapping", "dense", "ternary", "inputs", "speed"])
    given = parser.parse_args()
    started = time.monotonic()
    data = load_data(DataConfig(name="fashion_mnist_subset"))
    model = build_model("resnet20", in_channels=1, num_classes=10)
    load_weights(model, find_weights("fashion_mnist_resnet20"))
    network = trace(model.eval(), data.input_shape, "resnet20")
    bench = Bench(model, network, data, given.steps, given.seeds)
    parts: dict[str, Callable[[], None]] = {
        "overlapping": lambda: overlapping_weights(bench, bits=3, steps=5 * given.steps),
        "dense": lambda: dense_weights(bench, 3, DENSE, given.steps),
        "ternary": lambda: dense_weights(bench, 2, TERNARY, 4 * given.steps),
        "inputs": lambda: inputs(bench, bits=3),
        "speed": speed,
    }
    for name, part in parts.items():
        if given.only in (None, name):
            part()
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
