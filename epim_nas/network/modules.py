"""Copies of models."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def clone(model: M) -> M:
    """A deep copy of a model.

    Modules may keep tensors that were computed, as the weight of the old ``weight_norm`` is at
    every call; Python cannot copy those, and nothing needs their history.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)
