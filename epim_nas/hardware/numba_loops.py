"""The loops that everything waits for, compiled.

The recurrence of ``pipeline`` over all positions of a design and the way back along its critical
path, and the sums of ``table``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numba
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from epim_nas.hardware.dependencies import Inputs

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
    inputs: Inputs,
    offset: IntArray,
    ready: FloatArray,
    finish: FloatArray,
    result: FloatArray,
) -> None:
    """Fill in ``finish`` (positions) and ``result`` (3, layers) of one design's (layers, 4) steps.

    ``offset``, ``ready`` and ``finish`` are those of :func:`_space`.
    """
    for layer in range(len(steps)):
        rows, columns = inputs.sizes[layer]
        end = 0.0
        for row in range(rows):
            ready[:columns] = 0.0
            for entry in range(inputs.first[layer], inputs.first[layer + 1]):
                read = inputs.source[entry]
                start = offset[read] + inputs.rows[entry, row] * inputs.sizes[read, 1]
                for column in range(columns):
                    time = finish[start + inputs.columns[entry, column]]
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
def _space(inputs: Inputs) -> tuple[IntArray, FloatArray, FloatArray]:
    """What :func:`_finish` works in.

    Returns:
        (layers + 1) where the positions of every layer begin among all, a number for each column,
        and one for each position.
    """
    layers = len(inputs.sizes)
    offset = np.zeros(layers + 1, dtype=np.int64)
    for layer in range(layers):
        offset[layer + 1] = offset[layer] + inputs.sizes[layer, 0] * inputs.sizes[layer, 1]
    return offset, np.empty(inputs.sizes[:, 1].max()), np.empty(offset[layers])


@compiled
def finish_times(steps: FloatArray, inputs: Inputs) -> FloatArray:
    """Begin of every layer's first position, its finish, and that of the last one.

    Args:
        steps: (designs, layers, 4) times of the first position, those of the first column, of the
            first row, and all others.
        inputs: what the layers read.

    Returns:
        (3, designs, layers), in the unit of the steps.
    """
    designs, layers = steps.shape[:2]
    result = np.empty((3, designs, layers))
    offset, ready, finish = _space(inputs)
    for design in range(designs):
        _finish(steps[design], inputs, offset, ready, finish, result[:, design])
    return result


@compiled
def critical_path(steps: FloatArray, inputs: Inputs, sinks: IntArray) -> IntArray:
    """How often a step of each kind is on the path that ends last.

    From the last result backwards: a position began when the one before it was finished, or when
    the last of its inputs was there, whichever was later.

    Args:
        steps: (layers, 4) times of one design; see :func:`finish_times`.
        inputs: what the layers read.
        sinks: the layers that nobody reads.

    Returns:
        (layers, 4) counts; their product with the steps, summed, is the latency.
    """
    layers = len(steps)
    result = np.empty((3, layers))
    offset, ready, finish = _space(inputs)
    _finish(steps, inputs, offset, ready, finish, result)
    counts = np.zeros((layers, 4), dtype=np.int64)
    layer = sinks[0]
    for sink in sinks:
        if result[2, sink] > result[2, layer]:
            layer = sink
    place = offset[layer + 1] - 1
    while True:
        row, column = divmod(place - offset[layer], inputs.sizes[layer, 1])
        counts[layer, 2 * (column > 0) + (row > 0)] += 1
        before = place - 1 if place > offset[layer] else -1
        latest = finish[before] if before >= 0 else 0.0
        upstream = -1
        for entry in range(inputs.first[layer], inputs.first[layer + 1]):
            read = inputs.source[entry]
            needed = offset[read] + inputs.rows[entry, row] * inputs.sizes[read, 1]
            needed += inputs.columns[entry, column]
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
