"""The cost table: additive costs of every choice of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from epim_nas.epitome.design import FLOAT_BITS, Choice
from epim_nas.errors import InputError, nearest
from epim_nas.hardware.power import layer_area_um2, layer_energy_nj, layer_power_w

if TYPE_CHECKING:
    from epim_nas.hardware.model import CostModel

METRICS = (
    "crossbars",
    "tiles",
    "rounds",
    "sequential_latency_ns",
    "energy_nj",
    "area_um2",
    "weight_bits",
)
_INTEGER = ("crossbars", "tiles", "rounds", "weight_bits")


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
    """

    crossbars: npt.NDArray[np.int64]
    tiles: npt.NDArray[np.int64]
    rounds: npt.NDArray[np.int64]
    sequential_latency_ns: npt.NDArray[np.float64]
    energy_nj: npt.NDArray[np.float64]
    area_um2: npt.NDArray[np.float64]
    weight_bits: npt.NDArray[np.int64]


@dataclass(frozen=True)
class CostTable:
    """Additive costs of all choices, with what one layer does not know fixed by a reference.

    Attributes:
        names: the layers with choices, in the network's order: the columns of a row of indices.
        choices: layer name -> its choices.
        layers: layer name -> the costs of its choices.
        constant: metric -> sum over all other layers.
    """

    names: tuple[str, ...]
    choices: Mapping[str, tuple[Choice, ...]]
    layers: Mapping[str, LayerTable]
    constant: Mapping[str, float]

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
        index = np.asarray(rows, dtype=np.int64)
        if index.ndim == 0 or index.shape[-1] != len(self.names):
            raise InputError(
                "rows", f"got shape {index.shape}", f"(..., {len(self.names)}), one per layer"
            )
        for column, name in enumerate(self.names):
            count = len(self.choices[name])
            values = index[..., column]
            if values.size and (values.min() < 0 or values.max() >= count):
                raise InputError(
                    "rows", f"got an index out of range for layer {name}", f"0 to {count - 1}"
                )
        result: dict[str, npt.NDArray[np.generic]] = {}
        for metric in METRICS:
            kind = np.int64 if metric in _INTEGER else np.float64
            total = np.full(index.shape[:-1], self.constant[metric], dtype=kind)
            for column, name in enumerate(self.names):
                total += getattr(self.layers[name], metric)[index[..., column]]
            result[metric] = total
        return result


def build_table(
    model: CostModel, choices: Mapping[str, Sequence[Choice]], reference: Sequence[Choice]
) -> CostTable:
    """The table of a model; see :meth:`CostModel.table`.

    Args:
        model: the cost model.
        choices: layer name -> its choices.
        reference: per layer, the choice of the reference design.
    """
    network = model.network
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
    layout = model.reference_layout(reference)

    def cost(index: int, choice: Choice) -> dict[str, float]:
        layer = network.layers[index]
        mapping = model.mapping(index, choice)
        bits = layout.bits[index]
        if layer.has_weight:
            own = FLOAT_BITS if choice.activation_bits is None else choice.activation_bits
            # A layer that nobody reads writes what it reads; all others what is read.
            last = not network.consumers[layer.name]
            bits = (own, own if last else bits[1])
        timing = model.time(index, layout, mapping, bits)
        power = layer_power_w(layer, mapping, layout.memories, model.chip)
        weights = _stored(choice, layer.weight_shape) if layer.has_weight else 0
        return {
            "crossbars": mapping.crossbars,
            "tiles": mapping.tiles,
            "rounds": mapping.rounds,
            "sequential_latency_ns": timing.sequential,
            "energy_nj": layer_energy_nj(power, timing.busy)["total"],
            "area_um2": layer_area_um2(mapping, layout.memories, model.chip)["total"],
            "weight_bits": weights,
        }

    constant = dict.fromkeys(METRICS, 0.0)
    tables = {}
    for index, layer in enumerate(network.layers):
        if layer.name in choices:
            entries = [cost(index, choice) for choice in choices[layer.name]]
            tables[layer.name] = _layer_table(entries)
        else:
            for metric, value in cost(index, reference[index]).items():
                constant[metric] += value
    return CostTable(
        names=tuple(tables),
        choices={name: tuple(choices[name]) for name in tables},
        layers=tables,
        constant=constant,
    )


def _layer_table(entries: Sequence[Mapping[str, float]]) -> LayerTable:
    def column(metric: str, kind: Any) -> Any:
        return np.array([entry[metric] for entry in entries], dtype=kind)

    return LayerTable(
        crossbars=column("crossbars", np.int64),
        tiles=column("tiles", np.int64),
        rounds=column("rounds", np.int64),
        sequential_latency_ns=column("sequential_latency_ns", np.float64),
        energy_nj=column("energy_nj", np.float64),
        area_um2=column("area_um2", np.float64),
        weight_bits=column("weight_bits", np.int64),
    )


def _stored(choice: Choice, weight_shape: tuple[int, int, int, int]) -> int:
    """Bits of the elements that a layer stores."""
    shape = weight_shape if choice.shape is None else choice.shape.as_tuple
    elements = shape[0] * shape[1] * shape[2] * shape[3]
    return elements * (FLOAT_BITS if choice.weight_bits is None else choice.weight_bits)
