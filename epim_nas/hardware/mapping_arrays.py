"""The mappings of many choices as arrays: what the cost equations compute with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from epim_nas.hardware.mapping import LayerMapping
from epim_nas.hardware.ops import Array

_VALUES = {
    "crossbars": "crossbars",
    "tiles": "tiles",
    "pes": "pes_per_tile",
    "groups": "groups",
    "held_channels": "held_channels",
    "stored_channels": "stored_channels",
    "rounds": "rounds",
    "replicas": "replicas",
    "table_bits": "table_bits",
    "utilization": "utilization",
    "input_slabs": "input_slabs",
}
"""Array -> the attribute of a mapping that it holds."""
_SLOTS = {
    "active_rows": "rows",
    "active_columns": "columns",
    "active_tiles": "tiles",
    "slots": "count",
    "accumulating": "accumulating",
    "emitting": "emitting",
    "fetched_inputs": "inputs",
}
"""Array -> the attribute of a class of slots that it holds."""


class MappingArrays(NamedTuple):
    """:class:`LayerMapping` of (..., layers), and its slot classes of (K, ..., layers).

    Where a layer has fewer than K classes of slots, the others have ``count`` 0.
    """

    crossbars: Array
    tiles: Array
    pes: Array
    groups: Array
    held_channels: Array
    stored_channels: Array
    rounds: Array
    replicas: Array
    table_bits: Array
    utilization: Array
    input_slabs: Array
    active_rows: Array
    active_columns: Array
    active_tiles: Array
    slots: Array
    accumulating: Array
    emitting: Array
    fetched_inputs: Array

    @property
    def slot_count(self) -> Array:
        """Time slots of one output position."""
        return self.slots.sum(0)


class MappingTable:
    """The mappings of every choice of every layer, to be gathered by rows of choice indices.

    Args:
        layers: per layer, the mappings of its choices.
    """

    def __init__(self, layers: Sequence[Sequence[LayerMapping]]) -> None:
        flat = [mapping for mappings in layers for mapping in mappings]
        counts = np.array([len(mappings) for mappings in layers])
        layer = np.repeat(np.arange(len(layers)), counts)
        choice = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
        shape = (len(layers), counts.max())
        kinds = max(len(mapping.slots) for mapping in flat)
        self._layers = np.arange(len(layers))
        self._arrays: dict[str, npt.NDArray[np.float64]] = {}
        for name, attribute in _VALUES.items():
            values = self._arrays[name] = np.zeros(shape)
            values[layer, choice] = [getattr(mapping, attribute) for mapping in flat]
        for name, attribute in _SLOTS.items():
            values = self._arrays[name] = np.zeros((kinds, *shape))
            for kind in range(kinds):
                values[kind, layer, choice] = [
                    getattr(mapping.slots[kind], attribute) if kind < len(mapping.slots) else 0
                    for mapping in flat
                ]

    def gather(self, rows: npt.NDArray[np.int64]) -> MappingArrays:
        """The mappings of designs.

        Args:
            rows: (..., layers) indices of choices.
        """
        return MappingArrays(
            **{name: values[..., self._layers, rows] for name, values in self._arrays.items()}
        )
