"""Moves on rows: mutation, crossover, and a random row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from epim_nas.space.space import SearchSpace


def mutate(
    row: Sequence[int], space: SearchSpace, rng: np.random.Generator, moves: int
) -> list[int]:
    """``row`` with ``moves`` groups changed: half of the moves local, half anywhere.

    Choices are ordered by crossbars, so a local move is a neighbour in cost.
    """
    child = [int(index) for index in row]
    movable = [i for i, group in enumerate(space.groups) if len(group) > 1]
    if not movable:
        return child
    for position in rng.choice(movable, size=min(moves, len(movable)), replace=False):
        size = len(space.groups[position])
        if rng.random() < 0.5:
            step = int(rng.integers(1, 1 + max(1, size // 8)))
            target = child[position] + (step if rng.random() < 0.5 else -step)
            target = min(max(target, 0), size - 1)
        else:
            target = int(rng.integers(size))
        child[position] = target
    return child


def cross(first: Sequence[int], second: Sequence[int], rng: np.random.Generator) -> list[int]:
    """A child that takes every group's choice from either parent."""
    return [int(a if rng.random() < 0.5 else b) for a, b in zip(first, second, strict=True)]


def random_row(space: SearchSpace, rng: np.random.Generator) -> list[int]:
    """A row whose choices are drawn uniformly; it need not be feasible."""
    return [int(rng.integers(len(group))) for group in space.groups]
