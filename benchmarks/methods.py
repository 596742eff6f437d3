"""The searched design and what one would do without a search, within a budget of crossbars.

The candidates of each method for :mod:`accuracy`, and which of them a brief training likes best.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial

import numpy as np
from crossbar_pruning import KeptCrossbars, prune_crossbars, strongest_crossbars
from lab import Lab
from pruning import pruned
from torch import nn

from epim_nas import Choice, Design
from epim_nas.hardware import CostModel
from epim_nas.models.resnet_cifar import CifarResNet
from epim_nas.network.trace import trace
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.evaluate import calibrate_activations, quantized_network
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.knapsack import Infeasible, Knapsack
from epim_nas.solver.problem import SearchProblem
from epim_nas.solver.ranking import expected_rank
from epim_nas.solver.sensitivity_update import Sensitivity, corrected
from epim_nas.space.config import SpaceConfig, load_space_config
from epim_nas.space.moves import mutate
from epim_nas.space.space import Row, SearchSpace
from epim_nas.supernet.evaluation import Score

RATIOS = (1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.1875, 0.125)
"""Parts of the channels that pruning may keep."""
CANDIDATES, TRIAL_STEPS = 5, 25
"""How many candidates of a method are tried briefly, and for how long."""
TRIALS = 24
"""Designs that the search scores with shared weights."""
REFITS = 6
"""So many of them are optima of the corrected score, where it is corrected."""


@dataclass(frozen=True)
class Candidate:
    """A network that a method proposes.

    Attributes:
        text: what it is, in words.
        crossbars: crossbars that it takes.
        start: the projected and calibrated network; made once.
        design: its design, where it is one of the dense network as it is.
    """

    text: str
    crossbars: int
    start: Callable[[], nn.Module]
    design: Design | None = None

    @cached_property
    def _start(self) -> nn.Module:
        return self.start()

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
        config = lab.setup.config.space
        if not isinstance(config, SpaceConfig):
            config = load_space_config(config)
        # With those that are dominated: what is uniform may need them.
        self._choices = SearchSpace.build(config, lab.setup.network, lab.setup.chip).layer_choices
        self._scores: dict[Row, Score] = {}

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
        return self._hopeful(self._around(budget, TRIALS), self.lab.problem(budget))

    def _refitted(self, budget: int, seed: int) -> list[Candidate]:
        """As ``searched``; but the last ones are optima of the score as measurements correct it."""
        problem, rows = self.lab.problem(budget), self._around(budget, TRIALS - REFITS)
        for _ in range(REFITS):
            losses = np.array([self._score(row).loss for row in rows])
            rows.append(
                self._next_best(problem, corrected(problem.sensitivity, rows, losses), rows)
            )
        return self._hopeful(rows, problem)

    def _next_best(self, problem: SearchProblem, scores: Sensitivity, known: list[Row]) -> Row:
        """The optimum of some scores, or of scores drawn about them until it is a new one."""
        rng, row = (
            np.random.default_rng([11, len(known)]),
            FeasibleSolver(problem).solve(scores.scores).row,
        )
        while row in known:
            row = FeasibleSolver(problem).solve(scores.drawn(rng)).row
        return row

    def _exact(self, budget: int, seed: int) -> list[Candidate]:
        """The exact optimum of the additive score, unseen by the supernet."""
        problem = self.lab.problem(budget)
        return [
            self._of_row(
                "the exact optimum", FeasibleSolver(problem).solve(problem.sensitivity).row
            )
        ]

    def _unseeded(self, budget: int, seed: int) -> list[Candidate]:
        """As many random designs as a search scores, scored as a search does."""
        rng = np.random.default_rng([seed, budget, 13])
        rows = [self.lab.random_row(budget, rng) for _ in range(TRIALS)]
        return self._hopeful(list(dict.fromkeys(rows)), self.lab.problem(budget))

    def _around(self, budget: int, count: int) -> list[Row]:
        """The exact optimum, that over bits alone, and random changes of them."""
        problem, rng = self.lab.problem(budget), np.random.default_rng([7, budget])
        rows = {FeasibleSolver(problem).solve(problem.sensitivity).row: None}
        with contextlib.suppress(Infeasible):
            rows[self._bits_row(problem)] = None
        starts = list(rows)
        for _ in range(20 * count):
            if len(rows) == count:
                break
            start = starts[int(rng.integers(len(starts)))]
            changed = mutate(start, problem.space, rng, int(rng.integers(1, 4)))
            rows[FeasibleSolver(problem).repair(changed)] = None
        return list(rows)

    def _hopeful(self, rows: Sequence[Row], problem: SearchProblem) -> list[Candidate]:
        expected = {}
        for row in rows:
            additive = problem.total(problem.sensitivity, row)
            expected[row] = expected_rank({"sensitivity": additive, "loss": self._score(row).loss})
        hopeful = sorted(rows, key=lambda row: -expected[row])[:CANDIDATES]
        return [self._of_row("scored with shared weights", row) for row in hopeful]

    def _score(self, row: Row) -> Score:
        if row not in self._scores:
            self._scores[row] = self.lab.score(self.lab.supernet, row)
        return self._scores[row]

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
            candidate = self._of_design(str(kind), choices)
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
        fitting: list[tuple[tuple[float, ...], Candidate]] = []
        for stream, inner in itertools.product(RATIOS, RATIOS):
            narrow = pruned(model, stream, inner)
            network = trace(narrow, self.lab.setup.data.input_shape, self.lab.setup.network.name)
            cost = CostModel(network, self.lab.setup.chip)
            setup = replace(self.lab.setup, model=narrow, network=network, cost=cost)
            for width in self._inner_bits:
                design = self._dense_design(width)
                text = f"{stream:g} of the streams, {inner:g} of the blocks, {width} bits"
                start = partial(quantized_network, setup, design, None)
                candidate = Candidate(text, crossbars_of(setup, design), start)
                if candidate.crossbars <= budget:
                    fitting.append(((stream, inner, width), candidate))
        return _not_dominated(fitting)

    def _crossbars(self, budget: int, seed: int) -> list[Candidate]:
        """The network as it is at one bit-width, without its weakest crossbars."""
        setup = self.lab.setup
        quantization = setup.config.quantization.model_copy(
            # The other rules take pruned weights for small ones, and their steps are too small.
            update={"weight_range": "least_squares"}
        )
        config = setup.config.model_copy(update={"quantization": quantization})
        setup = replace(setup, config=config)
        found = []
        for width in self._inner_bits:
            design = self._dense_design(width)
            save = max(0, crossbars_of(setup, design) - budget)
            kept = strongest_crossbars(setup.model, setup.network, design, setup.chip, save)
            if kept is not None:
                text = f"{kept.saved} crossbars pruned, {width} bits"
                start = partial(self._without, setup, design, kept)
                left = crossbars_of(setup, design) - kept.saved
                found.append(Candidate(text, left, start))
        return found

    def _without(self, setup: Run, design: Design, kept: KeptCrossbars) -> nn.Module:
        model = prune_crossbars(quantized_network(setup, design, None), kept)
        calibrate_activations(setup, model)
        return model

    @property
    def _inner_bits(self) -> list[int]:
        """The weight bits that layers between the first and the last may have."""
        inner = list(self._choices)[1:-1]
        return sorted({c.weight_bits or 32 for name in inner for c in self._choices[name]})

    def _dense_design(self, bits: int) -> Design:
        """Every layer dense, at one number of bits where it has that choice."""
        choices = {name: self._dense(name, bits) for name in self._choices}
        return Design(self.lab.setup.network.name, choices)

    def _dense(self, layer: str, bits: int) -> Choice:
        """A layer's dense choice of so many weight bits, or of the next more, or of the most."""
        dense = [choice for choice in self._choices[layer] if choice.shape is None]
        enough = [choice for choice in dense if (choice.weight_bits or 32) >= bits]
        if not enough:
            return max(dense, key=lambda c: (c.weight_bits or 32, c.activation_bits or 32))
        return min(enough, key=lambda c: (c.weight_bits or 32, -(c.activation_bits or 32)))

    def _of_design(self, text: str, choices: dict[str, Choice]) -> Candidate:
        setup = self.lab.setup
        design = Design(setup.network.name, choices)
        start = partial(quantized_network, setup, design, None)
        return Candidate(text, crossbars_of(setup, design), start, design)

    def _of_row(self, text: str, row: Row) -> Candidate:
        start = partial(self.lab.supernet.extract, row)
        design = self.lab.space.design(row)
        return Candidate(text, crossbars_of(self.lab.setup, design), start, design)


def crossbars_of(setup: Run, design: Design) -> int:
    """Crossbars of a design."""
    return int(setup.metrics(design)["crossbars"])


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
