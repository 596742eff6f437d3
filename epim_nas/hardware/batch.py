"""Costs of many designs: the whole model, by rows of choice indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from epim_nas.epitome.design import FLOAT_BITS, Choice
from epim_nas.errors import InputError
from epim_nas.hardware.buffers import BufferSizes
from epim_nas.hardware.layer_pipeline import Timeline
from epim_nas.hardware.mapping import LayerMapping
from epim_nas.hardware.mapping_arrays import MappingArrays, MappingTable
from epim_nas.hardware.results import TOTALS
from epim_nas.hardware.timing import Hops

if TYPE_CHECKING:
    from epim_nas.hardware.equations import Evaluation

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BatchCost:
    """Costs of a batch of designs; arrays are (designs,) or (designs, layers).

    Attributes:
        totals: the fields of :class:`CostTotals`, (designs,).
        crossbars: crossbars by layer.
        tiles: tiles by layer.
        rounds: activation rounds of one output position by layer.
        utilization: cells that hold a weight / cells by layer.
        sequential_latency_ns: time of all positions, one after the other, by layer.
        latency_ns: component -> busy time by layer.
        energy_nj: component -> energy by layer.
        power_w: component -> power by layer while it works.
        area_um2: component -> area by layer.
        counts: event -> number of events by layer, see ``timing.COUNTS``.
        timeline: begin and end of the layers in the pipelined network.
        hops: distances on the mesh.
        output_bits: bits that every layer writes.
        sizes: sizes of the buffers, (designs, 1).
    """

    totals: dict[str, FloatArray]
    crossbars: FloatArray
    tiles: FloatArray
    rounds: FloatArray
    utilization: FloatArray
    sequential_latency_ns: FloatArray
    latency_ns: dict[str, FloatArray]
    energy_nj: dict[str, FloatArray]
    power_w: dict[str, FloatArray]
    area_um2: dict[str, FloatArray]
    counts: dict[str, IntArray]
    timeline: Timeline
    hops: Hops
    output_bits: FloatArray
    sizes: BufferSizes


def evaluate(evaluation: Evaluation, mapping: MappingArrays, input_bits: FloatArray) -> BatchCost:
    """Everything about designs whose layers are mapped already.

    Args:
        evaluation: the cost equations.
        mapping: mappings of (designs, weighted layers).
        input_bits: (designs, weighted layers) bits of their inputs.
    """
    layout = evaluation.layout(mapping, input_bits)
    memories = evaluation.memories(layout.sizes)
    times = evaluation.times(mapping, input_bits, layout)
    timeline, latency = evaluation.timeline(times)
    consumption = evaluation.consumption(mapping, times, memories)
    area = evaluation.area(mapping, memories)
    tiles = evaluation.all_tiles(mapping)
    crossbars, rounds, utilization = (
        evaluation.spread(values)
        for values in (mapping.crossbars, mapping.rounds, mapping.utilization)
    )
    total_crossbars = crossbars.sum(1)
    totals = {
        "crossbars": total_crossbars,
        "tiles": tiles.sum(1),
        "latency_ns": latency,
        "sequential_latency_ns": times.sequential_ns.sum(1),
        "energy_nj": consumption.energy_nj["total"].sum(1),
        "area_um2": area["total"].sum(1),
        "utilization": (utilization * crossbars).sum(1) / np.maximum(total_crossbars, 1),
        "rounds": rounds.sum(1),
    }
    assert tuple(totals) == TOTALS
    return BatchCost(
        totals,
        crossbars,
        tiles,
        rounds,
        utilization,
        times.sequential_ns,
        times.latency_ns,
        consumption.energy_nj,
        consumption.power_w,
        area,
        times.counts,
        timeline,
        layout.hops,
        layout.output_bits,
        layout.sizes,
    )


class BatchCostModel:
    """The whole cost model over rows of choice indices; get one from :meth:`CostModel.batch`.

    Nothing is additive here: placement, buffers and the pipeline are those of every design. Designs
    are computed in chunks, so that memory stays bounded whatever their number.

    Args:
        evaluation: the cost equations.
        choices: per layer with weights, its choices.
        mappings: the mappings of these choices.

    Attributes:
        names: the layers of a row, in order.
        choices: layer -> its choices.
        counts: (layers,) how many these are.
        equations: the cost equations.
    """

    CHUNK = 64
    """Designs at a time."""

    def __init__(
        self,
        evaluation: Evaluation,
        choices: Mapping[str, Sequence[Choice]],
        mappings: Sequence[Sequence[LayerMapping]],
    ) -> None:
        self.names = tuple(choices)
        self.choices = {name: tuple(options) for name, options in choices.items()}
        self.equations = evaluation
        self._mappings = MappingTable(mappings)
        self.counts = np.array([len(options) for options in choices.values()])
        bits = np.zeros((len(choices), max(self.counts)))
        for index, options in enumerate(choices.values()):
            bits[index, : len(options)] = [input_bits(choice) for choice in options]
        self._bits = bits

    def totals(self, rows: npt.ArrayLike) -> dict[str, FloatArray]:
        """Totals of designs.

        Args:
            rows: (designs, layers) indices of choices, in the order of :attr:`names`.

        Returns:
            Field of :class:`CostTotals` -> (designs,).

        Raises:
            InputError: wrong rows, or a design that does not fit the chip's mesh.
        """
        index = self._checked(rows)
        result = {name: np.empty(len(index)) for name in TOTALS}
        for start in range(0, len(index), self.CHUNK):
            span = slice(start, start + self.CHUNK)
            for name, values in self.evaluate(index[span]).totals.items():
                result[name][span] = values
        return result

    def evaluate(self, rows: npt.ArrayLike) -> BatchCost:
        """Totals and layers of a batch of designs, all in memory at once.

        Args:
            rows: (designs, layers) indices of choices, in the order of :attr:`names`.

        Raises:
            InputError: wrong rows, or a design that does not fit the chip's mesh.
        """
        return evaluate(self.equations, *self.gather(rows))

    def gather(self, rows: npt.ArrayLike) -> tuple[MappingArrays, FloatArray]:
        """Mappings and bits of the inputs of designs, (designs, layers).

        Args:
            rows: (designs, layers) indices of choices, in the order of :attr:`names`.

        Raises:
            InputError: wrong rows.
        """
        index = self._checked(rows)
        return self._mappings.gather(index), self._bits[np.arange(len(self.names)), index]

    def _checked(self, rows: npt.ArrayLike) -> IntArray:
        index = np.asarray(rows)
        if index.ndim != 2 or index.shape[1] != len(self.names):
            raise InputError(
                "rows", f"got shape {index.shape}", f"(designs, {len(self.names)}), one per layer"
            )
        check_indices(index, self.names, self.counts)
        return index.astype(np.int64)


def check_indices(index: npt.NDArray[Any], names: Sequence[str], counts: IntArray) -> None:
    """Check that every index of (..., layers) is one of the layer's choices.

    Raises:
        InputError: naming the first layer with a wrong one.
    """
    if not np.issubdtype(index.dtype, np.integer):
        raise InputError("rows", f"got numbers of type {index.dtype}", "whole numbers")
    if not index.size:
        return
    flat = index.reshape(-1, len(names))
    wrong = (flat.min(0) < 0) | (flat.max(0) >= counts)
    if wrong.any():
        layer = int(np.argmax(wrong))
        raise InputError(
            "rows",
            f"got an index out of range for layer {names[layer]}",
            f"0 to {counts[layer] - 1}",
        )


def input_bits(choice: Choice) -> int:
    """Bits of a layer's inputs; floating point counts as 32."""
    return FLOAT_BITS if choice.activation_bits is None else choice.activation_bits
