"""Reductions over sets of columns: what a layer needs to know of the layers that it names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]


class Segments:
    """Sets of indices of a last axis, one for every layer; many are empty.

    Args:
        sets: per layer, indices.

    Attributes:
        layers: the layers whose set is not empty.
    """

    def __init__(self, sets: Sequence[Sequence[int]]) -> None:
        self.layers = np.array([layer for layer, found in enumerate(sets) if found], dtype=np.intp)
        self._indices = np.array([index for found in sets for index in found], dtype=np.intp)
        counts = [len(found) for found in sets if found]
        self._starts = np.cumsum([0, *counts[:-1]]) if counts else np.zeros(0, dtype=np.intp)

    def largest(self, values: Values) -> Values:
        """(..., indices) -> (..., :attr:`layers`), the largest value of each set."""
        return self._reduce(np.maximum, values)

    def smallest(self, values: Values) -> Values:
        """(..., indices) -> (..., :attr:`layers`), the smallest value of each set."""
        return self._reduce(np.minimum, values)

    def _reduce(self, function: np.ufunc, values: Values) -> Values:
        if not len(self.layers):
            return values[..., :0]
        reduced: Values = function.reduceat(values[..., self._indices], self._starts, axis=-1)
        return reduced
