"""The array operations of the cost equations in torch: exact, or smooth for gradients.

The smooth ones are piecewise linear or logarithmic and equal the exact ones where these jump to:

=====================  ==============================  ===================================
exact                  smooth                          error
=====================  ==============================  ===================================
ceil(x), x > 0         max(x, 1)                       exact in [s, s + 1), equal at 1, 2...
floor(x), x >= 1       x                               exact in (s / 2, s]
ceil(log2 x), x >= 1   log2 x                          exact in [s, s + 1)
2^ceil(log2 x)         x                               exact in [s, 2 s)
SRAM of a size         linear in log2(size) between    between the values of the sizes
                       the sizes of the table          below and above
=====================  ==============================  ===================================
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from epim_nas.hardware.sram import SIZES_KB, Sram, SramTable


class TorchOps:
    """The exact equations on torch tensors; see :class:`~epim_nas.hardware.ops.Ops`."""

    def ceil(self, value: Tensor) -> Tensor:
        """See :class:`~epim_nas.hardware.ops.Ops`."""
        return torch.ceil(value)

    def floor(self, value: Tensor) -> Tensor:
        """See :class:`~epim_nas.hardware.ops.Ops`."""
        return torch.floor(value)

    def log2_ceil(self, value: Tensor) -> Tensor:
        """See :class:`~epim_nas.hardware.ops.Ops`."""
        mantissa, exponent = torch.frexp(value)
        return (exponent - (mantissa == 0.5).to(exponent.dtype)).to(value.dtype)

    def power_of_two(self, value: Tensor) -> Tensor:
        """See :class:`~epim_nas.hardware.ops.Ops`."""
        return torch.where(value > 0, torch.exp2(self.log2_ceil(value)), torch.zeros_like(value))

    def where(self, condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        """See :class:`~epim_nas.hardware.ops.Ops`."""
        return torch.where(condition, yes, no)

    def stack(self, values: list[Tensor]) -> Tensor:
        """See :class:`~epim_nas.hardware.ops.Ops`."""
        return torch.stack(torch.broadcast_tensors(*values))

    def lookup(self, table: SramTable, size_kb: Tensor) -> Sram:
        """See :class:`~epim_nas.hardware.ops.Ops`."""
        table.check(size_kb.detach().cpu().numpy())
        edges = torch.tensor(SIZES_KB, dtype=size_kb.dtype, device=size_kb.device)
        bins = torch.bucketize(size_kb, edges)

        def at(values: np.ndarray) -> Tensor:
            found = torch.as_tensor(values, device=size_kb.device)[bins]
            return torch.where(size_kb > 0, found, torch.zeros_like(found))

        return Sram(*map(at, table.arrays))


class SmoothOps(TorchOps):
    """The smooth surrogates of the exact operations."""

    def ceil(self, value: Tensor) -> Tensor:
        """max(x, 1) for x > 0, and 0 for 0."""
        return torch.where(value > 0, value.clamp(min=1), torch.zeros_like(value))

    def floor(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    def log2_ceil(self, value: Tensor) -> Tensor:
        """log2(x)."""
        return torch.log2(value)

    def power_of_two(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    def lookup(self, table: SramTable, size_kb: Tensor) -> Sram:
        """Linear in log2(size) between the sizes of the table, constant below the smallest."""
        smallest = float(SIZES_KB[0])
        place = torch.log2(size_kb.clamp(min=smallest)) - math.log2(smallest)
        place = place.clamp(max=len(SIZES_KB))
        below = place.detach().floor().clamp(max=len(SIZES_KB) - 1).long()
        part = place - below

        def at(values: np.ndarray) -> Tensor:
            # Where the smallest sizes do not exist on this bus, the first that does replaces them.
            known = np.where(np.isfinite(values), values, values[np.isfinite(values)][0])
            nodes = torch.as_tensor(known, device=size_kb.device)
            found = nodes[below] * (1 - part) + nodes[below + 1] * part
            return torch.where(size_kb > 0, found, torch.zeros_like(found))

        return Sram(*map(at, table.arrays))
