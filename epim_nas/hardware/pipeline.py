"""When every output position of every layer is finished, with layers overlapping.

Positions are processed in raster order, one at a time, as soon as their inputs exist:

    begin(n) = max(finish(n-1), ready(n)),   finish(n) = begin(n) + step(n)

with ready(n) the latest finish of the input positions that position n needs. Unrolled, with
C = cumsum(step):  finish = C + cummax(ready - C + step). Source: MNSIM 2.0, commit ca39ccb,
latency mode 1; the closed form is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from epim_nas.network.spec import INPUT, LayerSpec, Network

FloatArray = npt.NDArray[np.float64]
Steps = tuple[float, float, float, float]
"""Times (ns) of the positions: first, first column, first row, all others."""


@dataclass(frozen=True)
class Timeline:
    """Begin and end of one layer in the pipelined network, in ns."""

    begin_ns: float
    first_finish_ns: float
    finish_ns: float


def needed_positions(layer: LayerSpec, axis: int, source_size: int) -> npt.NDArray[np.intp]:
    """Input rows (axis 0) or columns (axis 1) that must exist for each output row or column."""
    outputs = layer.output_size[axis]
    if layer.type == "fc":
        return np.full(outputs, source_size - 1, dtype=np.intp)
    index = np.arange(outputs)
    if layer.type != "element_sum":
        extent = (layer.kernel[axis] - 1) * layer.dilation[axis] + 1
        first = max(extent - layer.padding[axis], 1)
        index = first + layer.stride[axis] * index - 1
    return np.minimum(index, source_size - 1).astype(np.intp)


class Pipeline:
    """The dependencies of a network's positions, to be timed many times.

    Args:
        network: the network.
        overlap: whether a layer begins as soon as its first inputs exist; otherwise it waits for
            the end of its first input layer (MNSIM's ``-DisPipe``, in which sums still overlap).
    """

    def __init__(self, network: Network, overlap: bool = True) -> None:
        self._layers = network.layers
        self._overlap = overlap
        self._sources: list[list[tuple[int, npt.NDArray[np.intp], npt.NDArray[np.intp]]]] = []
        for layer in network.layers:
            sources = []
            for name in layer.inputs:
                if name == INPUT:
                    continue  # The network's input is there from the start.
                source = network[name]
                rows = needed_positions(layer, 0, source.output_size[0])
                columns = needed_positions(layer, 1, source.output_size[1])
                sources.append((network.index[name], rows[:, None], columns[None, :]))
            self._sources.append(sources)
        self._sinks = [
            network.index[name] for name, readers in network.consumers.items() if not readers
        ]

    def run(self, steps: Sequence[Steps]) -> tuple[list[Timeline], float]:
        """Time the network.

        Args:
            steps: per layer, the times of its four kinds of positions.

        Returns:
            The timeline of every layer, and the time at which the last result of the network (of
            a layer that nobody reads) is finished.
        """
        finished: list[FloatArray] = []
        timelines = []
        for layer, sources, (first, first_column, first_row, other) in zip(
            self._layers, self._sources, steps, strict=True
        ):
            step = np.empty(layer.output_size)
            step[0, 0] = first
            step[1:, 0] = first_column
            step[0, 1:] = first_row
            step[1:, 1:] = other
            elapsed = np.cumsum(step)
            flat = step.ravel()
            if sources:
                index, rows, columns = sources[0]
                ready = finished[index][rows, columns]
                if not self._overlap and layer.type != "element_sum":
                    sources, ready = [], np.full_like(step, finished[index][-1, -1])
                for index, rows, columns in sources[1:]:
                    ready = np.maximum(ready, finished[index][rows, columns])
                slack = ready.ravel() - elapsed
                slack += flat
                np.maximum.accumulate(slack, out=slack)
                # A layer cannot begin before time 0.
                elapsed += np.maximum(slack, 0.0, out=slack)
            finished.append(elapsed.reshape(layer.output_size))
            timelines.append(
                Timeline(float(elapsed[0]) - first, float(elapsed[0]), float(elapsed[-1]))
            )
        return timelines, max((timelines[index].finish_ns for index in self._sinks), default=0.0)
