"""Which designs each step of the supernet's training trains.

The sandwich rule (Yu and Huang, arXiv 1903.05134): the most precise and the smallest design of the
space in every step, so that both ends of the range are trained, and a few between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from epim_nas.epitome.design import Choice
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.space.moves import mutate
from epim_nas.space.space import Row

Around = Literal["front", "uniform"]


@dataclass(frozen=True)
class Sandwich:
    """The designs of each training step.

    Attributes:
        solver: the solver of the problem.
        initial: designs on the exact front.
        seed: seed of the draws; those of a step depend on it and the step alone.
        random: designs that each step draws besides the two ends.
        around: ``front`` draws near ``initial``, where the search will look, within the budget;
            ``uniform`` draws every choice of a layer equally often.
        warmup_steps: steps in which drawn designs have more weight bits: every layer takes its
            shape's choice of most bits, with a probability that falls linearly from 1 to 0. Bits
            come last in the order of training of once-for-all networks too, where small
            sub-networks join step by step (Cai et al., arXiv 1908.09791).
    """

    solver: FeasibleSolver
    initial: Sequence[Row]
    seed: int
    random: int = 2
    around: Around = "front"
    warmup_steps: int = 0

    def designs(self, step: int) -> list[Row]:
        """The rows that a step trains."""
        rng = np.random.default_rng([self.seed, 77, step])
        precise = tuple(int(np.argmin(scores)) for scores in self.solver.problem.sensitivity)
        smallest = tuple(int(np.argmin(weights)) for weights in self.solver.problem.crossbars)
        drawn = [self._draw(rng) for _ in range(self.random)]
        return [precise, *(self._with_more_bits(row, step, rng) for row in (smallest, *drawn))]

    def _draw(self, rng: np.random.Generator) -> Row:
        space = self.solver.problem.space
        if self.around == "uniform":
            return tuple(int(rng.integers(len(group))) for group in space.groups)
        start = self.initial[int(rng.integers(len(self.initial)))]
        return self.solver.repair(mutate(start, space, rng, int(rng.integers(0, 4))))

    def _with_more_bits(self, row: Row, step: int, rng: np.random.Generator) -> Row:
        if step >= self.warmup_steps:
            return row
        raised = rng.random(len(row)) < 1 - step / self.warmup_steps
        groups = self.solver.problem.space.groups
        return tuple(
            most_bits(group.choices, index) if raise_it else index
            for group, index, raise_it in zip(groups, row, raised, strict=True)
        )


def most_bits(choices: Sequence[Sequence[Choice]], index: int) -> int:
    """The option that has the shapes of option ``index`` and the most weight bits.

    Args:
        choices: per option the choice of every layer of a group.
        index: an option.
    """

    def shapes(option: Sequence[Choice]) -> list[Choice]:
        return [replace(choice, weight_bits=None) for choice in option]

    wanted = shapes(choices[index])
    alike = [number for number, option in enumerate(choices) if shapes(option) == wanted]
    return max(alike, key=lambda number: [choice.weight_bits or 33 for choice in choices[number]])
