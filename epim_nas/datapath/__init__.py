"""The datapath of epitome layers: index tables, memory images, and a simulator that runs by them.

The simulator is torch code and is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from epim_nas._lazy import lazy_attributes
from epim_nas.datapath.files import read_tables, write_tables
from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.simulator.counts import count_events, count_network
from epim_nas.datapath.simulator.options import Converter, Devices
from epim_nas.datapath.tables import IndexTables

if TYPE_CHECKING:
    from epim_nas.datapath.simulator.network import simulate

__all__ = [
    "Converter",
    "Devices",
    "IndexTables",
    "LayerTables",
    "count_events",
    "count_network",
    "read_tables",
    "simulate",
    "write_tables",
]


def __getattr__(name: str) -> Any:
    return lazy_attributes(__name__, name, {"simulate": "epim_nas.datapath.simulator.network"})
