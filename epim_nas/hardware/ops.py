"""The array operations of the cost equations.

The equations of ``timing``, ``power`` and ``buffers`` are written once, over an array library.
:class:`NumpyOps` evaluates them exactly; ``relaxed.py`` has the same operations in torch, exact or
smooth.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from epim_nas.hardware.sram import SIZES_KB, Sram, SramTable

Array = Any
"""A numpy array or a torch tensor, float64."""


class Ops(Protocol):
    """Operations that rounding and table look-ups need; all else are Python operators."""

    def ceil(self, value: Array) -> Array:
        """The smallest whole number that is not below ``value`` >= 0."""

    def floor(self, value: Array) -> Array:
        """The largest whole number that is not above ``value`` >= 1."""

    def log2_ceil(self, value: Array) -> Array:
        """ceil(log2 value) for ``value`` >= 1."""

    def power_of_two(self, value: Array) -> Array:
        """The smallest power of two that is not below ``value``; 0 for 0."""

    def where(self, condition: Array, yes: Array, no: Array) -> Array:
        """``yes`` where ``condition`` holds, ``no`` elsewhere."""

    def stack(self, values: list[Array]) -> Array:
        """A new first axis."""

    def lookup(self, table: SramTable, size_kb: Array) -> Sram:
        """The SRAM arrays that hold ``size_kb``; all zeros for size 0."""


class NumpyOps:
    """The exact equations on numpy arrays."""

    def ceil(self, value: Array) -> Array:
        """See :class:`Ops`."""
        return np.ceil(value)

    def floor(self, value: Array) -> Array:
        """See :class:`Ops`."""
        return np.floor(value)

    def log2_ceil(self, value: Array) -> Array:
        """See :class:`Ops`."""
        mantissa, exponent = np.frexp(value)
        return np.where(mantissa == 0.5, exponent - 1, exponent).astype(float)

    def power_of_two(self, value: Array) -> Array:
        """See :class:`Ops`."""
        return np.where(value > 0, np.exp2(self.log2_ceil(value)), 0.0)

    def where(self, condition: Array, yes: Array, no: Array) -> Array:
        """See :class:`Ops`."""
        return np.where(condition, yes, no)

    def stack(self, values: list[Array]) -> Array:
        """See :class:`Ops`."""
        return np.stack(np.broadcast_arrays(*values))

    def lookup(self, table: SramTable, size_kb: Array) -> Sram:
        """See :class:`Ops`."""
        table.check(size_kb)
        bins = np.searchsorted(SIZES_KB, size_kb)
        there = np.asarray(size_kb > 0)
        return Sram(*(np.where(there, values[bins], 0.0) for values in table.arrays))
