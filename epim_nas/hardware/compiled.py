"""The two loops that everything waits for, compiled.

The recurrence of ``pipeline`` over all positions of a design, and the sums of ``table``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """``function`` compiled on its first call; kept on disk where there is a place for it."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(function)


@compiled
def finish_times(
    steps: FloatArray,
    sizes: IntArray,
    first_input: IntArray,
    source: IntArray,
    needed_rows: IntArray,
    needed_columns: IntArray,
) -> FloatArray:
    """Begin of every layer's first position, its finish, and that of the last one.

    Args:
        steps: (designs, layers, 4) times of the first position, those of the first column, of the
            first row, and all others.
        sizes: (layers, 2) rows and columns of the outputs.
        first_input: (layers + 1) the inputs of layer ``l`` are those from ``first_input[l]`` to
            ``first_input[l + 1]``.
        source: (inputs) the layer that is read.
        needed_rows: (inputs, longest) row of the source that an output row needs.
        needed_columns: (inputs, longest) likewise of columns.

    Returns:
        (3, designs, layers), in the unit of the steps.
    """
    designs, layers = steps.shape[:2]
    result = np.empty((3, designs, layers))
    offset = np.zeros(layers + 1, dtype=np.int64)
    for layer in range(layers):
        offset[layer + 1] = offset[layer] + sizes[layer, 0] * sizes[layer, 1]
    finish = np.empty(offset[layers])
    ready = np.empty(needed_columns.shape[1] if len(source) else sizes[:, 1].max())
    for design in range(designs):
        for layer in range(layers):
            rows, columns = sizes[layer]
            end = 0.0
            for row in range(rows):
                ready[:columns] = 0.0
                for entry in range(first_input[layer], first_input[layer + 1]):
                    read = source[entry]
                    start = offset[read] + needed_rows[entry, row] * sizes[read, 1]
                    for column in range(columns):
                        time = finish[start + needed_columns[entry, column]]
                        ready[column] = max(ready[column], time)
                begin = max(end, ready[0])
                if row == 0:
                    result[0, design, layer] = begin
                end = begin + steps[design, layer, 0 if row == 0 else 1]
                place = offset[layer] + row * columns
                finish[place] = end
                step = steps[design, layer, 2 if row == 0 else 3]
                for column in range(1, columns):
                    end = max(end, ready[column]) + step
                    finish[place + column] = end
            result[1, design, layer] = finish[offset[layer]]
            result[2, design, layer] = end
    return result


@compiled
def sum_choices(rows: IntArray, costs: FloatArray, counts: IntArray) -> tuple[FloatArray, int]:
    """Sum the costs of the choices of every design.

    Args:
        rows: (designs, layers) indices of choices.
        costs: (layers, choices, metrics).
        counts: (layers) choices of every layer.

    Returns:
        (metrics, designs), and the first layer with an index out of range, -1 if there is none.
    """
    designs, layers = rows.shape
    metrics = costs.shape[2]
    total = np.empty((metrics, designs))
    sums = np.empty(metrics)
    for design in range(designs):
        sums[:] = 0.0
        for layer in range(layers):
            choice = rows[design, layer]
            if choice < 0 or choice >= counts[layer]:
                return total, layer
            for metric in range(metrics):
                sums[metric] += costs[layer, choice, metric]
        total[:, design] = sums
    return total, -1
