"""When every output position of every layer is finished, with layers overlapping.

Positions are processed in raster order, one at a time, as soon as their inputs exist:

    begin(n) = max(finish(n-1), ready(n)),   finish(n) = begin(n) + step(n)

with ready(n) the latest finish of the input positions that position n needs. Unrolled, with
C = cumsum(step):  finish = C + cummax(ready - C + step). Source: MNSIM 2.0, commit ca39ccb,
latency mode 1; the closed form is ours.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from epim_nas.network.spec import INPUT, LayerSpec, Network

FloatArray = npt.NDArray[np.float64]


class Timeline(NamedTuple):
    """Begin and end in the pipelined network, in ns: (designs, layers), or of one layer."""

    begin_ns: Any
    first_finish_ns: Any
    finish_ns: Any


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


class Source(NamedTuple):
    """One input of a layer.

    Attributes:
        layer: index of the layer that is read.
        positions: its position, in raster order, that each output position needs; None where it
            is the same position.
    """

    layer: int
    positions: npt.NDArray[np.intp] | None


class Dependencies:
    """Which positions of which layers the positions of every layer wait for.

    Args:
        network: the network.
        overlap: whether a layer begins as soon as its first inputs exist; otherwise it waits for
            the end of its first input layer (MNSIM's ``-DisPipe``, in which sums still overlap).

    Attributes:
        sizes: per layer, rows and columns of its output.
        sources: per layer, its inputs; the network's own input is there from the start.
        sinks: the layers that nobody reads.
        last_reader: per layer, the last layer that reads it, itself if there is none.
    """

    def __init__(self, network: Network, overlap: bool = True) -> None:
        self.sizes = [layer.output_size for layer in network.layers]
        self.sinks = [
            network.index[name] for name, readers in network.consumers.items() if not readers
        ]
        self.last_reader = [
            max((network.index[name] for name in network.consumers[layer.name]), default=index)
            for index, layer in enumerate(network.layers)
        ]
        self.sources: list[list[Source]] = []
        for layer in network.layers:
            inputs = [network[name] for name in layer.inputs if name != INPUT]
            if overlap or layer.type == "element_sum":
                found = [self._source(network, layer, source) for source in inputs]
            else:
                last = np.full(layer.positions, inputs[0].positions - 1) if inputs else None
                found = [Source(network.index[source.name], last) for source in inputs[:1]]
            self.sources.append(found)

    @staticmethod
    def _source(network: Network, layer: LayerSpec, source: LayerSpec) -> Source:
        rows = needed_positions(layer, 0, source.output_size[0])
        columns = needed_positions(layer, 1, source.output_size[1])
        positions = (rows[:, None] * source.output_size[1] + columns).ravel()
        same = len(positions) == source.positions and (np.diff(positions) == 1).all()
        return Source(network.index[source.name], None if same else positions)


class Pipeline:
    """Times a network's positions, for many designs at once.

    Args:
        dependencies: what every position waits for.
    """

    _CHUNK = 16
    """Designs at a time: enough for long vector operations, few enough for a cache."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._needs = dependencies

    def run(self, steps: FloatArray) -> tuple[Timeline, FloatArray]:
        """Time the network.

        Args:
            steps: (4, designs, layers) times (ns) of a layer's positions: first, first column,
                first row, all others.

        Returns:
            The timeline, and per design the time at which the last result of the network (of a
            layer that nobody reads) is finished.
        """
        timeline = Timeline(*np.empty((3, *steps.shape[1:])))
        by_layer = np.ascontiguousarray(steps.transpose(2, 1, 0))
        for start in range(0, steps.shape[1], self._CHUNK):
            span = slice(start, start + self._CHUNK)
            self._run(by_layer[:, span], Timeline(*(values[span] for values in timeline)))
        return timeline, timeline.finish_ns[:, self._needs.sinks].max(1)

    def _run(self, steps: FloatArray, timeline: Timeline) -> None:
        """Time a few designs; ``steps`` are (layers, designs, 4)."""
        needs = self._needs
        finished: dict[int, FloatArray] = {}
        for layer, sources in enumerate(needs.sources):
            finish = steps[layer] @ steps_taken(*needs.sizes[layer])
            wait = 0.0
            if sources:
                # ready - C + step: the step before position n ends where n - 1 is finished.
                ready = _ready(finished, sources)
                delay = np.empty_like(finish)
                delay[:, 0] = ready[:, 0]
                np.subtract(ready[:, 1:], finish[:, :-1], out=delay[:, 1:])
                np.maximum.accumulate(delay, axis=1, out=delay)
                finish += delay
                wait = delay[:, 0]
            timeline.begin_ns[:, layer] = wait
            timeline.first_finish_ns[:, layer] = finish[:, 0]
            timeline.finish_ns[:, layer] = finish[:, -1]
            finished[layer] = finish
            for source in {source.layer for source in sources}:
                if needs.last_reader[source] == layer:
                    del finished[source]


@lru_cache(maxsize=256)
def steps_taken(rows: int, columns: int) -> FloatArray:
    """How many positions of each kind there are up to every position, (4, rows * columns).

    C = cumsum(step) is a sum over the four kinds of positions: these counts times their times.
    """
    kinds = np.zeros((4, rows, columns))
    kinds[0, 0, 0] = 1
    kinds[1, 1:, 0] = 1
    kinds[2, 0, 1:] = 1
    kinds[3, 1:, 1:] = 1
    return np.cumsum(kinds.reshape(4, -1), axis=1)


def _ready(finished: dict[int, FloatArray], sources: list[Source]) -> FloatArray:
    """Per design and position, when its last input is finished."""
    ready: FloatArray | None = None
    for source in sources:
        times = finished[source.layer]
        if source.positions is not None:
            times = times.take(source.positions, axis=1)
        ready = times if ready is None else np.maximum(ready, times)
    assert ready is not None
    return ready
