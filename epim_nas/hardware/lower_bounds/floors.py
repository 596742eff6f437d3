"""What every choice of every layer costs at least, whatever the other layers are.

A layer's costs depend on others through three things: the sizes of the buffers (the most that any
layer needs, for all), the bits that its readers want, and the hops. Each has a least value among
all designs, and no cost falls where one of them grows:

- *bits of outputs*: words, transfers and sizes are products with them, rounded up. The least are
  those with every reader at its fewest input bits;
- *sizes of buffers*: a larger SRAM takes more energy an access with leakage, in all of the tables
  (of some, writing without leakage takes less). Instead of a least value, every pair of SRAMs that
  can occur is a case, in which the energy is a sum;
- *hops*: times of transfers are products with them. See
  :mod:`~epim_nas.hardware.lower_bounds.hops`.

Sums of such floors are therefore lower bounds of whole designs. With equal activation bits for all
choices, the energy has only the sizes to depend on, and is exact in its case.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from epim_nas.errors import InputError
from epim_nas.hardware.batch import BatchCostModel
from epim_nas.hardware.buffers import BufferSizes, needed_sizes
from epim_nas.hardware.equations import OPS, Evaluation, Layout
from epim_nas.hardware.lower_bounds.hops import hop_floors
from epim_nas.hardware.mapping_arrays import MappingArrays
from epim_nas.hardware.sram import SIZES_KB
from epim_nas.hardware.timing import DataBits, Hops
from epim_nas.network.spec import Network

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BufferCase:
    """Energies of all choices on a chip with certain SRAMs for its buffers.

    Attributes:
        pe_input_kb: most KB that the input buffer of every PE can hold of a design.
        tile_output_kb: likewise of the output buffer of every tile.
        energy_nj: layer -> (choices,); infinite for choices that need larger buffers.
        other_nj: what the layers without choices add.
    """

    pe_input_kb: float
    tile_output_kb: float
    energy_nj: Mapping[str, FloatArray]
    other_nj: float


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
        exact: whether every design's energy equals that of its case.
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
        """The energies for every pair of SRAMs that the buffers of a design can be.

        A design's sizes are the largest that its choices need, so that it is in the case of these:
        allowed, and with its own energy there. In the cases of larger SRAMs it is allowed as well,
        and takes no less. So the least energy of all designs is the least over the cases. Pairs
        that are not in the tables are left out: no design with them can be evaluated.

        Raises:
            InputError: no pair is in the tables, or the index table of some choice is not.
        """
        equations, there = self._equations, self._there
        weighted, buffer = equations.geometry.weighted, equations.chip.buffer
        bits = DataBits(self._bits, self._output_bits[:, weighted.index])
        needed = needed_sizes(OPS, weighted, self._mapping, bits)
        layout = Layout(self._no_hops(), self._output_bits, BufferSizes(*needed))
        times = equations.times(self._mapping, self._bits, layout)
        inputs = _arrays(needed.pe_input_kb, buffer.pe_input_kb)
        outputs = _arrays(needed.tile_output_kb, buffer.tile_output_kb)
        cases, refused = [], None
        for pair in itertools.product(np.unique(inputs[there]), np.unique(outputs[there])):
            fits = there & (inputs <= pair[0]) & (outputs <= pair[1])
            largest = ((fits & (inputs == pair[0])).any(), (fits & (outputs == pair[1])).any())
            if not (fits.any(0).all() and all(largest)):
                continue  # no design has it
            most = [float(kb[fits].max()) for kb in needed]
            try:
                memories = equations.memories(BufferSizes(*(np.array([[kb]]) for kb in most)))
            except InputError as error:
                refused = error
                continue
            energy = equations.consumption(self._mapping, times, memories).energy_nj["total"]
            own = np.where(fits, energy[:, weighted.index], np.inf)
            by_layer = {
                name: own[: self._counts[number], number] for number, name in enumerate(self._names)
            }
            others = float(np.delete(energy[0], weighted.index).sum())
            cases.append(BufferCase(most[0], most[1], by_layer, others))
        if refused is not None and not cases:
            raise refused
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


def _arrays(sizes_kb: FloatArray, given_kb: float) -> IntArray:
    """Which SRAM holds each of the sizes, by rising size; a chip may give one for all."""
    if given_kb:
        return np.zeros(sizes_kb.shape, dtype=np.int64)
    bins: IntArray = np.where(sizes_kb > 0, np.searchsorted(SIZES_KB, sizes_kb), -1)
    return bins
