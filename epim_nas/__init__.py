"""Neural architecture search of epitome shapes for processing-in-memory hardware.

Importing the package is cheap: torch, Optuna and Ray are loaded by what needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from epim_nas._lazy import lazy_attributes
from epim_nas._version import __version__

if TYPE_CHECKING:
    from epim_nas.epitome import (
        Choice,
        Design,
        EpitomeConv2d,
        EpitomeLinear,
        EpitomeShape,
        SamplingPlan,
        apply_design,
        load_design,
    )
    from epim_nas.errors import EpimError, InputError
    from epim_nas.hardware import Chip, CostModel, load_chip
    from epim_nas.network import LayerSpec, Network, load_network, trace
    from epim_nas.pipeline.driver import search
    from epim_nas.pipeline.export import trained_model
    from epim_nas.space import SearchSpace

__all__ = [
    "Chip",
    "Choice",
    "CostModel",
    "Design",
    "EpimError",
    "EpitomeConv2d",
    "EpitomeLinear",
    "EpitomeShape",
    "InputError",
    "LayerSpec",
    "Network",
    "SamplingPlan",
    "SearchSpace",
    "__version__",
    "apply_design",
    "load_chip",
    "load_design",
    "load_network",
    "search",
    "trace",
    "trained_model",
]

_SOURCES = {
    **dict.fromkeys(("Chip", "CostModel", "load_chip"), "epim_nas.hardware"),
    **dict.fromkeys(
        (
            "Choice",
            "Design",
            "EpitomeConv2d",
            "EpitomeLinear",
            "EpitomeShape",
            "SamplingPlan",
            "apply_design",
            "load_design",
        ),
        "epim_nas.epitome",
    ),
    **dict.fromkeys(("EpimError", "InputError"), "epim_nas.errors"),
    **dict.fromkeys(("LayerSpec", "Network", "load_network", "trace"), "epim_nas.network"),
    "SearchSpace": "epim_nas.space",
    "search": "epim_nas.pipeline",
    "trained_model": "epim_nas.pipeline.export",
}


def __getattr__(name: str) -> Any:
    value = lazy_attributes(__name__, name, _SOURCES)
    globals()[name] = value
    return value
