"""What every choice of every layer costs at least, whatever the other layers are.

A layer's costs depend on others through three things: the sizes of the buffers (the most that any
layer needs, for all), the bits that its readers want, and the hops. Each has a least value among
all designs, and no cost falls where one of them grows:

- *bits of outputs*: words, transfers and sizes are products with them, rounded up. The least are
  those with every reader at its fewest input bits;
- *sizes of buffers*: a larger SRAM takes more energy an access, in all of the tables. Instead of a
  least value, every pair of sizes that can occur is a case, in which energy and area are sums;
- *hops*: times of transfers are products with them. See :mod:`~epim_nas.hardware.hop_floors`.

Sums of such floors are therefore lower bounds of whole designs. With equal activation bits for all
choices, energy and area have only the sizes to depend on, and are exact in their case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from epim_nas.hardware.batch import BatchCostModel
from epim_nas.hardware.buffers import BufferSizes, needed_sizes
from epim_nas.hardware.evaluation import OPS, Evaluation, Layout
from epim_nas.hardware.hop_floors import hop_floors
from epim_nas.hardware.mapping_arrays import MappingArrays
from epim_nas.hardware.timing import DataBits, Hops
from epim_nas.network.spec import Network

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BufferCase:
    """Costs of all choices on a chip whose buffers have certain sizes.

    Attributes:
        pe_input_kb: KB of the input buffer of every PE.
        tile_output_kb: KB of the output buffer of every tile.
        costs: ``energy_nj`` and ``area_um2`` -> layer -> (choices,); infinite for choices that need
            larger buffers.
        constants: the same metrics -> what the layers without choices add.
    """

    pe_input_kb: float
    tile_output_kb: float
    costs: Mapping[str, Mapping[str, FloatArray]]
    constants: Mapping[str, float]


@dataclass(frozen=True)
class StepFloors:
    """Least times (ns) of the four kinds of positions, as :meth:`Pipeline.run` takes them.

    Attributes:
        choices: layer with choices -> (4, choices).
        fixed: (4, layers of the network) of the layers without choices; 0 for all others.
    """

    choices: Mapping[str, FloatArray]
    fixed: FloatArray


class Floors:
    """The least costs of all choices of a batch model.

    Args:
        model: the model whose designs are of interest.

    Attributes:
        tiles: layer with choices -> (choices,) tiles.
        other_tiles: tiles of all layers without choices.
        exact: whether every design's energy and area equal those of its case.
    """

    def __init__(self, model: BatchCostModel) -> None:
        self._names = model.names
        self._counts = model.counts
        self._equations: Evaluation = model.equations
        entries = np.arange(int(model.counts.max()))[:, None]
        # Entry i of a batch has every layer's i-th choice; a layer's last one is repeated.
        self._there = entries < model.counts
        self._mapping: MappingArrays
        self._mapping, self._bits = model.gather(np.minimum(entries, model.counts - 1))
        least = self._bits.min(0)
        output_bits = self._equations.flow.output_bits(least)
        self._output_bits = np.broadcast_to(output_bits, (len(entries), output_bits.size)).copy()
        for number, layer in enumerate(self.network.weighted):
            if not self.network.consumers[layer.name]:
                # A layer that nobody reads writes what it reads.
                self._output_bits[:, self.network.index[layer.name]] = self._bits[:, number]
        self.exact = bool((self._bits == least).all())
        tiles = self._equations.all_tiles(self._mapping).astype(np.int64)
        weighted = self._equations.geometry.weighted.index
        self._every_tiles = [column[:1] for column in tiles.T]
        for number, index in enumerate(weighted):
            self._every_tiles[index] = tiles[: self._counts[number], index]
        self.tiles: dict[str, IntArray] = {
            name: self._every_tiles[index]
            for name, index in zip(self._names, weighted, strict=True)
        }
        everything = sum(int(counts[0]) for counts in self._every_tiles)
        self.other_tiles = everything - sum(int(counts[0]) for counts in self.tiles.values())

    @property
    def network(self) -> Network:
        """The network."""
        return self._equations.network

    def cases(self) -> list[BufferCase]:
        """The costs for every pair of sizes that the buffers of a design can have.

        A design's sizes are the largest that its choices need, so that it is in the case of these:
        allowed, and with its own costs there. In the cases of larger sizes it is allowed as well,
        and costs no less. So the least cost of all designs is the least over the cases.
        """
        weighted = self._equations.geometry.weighted
        bits = DataBits(self._bits, self._output_bits[:, weighted.index])
        needed = needed_sizes(OPS, weighted, self._mapping, bits)
        pairs = [_possible(sizes, self._there) for sizes in needed]
        layout = Layout(self._no_hops(), self._output_bits, BufferSizes(*needed))
        times = self._equations.times(self._mapping, self._bits, layout)
        cases = []
        for inputs in pairs[0]:
            for outputs in pairs[1]:
                fits = self._there & (needed[0] <= inputs) & (needed[1] <= outputs)
                shape = (len(fits), 1)
                memories = self._equations.memories(
                    BufferSizes(np.full(shape, inputs), np.full(shape, outputs))
                )
                every = {
                    "energy_nj": self._equations.consumption(
                        self._mapping, times, memories
                    ).energy_nj["total"],
                    "area_um2": self._equations.area(self._mapping, memories)["total"],
                }
                costs, constants = {}, {}
                for metric, values in every.items():
                    own = np.where(fits, values[:, weighted.index], np.inf)
                    costs[metric] = {
                        name: own[: self._counts[number], number]
                        for number, name in enumerate(self._names)
                    }
                    others = np.delete(values[0], weighted.index)
                    constants[metric] = float(others.sum())
                cases.append(BufferCase(float(inputs), float(outputs), costs, constants))
        return cases

    def steps(self, most_tiles: int) -> StepFloors:
        """The least times of positions among the designs with at most so many tiles in all."""
        floors = hop_floors(self.network, self._equations.chip.mesh, self._every_tiles, most_tiles)
        hops = self._no_hops()
        for array, columns in zip(hops, floors, strict=True):
            for index, column in enumerate(columns):
                array[: len(column), index] = column
                array[len(column) :, index] = column[-1]
        sizes = BufferSizes(*np.ones((2, len(self._there), 1)))  # times do not depend on them
        layout = Layout(hops, self._output_bits, sizes)
        steps = self._equations.times(self._mapping, self._bits, layout).steps
        weighted = self._equations.geometry.weighted.index
        choices = {
            name: steps[:, : self._counts[number], weighted[number]]
            for number, name in enumerate(self._names)
        }
        fixed = steps[:, 0].copy()
        fixed[:, weighted] = 0.0
        return StepFloors(choices, fixed)

    def critical_path(self, steps: FloatArray) -> tuple[float, IntArray]:
        """The latency (ns) of (4, layers) steps, and :meth:`Pipeline.critical_path` of them."""
        counts = self._equations.pipeline.critical_path(steps)
        return float((counts * steps).sum()), counts

    def _no_hops(self) -> Hops:
        shape = self._output_bits.shape
        return Hops(np.zeros(shape), np.zeros(shape))


def _possible(sizes: FloatArray, there: npt.NDArray[np.bool_]) -> FloatArray:
    """The sizes that a design's buffers can have: no less than every layer's least."""
    least = np.where(there, sizes, np.inf).min(0).max()
    every = np.unique(sizes[there])
    possible: FloatArray = every[every >= least]
    return possible
