"""The ADCs of a layer's columns."""

from __future__ import annotations

import torch
from torch import Tensor

from epim_nas.datapath.simulator.options import Converter
from epim_nas.errors import InputError


class ColumnConverter:
    """Turns the sums of columns into integers.

    Args:
        options: resolution and range.
        signed: whether sums have a sign (the analogue difference of a pair); b bits are then the
            codes -2^(b-1) to 2^(b-1) - 1, else 0 to 2^b - 1.
        each_side: whether both sides of a pair are converted and subtracted digitally.
        largest: largest magnitude of a sum that a crossbar can reach.
        whole: whether sums are integers, so that they need no rounding.
    """

    def __init__(
        self, options: Converter, signed: bool, each_side: bool, largest: float, whole: bool
    ) -> None:
        self._options, self._signed, self._whole = options, signed, whole
        self.each_side = each_side
        self._largest = largest
        self._step: float | None = 1.0
        if options.bits is not None and options.range != "unit":
            codes = self._codes[1] or 1
            self._step = max(1.0, largest / codes) if options.range == "full" else None

    @property
    def _codes(self) -> tuple[int, int]:
        assert self._options.bits is not None
        if self._signed:
            half = 1 << (self._options.bits - 1)
            return -half, half - 1
        return 0, (1 << self._options.bits) - 1

    @property
    def top(self) -> float:
        """Largest magnitude of a result."""
        if self._options.bits is None or self._step is None:
            return self._largest
        low, high = self._codes
        return min(self._largest, max(-low, high) * self._step)

    def clips(self, low: Tensor, high: Tensor) -> Tensor:
        """Whether sums between ``low`` and ``high`` can be changed by the ADC."""
        if self._options.bits is None:
            return torch.zeros_like(low, dtype=torch.bool)
        if self._step != 1.0:
            return torch.ones_like(low, dtype=torch.bool)
        bottom, top = self._codes
        return (low < bottom) | (high > top)

    def calibrate(self, largest: float) -> None:
        """Spread the codes over sums up to ``largest`` in magnitude (range ``calibrated``)."""
        if self._options.range != "calibrated":
            raise InputError("adc_range", f"is `{self._options.range}`", "calibrated")
        self._step = max(1.0, largest / (self._codes[1] or 1))

    def __call__(self, sums: Tensor) -> Tensor:
        """The integers (times the ADC's step) of ``sums``; changes them in place."""
        if self._options.bits is None:
            return sums if self._whole else sums.round_()
        if self._step is None:
            self.calibrate(float(sums.abs().max()))
            assert self._step is not None
        low, high = self._codes
        if self._step != 1.0:
            return sums.div_(self._step).round_().clamp_(low, high).mul_(self._step)
        return (sums if self._whole else sums.round_()).clamp_(low, high)
