"""The stages of the cost model, for many designs at once.

Mappings in, costs out: bits of the data, placement, buffers, timing, pipeline, consumption, area.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from epim_nas.hardware.bits import DataFlow
from epim_nas.hardware.buffers import BufferSizes, Memories, memories_of, needed_sizes, table_kb
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.components import Components
from epim_nas.hardware.dependencies import Dependencies
from epim_nas.hardware.geometry import Geometry
from epim_nas.hardware.layer_pipeline import Pipeline, Timeline
from epim_nas.hardware.mapping_arrays import MappingArrays
from epim_nas.hardware.ops import NumpyOps
from epim_nas.hardware.placement import Placement
from epim_nas.hardware.power import (
    AREA_COMPONENTS,
    POWER_COMPONENTS,
    Consumption,
    consume_pooling,
    consume_weighted,
    layer_area_um2,
    sums_inputs,
)
from epim_nas.hardware.timing import (
    COUNTS,
    LATENCY_COMPONENTS,
    DataBits,
    Hops,
    Timing,
    time_pooling,
    time_sums,
    time_weighted,
)
from epim_nas.network.spec import Network

FloatArray = npt.NDArray[np.float64]
OPS = NumpyOps()


@dataclass(frozen=True)
class Layout:
    """What the layers of a design share, and one layer alone does not know.

    Attributes:
        hops: distances on the mesh, (designs, layers).
        output_bits: bits that every layer writes, (designs, layers).
        sizes: sizes of the buffers, (designs, 1).
    """

    hops: Hops
    output_bits: FloatArray
    sizes: BufferSizes


@dataclass(frozen=True)
class LayerTimes:
    """Times of the layers, (designs, layers).

    Attributes:
        latency_ns: component -> busy time.
        steps: (4, designs, layers) times of the four kinds of positions.
        sequential_ns: time of all positions, one after the other.
        counts: event -> number of events.
        kinds: the same by kind of layer (weighted, pooling, sums), as the energy needs it.
    """

    latency_ns: dict[str, FloatArray]
    steps: FloatArray
    sequential_ns: FloatArray
    counts: dict[str, npt.NDArray[np.int64]]
    kinds: tuple[Timing, Timing, Timing]


class Evaluation:
    """The cost equations of one network on one chip.

    Args:
        network: the network.
        chip: the chip.
    """

    def __init__(self, network: Network, chip: Chip) -> None:
        self.network = network
        self.chip = chip
        self.count = len(network.layers)
        self.geometry = Geometry.of(network, chip)
        self.dependencies = Dependencies(network, chip.pipeline.overlap)
        self.flow = DataFlow(network)
        self.pipeline = Pipeline(self.dependencies)
        self._placement = Placement(
            chip,
            [layer.type != "element_sum" for layer in network.layers],
            [
                [network.index[name] for name in network.consumers[layer.name]]
                for layer in network.layers
            ],
        )
        Components.of(chip)  # a chip that cannot be built is refused at once

    def layout(self, mapping: MappingArrays, input_bits: FloatArray) -> Layout:
        """Placement, bits of the data and buffer sizes.

        Args:
            mapping: mappings of (designs, weighted layers).
            input_bits: (designs, weighted layers) bits of their inputs.
        """
        output_bits = self.flow.output_bits(input_bits)
        hops = self._placement.hops(self.all_tiles(mapping).astype(np.int64))
        weighted = self.geometry.weighted
        sizes = needed_sizes(
            OPS, weighted, mapping, DataBits(input_bits, output_bits[:, weighted.index])
        )
        return Layout(
            hops,
            output_bits,
            BufferSizes(*(kb.max(-1, initial=0.0, keepdims=True) for kb in sizes)),
        )

    def all_tiles(self, mapping: MappingArrays) -> FloatArray:
        """(designs, layers) tiles; pooling takes one, sums none."""
        tiles = self.spread(mapping.tiles)
        tiles[:, self.geometry.pooling.index] = 1
        return tiles

    def times(self, mapping: MappingArrays, input_bits: FloatArray, layout: Layout) -> LayerTimes:
        """Times of the layers in a layout."""
        kinds = (self.geometry.weighted, self.geometry.pooling, self.geometry.sums)
        weighted, pooling, sums = kinds
        bits, chip = layout.output_bits, self.chip

        def hops(index: npt.NDArray[np.intp]) -> Hops:
            return Hops(layout.hops.inside[:, index], layout.hops.outside[:, index])

        timings = (
            time_weighted(
                OPS,
                chip,
                weighted,
                mapping,
                hops(weighted.index),
                DataBits(input_bits, bits[:, weighted.index]),
            ),
            time_pooling(OPS, chip, pooling, hops(pooling.index), bits[:, pooling.index]),
            time_sums(OPS, chip, sums, hops(sums.index), bits[:, sums.index]),
        )
        shape = (len(bits), self.count)
        steps, sequential = np.zeros((4, *shape)), np.zeros(shape)
        latency = {name: np.zeros(shape) for name in LATENCY_COMPONENTS}
        counts = {name: np.zeros(shape, dtype=np.int64) for name in COUNTS}
        for kind, timing in zip(kinds, timings, strict=True):
            steps[:, :, kind.index] = timing.steps
            sequential[:, kind.index] = timing.sequential
            for name, values in timing.busy.items():
                latency[name][:, kind.index] = values
            for name, values in timing.counts.items():
                counts[name][:, kind.index] = values
        return LayerTimes(latency, steps, sequential, counts, timings)

    def timeline(self, times: LayerTimes) -> tuple[Timeline, FloatArray]:
        """Begin and end of every layer, and the network's latency, in ns."""
        return self.pipeline.run(times.steps)

    def consumption(
        self, mapping: MappingArrays, times: LayerTimes, memories: Memories
    ) -> Consumption:
        """Energy and power by component, (designs, layers)."""
        weighted, pooling, _ = times.kinds
        parts = (
            (
                self.geometry.weighted.index,
                consume_weighted(
                    OPS, self.chip, self.geometry.weighted, mapping, weighted, memories
                ),
            ),
            (self.geometry.pooling.index, consume_pooling(self.chip, pooling, memories)),
        )
        shape = times.sequential_ns.shape
        result = Consumption(
            {name: np.zeros(shape) for name in POWER_COMPONENTS},
            {name: np.zeros(shape) for name in POWER_COMPONENTS},
        )
        for index, part in parts:
            for target, source in zip(result, part, strict=True):
                for name, values in source.items():
                    target[name][:, index] = values
        return result

    def area(self, mapping: MappingArrays, memories: Memories) -> dict[str, FloatArray]:
        """Area by component (um2), (designs, layers)."""
        tables = self.spread(table_kb(OPS, mapping))
        sums = self.spread(sums_inputs(mapping))
        area = layer_area_um2(OPS, self.chip, self.all_tiles(mapping), tables, sums, memories)
        return {name: area[name] for name in AREA_COMPONENTS}

    def memories(self, sizes: BufferSizes) -> Memories:
        """The buffers of the chip, (designs, 1)."""
        return memories_of(OPS, self.chip, sizes)

    def spread(self, values: FloatArray) -> FloatArray:
        """(designs, weighted layers) -> (designs, layers), 0 elsewhere."""
        result = np.zeros((len(values), self.count))
        result[:, self.geometry.weighted.index] = values
        return result
