"""The loops that everything waits for, compiled.

The recurrence of ``pipeline`` over all positions of a design and the way back along its critical
path, and the sums of ``table``.
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
def _finish(
    steps: FloatArray,
    sizes: IntArray,
    first_input: IntArray,
    source: IntArray,
    needed_rows: IntArray,
    needed_columns: IntArray,
    offset: IntArray,
    ready: FloatArray,
    finish: FloatArray,
    result: FloatArray,
) -> None:
    """Fill in ``finish`` (positions) and ``result`` (3, layers) of one design's (layers, 4) steps.

    ``offset`` says where a layer's positions begin; ``ready`` is scratch. Others: `finish_times`.
    """
    for layer in range(len(steps)):
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
                result[0, layer] = begin
            end = begin + steps[layer, 0 if row == 0 else 1]
            place = offset[layer] + row * columns
            finish[place] = end
            step = steps[layer, 2 if row == 0 else 3]
            for column in range(1, columns):
                end = max(end, ready[column]) + step
                finish[place + column] = end
        result[1, layer] = finish[offset[layer]]
        result[2, layer] = end


@compiled
def _offsets(sizes: IntArray) -> IntArray:
    """(layers + 1) where the positions of every layer begin among all."""
    offset = np.zeros(len(sizes) + 1, dtype=np.int64)
    for layer in range(len(sizes)):
        offset[layer + 1] = offset[layer] + sizes[layer, 0] * sizes[layer, 1]
    return offset


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
    offset = _offsets(sizes)
    finish = np.empty(offset[layers])
    ready = np.empty(sizes[:, 1].max())
    for design in range(designs):
        _finish(
            steps[design], sizes, first_input, source, needed_rows, needed_columns,
            offset, ready, finish, result[:, design],
        )  # fmt: skip
    return result


@compiled
def critical_path(
    steps: FloatArray,
    sizes: IntArray,
    first_input: IntArray,
    source: IntArray,
    needed_rows: IntArray,
    needed_columns: IntArray,
    sinks: IntArray,
) -> IntArray:
    """How often a step of each kind is on the path that ends last.

    From the last result backwards: a position began when the one before it was finished, or when
    the last of its inputs was there, whichever was later.

    Args:
        steps: (layers, 4) times of one design; see :func:`finish_times` for it and all others.
        sinks: the layers that nobody reads.

    Returns:
        (layers, 4) counts; their product with the steps, summed, is the latency.
    """
    layers = len(steps)
    result = np.empty((3, layers))
    offset = _offsets(sizes)
    finish = np.empty(offset[layers])
    ready = np.empty(sizes[:, 1].max())
    _finish(
        steps, sizes, first_input, source, needed_rows, needed_columns,
        offset, ready, finish, result,
    )  # fmt: skip
    counts = np.zeros((layers, 4), dtype=np.int64)
    layer = sinks[0]
    for sink in sinks:
        if result[2, sink] > result[2, layer]:
            layer = sink
    place = offset[layer + 1] - 1
    while True:
        row, column = divmod(place - offset[layer], sizes[layer, 1])
        counts[layer, 2 * (column > 0) + (row > 0)] += 1
        before = place - 1 if place > offset[layer] else -1
        latest = finish[before] if before >= 0 else 0.0
        upstream = -1
        for entry in range(first_input[layer], first_input[layer + 1]):
            read = source[entry]
            needed = offset[read] + needed_rows[entry, row] * sizes[read, 1]
            needed += needed_columns[entry, column]
            if finish[needed] > latest:
                latest, before, upstream = finish[needed], needed, read
        if before < 0:
            return counts
        place = before
        if upstream >= 0:
            layer = upstream


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
