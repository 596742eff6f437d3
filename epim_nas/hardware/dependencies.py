"""Which positions of which layers the positions of every layer wait for."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from epim_nas.network.spec import LayerSpec, Network

IntArray = npt.NDArray[np.int64]


def needed_positions(layer: LayerSpec, axis: int, source_size: int) -> IntArray:
    """Input rows (axis 0) or columns (axis 1) that must exist for each output row or column."""
    outputs = layer.output_size[axis]
    if layer.type == "fc":
        return np.full(outputs, source_size - 1, dtype=np.int64)
    index = np.arange(outputs)
    if layer.type != "element_sum":
        extent = (layer.kernel[axis] - 1) * layer.dilation[axis] + 1
        first = max(extent - layer.padding[axis], 1)
        index = first + layer.stride[axis] * index - 1
    return np.minimum(index, source_size - 1).astype(np.int64)


class Source(NamedTuple):
    """One input of a layer.

    Attributes:
        layer: index of the layer that is read.
        rows: its row that each output row needs.
        columns: its column that each output column needs.
    """

    layer: int
    rows: IntArray
    columns: IntArray


class Inputs(NamedTuple):
    """What all layers read, as arrays; the inputs of all layers are numbered one after another.

    Attributes:
        sizes: (layers, 2) rows and columns of the outputs.
        first: (layers + 1) the inputs of layer ``l`` are those from ``first[l]`` to ``first[l+1]``.
        source: (inputs) the layer that is read.
        rows: (inputs, longest) row of the source that an output row needs.
        columns: (inputs, longest) likewise of columns.
    """

    sizes: IntArray
    first: IntArray
    source: IntArray
    rows: IntArray
    columns: IntArray


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
    """

    def __init__(self, network: Network, overlap: bool = True) -> None:
        self.sizes = [layer.output_size for layer in network.layers]
        self.sinks = [
            network.index[name] for name, readers in network.consumers.items() if not readers
        ]
        self.sources: list[list[Source]] = []
        for layer in network.layers:
            inputs = [network[name] for name in layer.inputs if name != network.input_name]
            waits = overlap or layer.type == "element_sum"
            self.sources.append(
                [
                    _source(network, layer, source, waits)
                    for source in (inputs if waits else inputs[:1])
                ]
            )

    @cached_property
    def tables(self) -> Inputs:
        """The same as arrays, for the compiled recurrence."""
        inputs = [source for sources in self.sources for source in sources]
        counts = [len(sources) for sources in self.sources]
        longest = max(max(size) for size in self.sizes)
        rows = np.zeros((len(inputs), longest), dtype=np.int64)
        columns = np.zeros_like(rows)
        for index, source in enumerate(inputs):
            rows[index, : len(source.rows)] = source.rows
            columns[index, : len(source.columns)] = source.columns
        return Inputs(
            np.array(self.sizes, dtype=np.int64),
            np.cumsum([0, *counts], dtype=np.int64),
            np.array([source.layer for source in inputs], dtype=np.int64),
            rows,
            columns,
        )


def _source(network: Network, layer: LayerSpec, source: LayerSpec, overlap: bool) -> Source:
    index = network.index[source.name]
    if overlap:
        return Source(index, *(needed_positions(layer, a, source.output_size[a]) for a in (0, 1)))
    last = (np.full(n, m - 1) for n, m in zip(layer.output_size, source.output_size, strict=True))
    return Source(index, *last)
