"""The cost table: additive costs of every choice of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from epim_nas.epitome.design import FLOAT_BITS, Choice
from epim_nas.errors import InputError, nearest
from epim_nas.hardware.batch import check_indices, input_bits
from epim_nas.hardware.equations import Evaluation, Layout
from epim_nas.hardware.mapping import LayerMapping
from epim_nas.hardware.mapping_arrays import MappingArrays, MappingTable
from epim_nas.hardware.timing import Hops
from epim_nas.network.spec import Network

METRICS = (
    "crossbars",
    "tiles",
    "rounds",
    "sequential_latency_ns",
    "energy_nj",
    "area_um2",
    "weight_bits",
)
"""Additive costs of a layer's choice."""

_INTEGER = ("crossbars", "tiles", "rounds", "weight_bits")
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LayerTable:
    """Costs of one layer's choices; every array has one entry per choice.

    Attributes:
        crossbars: crossbars (int64).
        tiles: tiles (int64).
        rounds: activation rounds of one output position (int64).
        sequential_latency_ns: time of all positions, one after the other (float64).
        energy_nj: energy (float64).
        area_um2: area (float64).
        weight_bits: bits of all elements that are stored (int64).
        steps_ns: (4, choices) times of the first position, those of the first column, of the
            first row, and all others (float64).
    """

    crossbars: npt.NDArray[np.int64]
    tiles: npt.NDArray[np.int64]
    rounds: npt.NDArray[np.int64]
    sequential_latency_ns: FloatArray
    energy_nj: FloatArray
    area_um2: FloatArray
    weight_bits: npt.NDArray[np.int64]
    steps_ns: FloatArray


@dataclass(frozen=True)
class CostTable:
    """Additive costs of all choices, with what one layer does not know fixed by a reference.

    Attributes:
        names: the layers with choices, in the network's order: the columns of a row of indices.
        choices: layer name -> its choices.
        layers: layer name -> the costs of its choices.
        constant: metric -> sum over all other layers.
        reference_steps_ns: (4, all layers) times of the four kinds of positions in the reference.
    """

    names: tuple[str, ...]
    choices: Mapping[str, tuple[Choice, ...]]
    layers: Mapping[str, LayerTable]
    constant: Mapping[str, float]
    reference_steps_ns: FloatArray

    def __getitem__(self, layer: str) -> LayerTable:
        return self.layers[layer]

    def by_layer(self, metric: str) -> dict[str, npt.NDArray[Any]]:
        """Layer -> the costs of its choices in one of the :data:`METRICS`."""
        return {name: getattr(table, metric) for name, table in self.layers.items()}

    def totals(self, rows: npt.ArrayLike) -> dict[str, npt.NDArray[np.generic]]:
        """Totals of designs.

        Args:
            rows: (..., layers) indices of choices, in the order of :attr:`names`.

        Returns:
            Metric -> (...) array: the :data:`METRICS`.

        Raises:
            InputError: the wrong number of layers, or an index out of range.
        """
        index = np.asarray(rows)
        if not np.issubdtype(index.dtype, np.integer):
            raise InputError("rows", f"got numbers of type {index.dtype}", "whole numbers")
        if index.ndim == 0 or index.shape[-1] != len(self.names):
            raise InputError(
                "rows", f"got shape {index.shape}, not (..., layers)", f"{len(self.names)} layers"
            )
        from epim_nas.hardware.numba_loops import sum_choices

        flat = np.ascontiguousarray(index.reshape(-1, len(self.names)), dtype=np.int64)
        sums, wrong = sum_choices(flat, self._costs, self._counts)
        if wrong >= 0:
            check_indices(flat, self.names, self._counts)
        result: dict[str, npt.NDArray[np.generic]] = {}
        for total, metric in zip(sums, METRICS, strict=True):
            kind = np.int64 if metric in _INTEGER else np.float64
            total += self.constant[metric]
            result[metric] = total.reshape(index.shape[:-1]).astype(kind, copy=False)
        return result

    @cached_property
    def _counts(self) -> npt.NDArray[np.int64]:
        return np.array([len(self.choices[name]) for name in self.names], dtype=np.int64)

    @cached_property
    def _costs(self) -> FloatArray:
        """(layers, choices, metrics), padded with zeros where a layer has fewer choices."""
        costs = np.zeros((len(self.names), int(self._counts.max()), len(METRICS)))
        for index, name in enumerate(self.names):
            for column, metric in enumerate(METRICS):
                costs[index, : self._counts[index], column] = getattr(self.layers[name], metric)
        return costs


@dataclass(frozen=True)
class Options:
    """The choices of a layer with weights, and their mappings."""

    choices: tuple[Choice, ...]
    mappings: tuple[LayerMapping, ...]


def check_choices(network: Network, choices: Mapping[str, Sequence[Choice]]) -> None:
    """Check that choices are given for layers with weights only, and at least one each.

    Raises:
        InputError: they are not.
    """
    known = [layer.name for layer in network.weighted]
    for name, options in choices.items():
        if name not in known:
            raise InputError(
                f"choices.{name}",
                f"the network {network.name} has no such weighted layer",
                ", ".join(f"`{item}`" for item in known),
                nearest(name, known),
            )
        if not options:
            raise InputError(f"choices.{name}", "no choice is given", "at least one")


def build_table(
    evaluation: Evaluation, network: Network, options: Sequence[Options], free: Sequence[str]
) -> CostTable:
    """The table; see :meth:`CostModel.table`.

    All choices are computed at once: entry i of a batch has every layer's i-th choice, in the
    layout of the reference.

    Args:
        evaluation: the cost equations.
        network: the network.
        options: per layer with weights its choices; the last one is the reference's.
        free: names of the layers that have choices in the table.
    """
    table = MappingTable([option.mappings for option in options])
    last = np.array([[len(option.choices) - 1 for option in options]])
    bits = _padded([[input_bits(choice) for choice in option.choices] for option in options])
    reference = evaluation.layout(table.gather(last), np.take_along_axis(bits, last, axis=0))
    rows = np.minimum(np.arange(len(bits))[:, None], last)
    mapping = table.gather(rows)
    costs = _entries(evaluation, network, mapping, bits, reference)
    costs["weight_bits"][:, evaluation.geometry.weighted.index] = _padded(
        [
            [stored_bits(choice, layer.weight_shape) for choice in option.choices]
            for layer, option in zip(network.weighted, options, strict=True)
        ]
    )
    steps = costs.pop("steps_ns")
    constant = dict.fromkeys(METRICS, 0.0)
    reference_steps = np.empty((4, len(network.layers)))
    layers = {}
    weighted = {layer.name: option for layer, option in zip(network.weighted, options, strict=True)}
    for index, layer in enumerate(network.layers):
        count = len(weighted[layer.name].choices) if layer.name in weighted else 1
        reference_steps[:, index] = steps[:, count - 1, index]
        if layer.name not in free:
            for metric in METRICS:
                constant[metric] += float(costs[metric][count - 1, index])
            continue
        entries: dict[str, Any] = {
            metric: costs[metric][: count - 1, index].astype(
                np.int64 if metric in _INTEGER else np.float64
            )
            for metric in METRICS
        }
        layers[layer.name] = LayerTable(**entries, steps_ns=steps[:, : count - 1, index])
    return CostTable(
        names=tuple(layers),
        choices={name: weighted[name].choices[:-1] for name in layers},
        layers=layers,
        constant=constant,
        reference_steps_ns=reference_steps,
    )


def _entries(
    evaluation: Evaluation,
    network: Network,
    mapping: MappingArrays,
    bits: FloatArray,
    reference: Layout,
) -> dict[str, FloatArray]:
    """Metric -> (entries, layers), and the steps of (4, entries, layers)."""
    shape = (len(bits), len(network.layers))
    output_bits = np.broadcast_to(reference.output_bits, shape).copy()
    for number, layer in enumerate(network.weighted):
        if not network.consumers[layer.name]:
            # A layer that nobody reads writes what it reads; all others what is read.
            output_bits[:, network.index[layer.name]] = bits[:, number]
    layout = Layout(
        Hops(*(np.broadcast_to(values, shape) for values in reference.hops)),
        output_bits,
        reference.sizes,
    )
    memories = evaluation.memories(layout.sizes)
    times = evaluation.times(mapping, bits, layout)
    return {
        "crossbars": evaluation.spread(mapping.crossbars),
        "tiles": evaluation.all_tiles(mapping),
        "rounds": evaluation.spread(mapping.rounds),
        "sequential_latency_ns": times.sequential_ns,
        "energy_nj": evaluation.consumption(mapping, times, memories).energy_nj["total"],
        "area_um2": evaluation.area(mapping, memories)["total"],
        "weight_bits": np.zeros(shape),
        "steps_ns": times.steps,
    }


def _padded(columns: Sequence[Sequence[float]]) -> FloatArray:
    """(entries, layers): the last value of a layer is repeated where others have more."""
    longest = max(len(column) for column in columns)
    return np.array(
        [[column[min(entry, len(column) - 1)] for column in columns] for entry in range(longest)],
        dtype=float,
    )


def stored_bits(choice: Choice, weight_shape: tuple[int, int, int, int]) -> int:
    """Bits of the elements that a layer stores."""
    shape = weight_shape if choice.shape is None else choice.shape.as_tuple
    elements = shape[0] * shape[1] * shape[2] * shape[3]
    return elements * (FLOAT_BITS if choice.weight_bits is None else choice.weight_bits)
