"""Hardware: chip descriptions, crossbar mapping, latency, energy and area of designs."""

from __future__ import annotations

from epim_nas.hardware.batch import BatchCostModel
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.compression import Compression, compression, dense_crossbars
from epim_nas.hardware.load import load_chip
from epim_nas.hardware.mapping import LayerMapping, bit_slices, map_layer
from epim_nas.hardware.model import CostModel
from epim_nas.hardware.results import MODEL_VERSION, CostTotals, LayerCost, NetworkCost
from epim_nas.hardware.table import CostTable, LayerTable

__all__ = [
    "MODEL_VERSION",
    "BatchCostModel",
    "Chip",
    "Compression",
    "CostModel",
    "CostTable",
    "CostTotals",
    "LayerCost",
    "LayerMapping",
    "LayerTable",
    "NetworkCost",
    "bit_slices",
    "compression",
    "dense_crossbars",
    "load_chip",
    "map_layer",
]
