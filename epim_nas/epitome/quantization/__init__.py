"""Quantization of epitomes and activations, aware of how often the weight repeats an element.

The options (:mod:`.options`) do without torch; the quantizers are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from epim_nas._lazy import lazy_attributes
from epim_nas.epitome.quantization.options import (
    CrossbarBlock,
    Quantization,
    QuantizationRule,
    quantization_for,
)

if TYPE_CHECKING:
    from epim_nas.epitome.quantization.activations import ActivationQuantizer
    from epim_nas.epitome.quantization.steps import weight_levels
    from epim_nas.epitome.quantization.weights import WeightQuantizer, quantize_weight, weight_step

__all__ = [
    "ActivationQuantizer",
    "CrossbarBlock",
    "Quantization",
    "QuantizationRule",
    "WeightQuantizer",
    "quantization_for",
    "quantize_weight",
    "weight_levels",
    "weight_step",
]

_WEIGHTS = ("WeightQuantizer", "quantize_weight", "weight_step")


def __getattr__(name: str) -> Any:
    return lazy_attributes(
        __name__,
        name,
        {
            "ActivationQuantizer": "epim_nas.epitome.quantization.activations",
            "weight_levels": "epim_nas.epitome.quantization.steps",
            **dict.fromkeys(_WEIGHTS, "epim_nas.epitome.quantization.weights"),
        },
    )
