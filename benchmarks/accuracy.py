"""Accuracy at equal crossbars: the searched design against what one would do without a search.

At several budgets, given as crossbar compression against the dense 32-bit network, the best design
that each method finds is fine-tuned by one recipe with several seeds:

    searched  designs at and around the exact optimum of the additive score, scored on the
              untrained supernet
    bits      the exact optimum over bit-widths alone, every layer dense
    uniform   one relative epitome shape and one bit-width for all layers
    pruned    structured channel pruning to the same crossbars, one bit-width
    random    random designs of the space, repaired into the budget

Where a method has several candidates, the best by recalibrated validation loss (of the search, by
expected rank) are trained briefly, and the best of them by validation accuracy goes on. Validation
images choose, test images are only reported. Everything a budget compares is measured in one run.

    OMP_NUM_THREADS=1 python benchmarks/accuracy.py [--images FOLDER --weights FILE] [--cache DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from typing import Any

import numpy as np
from lab import Lab, Records, mean_and_spread
from pruning import pruned
from subjects import NETWORKS, Source
from torch import nn

from epim_nas import Choice, Design
from epim_nas.hardware import CostModel
from epim_nas.models.resnet_cifar import CifarResNet
from epim_nas.network.trace import trace
from epim_nas.pipeline.progress import Reporter
from epim_nas.pipeline.setup import Setup
from epim_nas.pipeline.single import quantized_network
from epim_nas.space.config import load_space_config
from epim_nas.space.space import Row, SearchSpace
from epim_nas.study.knapsack import Infeasible, Knapsack
from epim_nas.study.problem import SearchProblem
from epim_nas.study.samplers import mutate
from epim_nas.study.score import expected_rank
from epim_nas.supernet.training import TrainConfig

RATIOS = (1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.1875, 0.125)
"""Parts of the channels that pruning may keep."""
CANDIDATES, TRIAL_STEPS = 5, 25
"""How many candidates of a method are tried briefly, and for how long."""
TRIALS = 24
"""Designs that the search scores with shared weights."""


@dataclass(frozen=True)
class Candidate:
    """A network that a method proposes.

    Attributes:
        text: what it is, in words.
        setup: the run of its dense network.
        design: how that network is quantized and shrunk.
        start: the projected and calibrated network; made once.
    """

    text: str
    setup: Setup
    design: Design
    start: Callable[[], nn.Module]

    @cached_property
    def _start(self) -> nn.Module:
        return self.start()

    @cached_property
    def crossbars(self) -> int:
        """Crossbars of the design."""
        return int(self.setup.metrics(self.design)["crossbars"])

    def network(self) -> nn.Module:
        """A network of its own, ready to be fine-tuned."""
        return copy.deepcopy(self._start)


class Study:
    """The methods on one network.

    Args:
        lab: the network under its search space.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        config = load_space_config(str(lab.setup.config.space))
        self._choices = SearchSpace.build(config, lab.setup.network, lab.setup.chip).layer_choices

    def propose(self, method: str, budget: int, seed: int) -> list[Candidate]:
        """The candidates of a method, all within a budget of crossbars.

        Raises:
            Infeasible: the method reaches no such budget.
        """
        found: list[Candidate] = getattr(self, f"_{method}")(budget, seed)
        if not found:
            raise Infeasible(0, budget)
        return found

    def _searched(self, budget: int, seed: int) -> list[Candidate]:
        """What a search does, in small: the exact optimum and designs around it on the supernet.

        The most promising by what is expected of them after training come first.
        """
        problem, rng = self.lab.problem(budget), np.random.default_rng([7, budget])
        best = problem.solve(problem.sensitivity).row
        rows = {best: None}
        with contextlib.suppress(Infeasible):
            rows[self._bits_row(problem)] = None
        starts = list(rows)
        for _ in range(20 * TRIALS):
            if len(rows) == TRIALS:
                break
            start = starts[int(rng.integers(len(starts)))]
            changed = mutate(start, problem, rng, int(rng.integers(1, 4)))
            rows[problem.repair(changed)] = None
        expected = {}
        for row in rows:
            loss = self.lab.score(self.lab.supernet, row).loss
            additive = problem.total(problem.sensitivity, row)
            expected[row] = expected_rank({"sensitivity": additive, "loss": loss})
        hopeful = sorted(rows, key=lambda row: -expected[row])[:CANDIDATES]
        return [self._of_row("around the exact optimum", row) for row in hopeful]

    def _bits(self, budget: int, seed: int) -> list[Candidate]:
        """The exact optimum over the choices without an epitome."""
        return [self._of_row("bits only", self._bits_row(self.lab.problem(budget)))]

    def _bits_row(self, problem: SearchProblem) -> Row:
        dense = [
            np.flatnonzero([all(choice.shape is None for choice in row) for row in group.choices])
            for group in problem.space.groups
        ]
        losses = [loss[kept] for loss, kept in zip(problem.sensitivity, dense, strict=True)]
        weights = [weight[kept] for weight, kept in zip(problem.crossbars, dense, strict=True)]
        row = Knapsack(losses, weights, int(problem.limits["crossbars"])).solve().row
        return tuple(int(kept[index]) for kept, index in zip(dense, row, strict=True))

    def _random(self, budget: int, seed: int) -> list[Candidate]:
        """Random rows; a random layer at a time is made smaller until the row fits."""
        rng = np.random.default_rng([seed, budget])
        rows = {self.lab.random_row(budget, rng) for _ in range(CANDIDATES)}
        return [self._of_row("random", row) for row in sorted(rows)]

    def _uniform(self, budget: int, seed: int) -> list[Candidate]:
        """Every layer the same relative epitome and bits, where it has that choice."""
        layers = {layer.name: layer for layer in self.lab.setup.network.weighted}
        kinds = {
            _kind(choice, layers[name].weight_shape)
            for name, choices in list(self._choices.items())[1:-1]
            for choice in choices
        }
        fitting: list[tuple[tuple[float, ...], Candidate]] = []
        for kind in sorted(kinds, key=str):
            choices = {
                name: next(
                    (c for c in options if _kind(c, layers[name].weight_shape) == kind),
                    self._dense(name, kind.weight_bits),
                )
                for name, options in self._choices.items()
            }
            candidate = self._of_design(str(kind), self.lab.setup, choices)
            if candidate.crossbars <= budget:
                size = kind.out * kind.into * (kind.growth + 3) ** 2
                # Of the same size and bits, finer patches fit better, and wrapped ones worse.
                merit = (size, kind.weight_bits, -kind.wrap, -kind.patch)
                fitting.append((tuple(float(value) for value in merit), candidate))
        return _not_dominated(fitting)

    def _pruned(self, budget: int, seed: int) -> list[Candidate]:
        """Narrower networks at one bit-width: widths of streams and blocks apart."""
        model = self.lab.setup.model
        assert isinstance(model, CifarResNet)
        inner_layers = list(self._choices)[1:-1]
        bits = sorted({c.weight_bits or 32 for n in inner_layers for c in self._choices[n]})
        fitting: list[tuple[tuple[float, ...], Candidate]] = []
        for stream, inner in itertools.product(RATIOS, RATIOS):
            narrow = pruned(model, stream, inner)
            network = trace(narrow, self.lab.setup.data.input_shape, self.lab.setup.network.name)
            cost = CostModel(network, self.lab.setup.chip)
            setup = replace(self.lab.setup, model=narrow, network=network, cost=cost)
            for width in bits:
                choices = {name: self._dense(name, width) for name in self._choices}
                text = f"{stream:g} of the streams, {inner:g} of the blocks, {width} bits"
                candidate = self._of_design(text, setup, choices)
                if candidate.crossbars <= budget:
                    fitting.append(((stream, inner, width), candidate))
        return _not_dominated(fitting)

    def _dense(self, layer: str, bits: int) -> Choice:
        """A layer's dense choice of so many weight bits, or of the next more, or of the most."""
        dense = [choice for choice in self._choices[layer] if choice.shape is None]
        enough = [choice for choice in dense if (choice.weight_bits or 32) >= bits]
        if not enough:
            return max(dense, key=lambda c: (c.weight_bits or 32, c.activation_bits or 32))
        return min(enough, key=lambda c: (c.weight_bits or 32, -(c.activation_bits or 32)))

    def _of_design(self, text: str, setup: Setup, choices: dict[str, Choice]) -> Candidate:
        design = Design(setup.network.name, choices)
        return Candidate(
            text, setup, design, partial(quantized_network, setup, design, None, Reporter())
        )

    def _of_row(self, text: str, row: Row) -> Candidate:
        start = partial(self.lab.supernet.extract, row)
        return Candidate(text, self.lab.setup, self.lab.space.design(row), start)


@dataclass(frozen=True)
class _Kind:
    """A choice relative to its layer."""

    out: Fraction
    into: Fraction
    growth: int
    wrap: bool
    patch: Fraction
    weight_bits: int
    activation_bits: int

    def __str__(self) -> str:
        shape = f"{self.out} x {self.into} of the channels, +{self.growth}"
        return f"{shape}{', wrapped' * self.wrap}, patch {self.patch}, {self.weight_bits} bits"


def _kind(choice: Choice, weight_shape: tuple[int, int, int, int]) -> _Kind:
    outputs, inputs, height, _ = weight_shape
    bits = (choice.weight_bits or 32, choice.activation_bits or 32)
    if choice.shape is None:
        return _Kind(Fraction(1), Fraction(1), 0, False, Fraction(1), *bits)
    patch = choice.shape.out_channels if choice.patch is None else choice.patch[0]
    return _Kind(
        Fraction(choice.shape.out_channels, outputs),
        Fraction(choice.shape.in_channels, inputs),
        choice.shape.height - height,
        choice.wrap,
        Fraction(patch, choice.shape.out_channels),
        *bits,
    )


def _not_dominated(fitting: Sequence[tuple[tuple[float, ...], Candidate]]) -> list[Candidate]:
    """The candidates that no other one reaches in every merit; of equals, the first."""
    kept = []
    for number, (merit, candidate) in enumerate(fitting):
        beaten = any(
            all(a >= b for a, b in zip(other, merit, strict=True))
            and (other != merit or earlier < number)
            for earlier, (other, _) in enumerate(fitting)
            if earlier != number
        )
        if not beaten:
            kept.append(candidate)
    return kept


def selected(lab: Lab, candidates: Sequence[Candidate], seed: int) -> Candidate:
    """The candidate that a brief training likes best on the validation images."""
    if len(candidates) == 1:
        return candidates[0]
    hopeful = list(candidates)
    if len(candidates) > CANDIDATES:
        losses = [lab.measure(candidate.network()).loss for candidate in candidates]
        hopeful = [candidates[i] for i in np.argsort(losses)[:CANDIDATES]]
    trials = [lab.tune(c.network(), seed, TRIAL_STEPS).after.accuracy for c in hopeful]
    return hopeful[int(np.argmax(trials))]


METHODS = ("searched", "bits", "uniform", "pruned", "random")


def rows(study: Study, key: dict[str, Any], budget: int, seeds: int) -> Iterator[dict[str, Any]]:
    """The results of a method at a budget, a seed at a time."""
    chosen: Candidate | None = None
    for seed in range(seeds):
        if chosen is None or key["method"] == "random":
            try:
                chosen = selected(study.lab, study.propose(key["method"], budget, seed), seed)
            except Infeasible:
                yield {**key, "seed": 0, "text": "reaches no such budget"}
                return
        tuned = study.lab.tune(chosen.network(), seed)
        yield {
            **key, "seed": seed, "crossbars": chosen.crossbars, "text": chosen.text, **tuned.record
        }  # fmt: skip


def measure(
    study: Study, name: str, compression: float, methods: Sequence[str], seeds: int,
    records: Records, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Measure what is not yet in the records."""
    budget = int(study.lab.setup.dense_crossbars / compression)
    for method in methods:
        key = {"network": name, "compression": compression, "budget": budget, "method": method}
        if len(records.find(**key)) >= seeds or any(
            "before_loss" not in r for r in records.find(**key)
        ):
            continue
        started = time.monotonic()
        for row in rows(study, key, budget, seeds):
            if records.find(**key, seed=row["seed"]):
                continue
            records.add(row)
            scores = " ".join(f"{k} {100 * row[k]:.1f}" for k in row if k.endswith("_accuracy"))
            say(f"{name} {compression:g}x {method}: {scores} ({row['text']}, "
                f"{time.monotonic() - started:.0f} s)")  # fmt: skip


def table(records: Records, names: Sequence[str]) -> str:
    """Test accuracy by method and compression."""
    lines = []
    for name in names:
        budgets = sorted({(r["compression"], r["budget"]) for r in records.find(network=name)})
        lines.append(f"\n{name}: test top-1 %, mean and half the range over the seeds; "
                     "before training on the validation images; crossbars")  # fmt: skip
        lines.append(" ".join([f"{'':10}", *(f"{f'{c:g}x (<= {b})':>28}" for c, b in budgets)]))
        for method in METHODS:
            cells = [f"{method:10}"]
            for compression, _ in budgets:
                found = records.find(network=name, compression=compression, method=method)
                done = [row for row in found if "test_accuracy" in row]
                if not done:
                    cells.append(f"{'out of reach' if found else '':>28}")
                    continue
                top = mean_and_spread(row["test_accuracy"] for row in done)
                before = 100 * np.mean([row["before_accuracy"] for row in done])
                crossbars = np.mean([row["crossbars"] for row in done])
                cells.append(f"{f'{top} ({before:.0f}) {crossbars:.0f}':>28}")
            lines.append(" ".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description="Accuracy at equal crossbars.")
    Source.add_arguments(parser, cache="runs/accuracy")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--compressions", nargs="+", type=float, default=[20, 30, 45])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--chip", default="xbar_64")
    parser.add_argument("--space", help="search space; by default narrow for ResNet-20, else wide")
    arguments = parser.parse_args()
    source = Source.of(arguments)
    recipe = TrainConfig(arguments.steps, 128, lr=arguments.lr, warmup=0.05, distillation=0.5)
    for name in arguments.networks:
        space = arguments.space or ("narrow" if name == "resnet20" else "wide")
        records = Records(source.cache / f"accuracy-{name}.jsonl")
        study = Study(Lab(source, name, arguments.chip, space, recipe))
        for compression in arguments.compressions:
            measure(
                study, name, compression, arguments.methods, arguments.seeds, records,
                lambda text: print(text, flush=True),
            )  # fmt: skip
        print(table(records, [name]), flush=True)


if __name__ == "__main__":
    main()
