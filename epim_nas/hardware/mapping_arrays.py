"""The mappings of many choices as arrays: what the cost equations compute with."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from epim_nas.hardware.mapping import LayerMapping
from epim_nas.hardware.ops import Array

_VALUES = (
    "crossbars",
    "tiles",
    "pes_per_tile",
    "groups",
    "held_channels",
    "stored_channels",
    "rounds",
    "replicas",
    "table_bits",
    "utilization",
    "input_slabs",
)
_SLOTS = ("rows", "columns", "tiles", "count", "accumulating", "emitting", "inputs")
_NO_SLOT = (0,) * len(_SLOTS)
_values, _slots = attrgetter(*_VALUES), attrgetter(*_SLOTS)


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
        kinds = max(len(mapping.slots) for mapping in flat)
        layer = np.repeat(np.arange(len(layers)), counts)
        choice = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._values = np.zeros((len(_VALUES), len(layers), counts.max()))
        self._values[:, layer, choice] = np.array([_values(mapping) for mapping in flat]).T
        slots = [
            [*map(_slots, mapping.slots), *[_NO_SLOT] * (kinds - len(mapping.slots))]
            for mapping in flat
        ]
        self._slots = np.zeros((len(_SLOTS), kinds, len(layers), counts.max()))
        self._slots[:, :, layer, choice] = np.array(slots).transpose(2, 1, 0)
        self._layers = np.arange(len(layers))

    def gather(self, rows: npt.NDArray[np.int64]) -> MappingArrays:
        """The mappings of designs.

        Args:
            rows: (..., layers) indices of choices.
        """
        values = self._values[:, self._layers, rows]
        slots = self._slots[:, :, self._layers, rows]
        return MappingArrays(*values, *slots)
