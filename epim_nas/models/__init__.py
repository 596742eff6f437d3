"""Reference models, models of other libraries by name, and their weights.

Importing this package does not import torch; building a model does.
"""

from __future__ import annotations

from epim_nas.models.registry import build_model, default_input_shape, model_names
from epim_nas.models.weights import find_weights, load_weights, save_weights, weight_names

__all__ = [
    "build_model",
    "default_input_shape",
    "find_weights",
    "load_weights",
    "model_names",
    "save_weights",
    "weight_names",
]
