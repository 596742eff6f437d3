"""How a layer's inputs are driven, digit by digit."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class InputCode:
    """How inputs are driven: ``digits`` digits of ``dac_bits`` bits, lowest first.

    Signed inputs are driven as x + ``offset``; the offset times the weights' sum is subtracted
    digitally.

    Attributes:
        bits: bits of a driven input.
        dac_bits: bits of a digit.
        offset: 0 for unsigned inputs, else 2^(bits - 1).
    """

    bits: int
    dac_bits: int
    offset: int

    @property
    def digits(self) -> int:
        """Input cycles."""
        return -(-self.bits // self.dac_bits)

    @property
    def top(self) -> int:
        """Largest digit."""
        return (1 << min(self.dac_bits, self.bits)) - 1

    @property
    def dtype(self) -> torch.dtype:
        """Type that holds a driven input."""
        return torch.int32 if self.bits < 32 else torch.int64
