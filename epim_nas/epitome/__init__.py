"""Epitomes: sizes, sampling plans and designs (numpy); the operator and its training (torch).

The torch parts are imported when they are first used, so that the cost model and the solvers
work without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from epim_nas._lazy import lazy_attributes
from epim_nas.epitome.design import Choice, Design, load_design
from epim_nas.epitome.plan import Patch, SamplingPlan
from epim_nas.epitome.shape import EpitomeShape

if TYPE_CHECKING:
    from epim_nas.epitome.convert import apply_design
    from epim_nas.epitome.layers import EpitomeConv2d, EpitomeLinear

__all__ = [
    "Choice",
    "Design",
    "EpitomeConv2d",
    "EpitomeLinear",
    "EpitomeShape",
    "Patch",
    "SamplingPlan",
    "apply_design",
    "load_design",
]


def __getattr__(name: str) -> Any:
    return lazy_attributes(
        __name__,
        name,
        {
            "EpitomeConv2d": "epim_nas.epitome.layers",
            "EpitomeLinear": "epim_nas.epitome.layers",
            "apply_design": "epim_nas.epitome.convert",
        },
    )
