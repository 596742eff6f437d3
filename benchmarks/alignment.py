"""Projection of trained weights onto epitomes: what aligned channels and output errors are worth.

Every convolution but the first becomes an epitome of the same shape. Printed per network: the
relative squared error of the weights, as sampled and aligned, on the trained weights and on
Gaussian noise of the same sizes (what a search finds where there is nothing to find); top-1 with
recalibrated batch norm; what per-channel scales do; and top-1 after a brief fine-tuning with 3-bit
weights. Everything is compared within the run.

    OMP_NUM_THREADS=1 python benchmarks/alignment.py [--images FOLDER --weights FILE] [--cache DIR]

Without `--images` it takes the Fashion-MNIST images and the ResNet-20 that ship with the package.
With them, FILE is a ResNet-20 that is fine-tuned for 1500 steps first. A wider ResNet-8 is trained
from the start. Both are kept in the cache folder.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import numpy as np
import torch
from subjects import Source
from torch import Tensor, nn

from epim_nas import Choice, Design, EpitomeShape, Network, apply_design, trace
from epim_nas.data.base import Data
from epim_nas.epitome.alignment import Alignment, align
from epim_nas.epitome.statistics import batch_norm_importance, input_covariances
from epim_nas.network.batch_norm import following_batch_norms
from epim_nas.supernet.evaluation import evaluate, recalibrate_batch_norm
from epim_nas.supernet.training import TrainConfig, train

# (O / Oe, I / Ie, height and width, wrapped, O / Op)
SHAPES = {
    "O/2 wrapped": (2, 1, 3, True, 2),
    "O/2": (2, 1, 3, False, 2),
    "I/2": (1, 2, 3, False, 1),
    "I/2, patch O/2": (1, 2, 3, False, 2),
    "I/2, patch O/4": (1, 2, 3, False, 4),
    "I/2 4x4": (1, 2, 4, False, 1),
    "O/2 I/2": (2, 2, 3, False, 2),
    "I/4": (1, 4, 3, False, 1),
}
TUNED = ["O/2 wrapped", "O/2", "I/2", "I/2, patch O/4"]
CALIBRATION = 1000


def choice(weight_shape: tuple[int, ...], shape: str, bits: int | None = None) -> Choice:
    """The epitome of a named shape for a weight."""
    outputs, inputs, size, wrap, parts = SHAPES[shape]
    epitome = EpitomeShape(weight_shape[0] // outputs, weight_shape[1] // inputs, size, size)
    patch = (weight_shape[0] // parts, epitome.in_channels)
    return Choice(epitome, wrap=wrap, weight_bits=bits, patch=patch)


class Subject:
    """A trained network, its data, and what is measured of it once."""

    def __init__(self, name: str, model: nn.Module, data: Data, images: int) -> None:
        self.name, self.model, self.data = name, model.eval(), data
        self.network: Network = trace(model, data.input_shape, name)
        self.layers = [layer for layer in self.network.weighted if layer.type == "conv"][1:]
        self.calibration = data.calibration_batches(CALIBRATION, 250)
        # Images may be in the order of their classes: take them evenly.
        everything = list(data.batches("test", 500))
        every = max(1, data.sizes["test"] // images)
        x, y = (torch.cat(parts)[::every] for parts in zip(*everything, strict=True))
        self.test = list(zip(x.split(500), y.split(500), strict=True))
        names = [layer.name for layer in self.layers]
        started = time.monotonic()
        self.covariances = input_covariances(model, self.calibration, names)
        self.importance = batch_norm_importance(model)
        print(
            f"\n{name}: {len(names)} layers, top-1 {100 * self.accuracy(model, False):.1f} % of "
            f"{len(y)} test images; covariances of {CALIBRATION} images took "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )

    def weight(self, name: str) -> Tensor:
        """The trained weight of a layer."""
        weight = self.model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        return weight.detach().double()

    def design(self, shape: str, bits: int | None = None) -> Design:
        """The design that gives every layer the named shape."""
        return Design(
            self.name,
            {layer.name: choice(layer.weight_shape, shape, bits) for layer in self.layers},
        )

    def accuracy(self, model: nn.Module, recalibrate: bool = True) -> float:
        """Top-1 on the test images."""
        if recalibrate:
            recalibrate_batch_norm(model, self.calibration)
        return evaluate(model, self.test).accuracy


def mean(values: list[float]) -> float:
    """Mean over the layers."""
    return float(np.mean(values))


def errors(subject: Subject) -> None:
    """Relative squared error of the weights, mean over the layers."""
    generator = np.random.default_rng(0)
    noise = {layer.name: generator.normal(size=layer.weight_shape) for layer in subject.layers}
    print(f"{'shape':16} rounds  naive aligned factor  noise aligned factor  seconds")
    for shape in SHAPES:
        started, rounds = time.process_time(), 0
        found: list[Alignment] = []
        plans = {n: c.plan(subject.network[n]) for n, c in subject.design(shape).choices.items()}
        for name, plan in plans.items():
            found.append(align(subject.weight(name).numpy(), plan))
            rounds += plan.rounds
        spent = time.process_time() - started
        blind = [align(noise[name], plan) for name, plan in plans.items()]
        cells = []
        for results in (found, blind):
            before = mean([result.error_before for result in results])
            after = mean([result.error_after for result in results])
            cells.append(f"{before:6.3f} {after:7.3f} {after / before:6.2f}")
        print(f"{shape:16} {rounds / len(plans):6.1f} {'  '.join(cells)} {spent:8.1f}", flush=True)


def recalibrated(subject: Subject, shapes: list[str]) -> None:
    """Top-1 of the float epitomes after recalibration, by how they were projected."""
    ways: dict[str, dict[str, Any]] = {
        "naive": {},
        "aligned": {"align": True},
        "BN-weighted": {"align": True, "importance": subject.importance},
        "outputs": {"covariances": subject.covariances},
        "aligned, outputs": {"align": True, "covariances": subject.covariances},
    }
    print("\ntop-1 %, recalibrated\n" + f"{'shape':16} " + " ".join(f"{w:>16}" for w in ways))
    for shape in shapes:
        cells = []
        for options in ways.values():
            model = apply_design(subject.model, subject.design(shape), **options)
            cells.append(f"{100 * subject.accuracy(model):16.1f}")
        print(f"{shape:16} " + " ".join(cells), flush=True)


def scales(subject: Subject) -> None:
    """What a scale an output channel does to the weight, and to what batch norm makes of it."""
    norms = following_batch_norms(subject.model)
    plain, scaled = copy.deepcopy(subject.model), copy.deepcopy(subject.model)
    rows: dict[str, list[list[float]]] = {"aligned": [], "aligned, scaled": []}
    for layer in subject.layers:
        name, weight = layer.name, subject.weight(layer.name)
        if name not in norms:
            continue
        plan = choice(layer.weight_shape, "O/2 wrapped").plan(layer)
        order = torch.tensor(align(weight.numpy(), plan).plan.out_order)
        flat = weight.flatten(1)
        half = plan.patch[0]
        pairs = torch.stack([flat[order[:half]], flat[order[half:]]], 1)
        left, size, right = torch.linalg.svd(pairs, full_matrices=False)
        rank_one = size[:, :1, None] * left[:, :, :1] * right[:, :1]
        sigma = subject.covariances[name][0].double()
        gamma = subject.model.get_submodule(norms[name]).weight.detach().double()
        for way, model, found in (
            ("aligned", plain, pairs.mean(1, keepdim=True).expand_as(pairs)),
            ("aligned, scaled", scaled, rank_one),
        ):
            approximation = torch.empty_like(flat)
            approximation[order] = torch.cat([found[:, 0], found[:, 1]])
            energy = lambda a, b: ((a @ sigma) * b).sum(1)  # noqa: E731, B023
            own = energy(flat, flat)
            mine = energy(approximation, approximation).clamp(min=1e-30)
            correlation = energy(flat, approximation) / (own * mine).sqrt()
            lost = energy(flat - approximation, flat - approximation)
            after = gamma.square() * 2 * (1 - correlation)
            rows[way].append(
                [
                    float((flat - approximation).square().sum() / flat.square().sum()),
                    float((gamma.square() * lost / own).sum() / gamma.square().sum()),
                    float(after.sum() / gamma.square().sum()),
                    float((mine / own < 0.1).double().mean()),
                ]
            )
            with torch.no_grad():
                model.get_submodule(name).weight.copy_(approximation.reshape(weight.shape))  # type: ignore[union-attr, operator]
    print("\nO/2 wrapped   weights' error  outputs' before BN  after BN  channels < 10 %   top-1 %")
    for way, model in (("aligned", plain), ("aligned, scaled", scaled)):
        a, b, c, d = np.mean(rows[way], axis=0)
        top = 100 * subject.accuracy(model)
        print(f"{way:15} {a:12.3f} {b:19.3f} {c:9.3f} {100 * d:14.1f} % {top:9.1f}", flush=True)


def finetuned(subject: Subject, shapes: list[str], steps: int, lr: float) -> None:
    """Top-1 after a brief training with 3-bit weights."""
    ways: dict[str, dict[str, Any]] = {
        "naive": {},
        "aligned": {"align": True},
        "aligned, outputs": {"align": True, "covariances": subject.covariances},
    }
    print(f"\ntop-1 %, 3-bit weights, after {steps} steps of 128 at a rate of {lr}")
    print(f"{'shape':16} " + " ".join(f"{w:>16}" for w in ways))
    config = TrainConfig(steps, 128, lr=lr)
    for shape in shapes:
        print(f"{shape:16}", end="", flush=True)
        for options in ways.values():
            model = apply_design(subject.model, subject.design(shape, bits=3), **options)
            train(model, subject.data, config, device="cpu")
            print(f" {100 * subject.accuracy(model):16.1f}", end="", flush=True)
        print(flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Aligned projection, measured.")
    Source.add_arguments(parser, cache="runs/alignment")
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet8_wide"])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="to recalibrate")
    parser.add_argument("--tune", nargs="*", default=TUNED, help="shapes to fine-tune")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--test-images", type=int, default=2000)
    arguments = parser.parse_args()
    source = Source.of(arguments)
    data = source.data()
    for name in arguments.networks:
        model = source.network(name, data)
        subject = Subject(name, model, data, arguments.test_images)
        errors(subject)
        recalibrated(subject, arguments.shapes)
        scales(subject)
        if arguments.tune:
            finetuned(subject, arguments.tune, arguments.steps, lr=0.01)


if __name__ == "__main__":
    main()
