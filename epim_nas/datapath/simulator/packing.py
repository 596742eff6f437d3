"""Several integer dot products in one floating-point dot product.

Sums of a column are small integers: with magnitudes up to L, B = 2^ceil(log2(2 L + 1)) separates
them, and float32 has room for several such digits in its 24 bits. One multiplication by
w0 + B w1 + B^2 w2 then computes the sums of three bit slices, exactly.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

_MANTISSA_BITS = 24


class PackedSlices:
    """The bit slices of some columns, packed.

    Args:
        cells: (U, S, m, lines) integers.
        largest: bound of the magnitude of a sum of ``lines`` products.

    Attributes:
        packed: (U, G m, lines) G groups of slices.
    """

    def __init__(self, cells: Tensor, largest: float) -> None:
        units, self._slices, self._columns, lines = cells.shape
        bits = max(1, int(2 * largest).bit_length())
        # The top digit's sign takes a bit as well.
        room = max(1, (_MANTISSA_BITS - 1) // bits)
        self._groups = ceil(self._slices / room)
        self._digits = ceil(self._slices / self._groups)
        self._base = float(1 << bits)
        packed = cells.new_zeros((units, self._groups, self._columns, lines))
        for digit in range(self._digits):
            part = cells[:, digit * self._groups : (digit + 1) * self._groups]
            packed[:, : part.shape[1]] += part * self._base**digit
        self.packed = packed.flatten(1, 2)

    def to(self, device: torch.device) -> PackedSlices:
        """The same slices on a device."""
        self.packed = self.packed.to(device)
        return self

    def sums(self, windows: Tensor, units: slice) -> Tensor:
        """(B, U, S, m, P) the sums of every slice for ``windows`` (B, U, lines, P)."""
        rest = torch.matmul(self.packed[units], windows)
        rest = rest.unflatten(2, (self._groups, self._columns))
        if self._digits == 1:
            return rest
        shape = list(rest.shape)
        shape[2] = self._slices
        result = rest.new_empty(shape)
        for digit in reversed(range(1, self._digits)):
            # The lower digits are less than half of the base: rounding finds this one.
            first = digit * self._groups
            count = min(self._groups, self._slices - first)
            part = torch.mul(
                rest[:, :, :count], self._base**-digit, out=result[:, :, first : first + count]
            ).round_()
            rest[:, :, :count].sub_(part, alpha=self._base**digit)
        result[:, :, : self._groups] = rest
        return result
