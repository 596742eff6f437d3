"""Networks as hardware sees them: layer geometry and connectivity.

From a PyTorch model with :func:`trace`, or from a network YAML with :func:`load_network`.
Importing this package does not import torch; the first call of :func:`trace` does.
"""

from __future__ import annotations

from epim_nas.network.spec import INPUT, LayerSpec, LayerType, Network

# The function takes the place of its submodule's name here; the submodule stays importable.
from epim_nas.network.trace import trace
from epim_nas.network.yaml_io import load_network, network_to_dict, save_network

__all__ = [
    "INPUT",
    "LayerSpec",
    "LayerType",
    "Network",
    "load_network",
    "network_to_dict",
    "save_network",
    "trace",
]
