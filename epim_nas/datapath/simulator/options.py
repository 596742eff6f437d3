"""What the analogue part of the simulated chip does other than exact arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal, get_args

from epim_nas.errors import InputError, nearest

AdcRange = Literal["unit", "full", "calibrated"]


@dataclass(frozen=True)
class Converter:
    """How an ADC turns the sum of a column into an integer.

    Attributes:
        bits: resolution, None for one that never clips.
        range: ``unit``: one code is the current of one cell that is on, driven by the DAC's
            smallest voltage; sums are exact up to where the codes end. ``full``: codes are spread
            over the largest sum of a crossbar; nothing clips, but sums are rounded.
            ``calibrated``: codes are spread over the largest sum that the first batch produced.
    """

    bits: int | None = None
    range: AdcRange = "unit"

    def __post_init__(self) -> None:
        if self.bits is not None and not 1 <= self.bits <= 16:
            raise InputError("adc_bits", f"got {self.bits}", "1 to 16, or none for no clipping")
        known = get_args(AdcRange)
        if self.range not in known:
            raise InputError(
                "adc_range", f"got `{self.range}`", ", ".join(known), nearest(self.range, known)
            )


@dataclass(frozen=True)
class Devices:
    """Imperfections of the memory cells; all 0 by default. Sources: ``docs/simulator.md``.

    Attributes:
        variation: standard deviation of the logarithm of a cell's conductance: conductances vary
            log-normally from device to device around what was programmed.
        stuck_off: share of cells that stay in the state of highest resistance.
        stuck_on: share of cells that stay in the state of lowest resistance.
        read_noise: standard deviation of a cell's current at every read, relative to it.
        drift_exponent: nu of the power law G(t) = G(t0) (t / t0)^-nu.
        drift_spread: standard deviation of nu from cell to cell.
        drift_time: t / t0, 1 for freshly programmed cells.
        seed: of every random number.

    Raises:
        InputError: a number out of range.
    """

    variation: float = 0.0
    stuck_off: float = 0.0
    stuck_on: float = 0.0
    read_noise: float = 0.0
    drift_exponent: float = 0.0
    drift_spread: float = 0.0
    drift_time: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        upper = {"stuck_off": 1.0, "stuck_on": 1.0}
        for name in (
            "variation",
            "stuck_off",
            "stuck_on",
            "read_noise",
            "drift_exponent",
            "drift_spread",
        ):
            value, limit = getattr(self, name), upper.get(name, inf)
            if not (isfinite(value) and 0 <= value <= limit):
                allowed = "0 to 1" if limit == 1 else "0 or more"
                raise InputError(name, f"got {value}", allowed)
        if self.stuck_off + self.stuck_on > 1:
            raise InputError(
                "stuck_on", f"and stuck_off sum to {self.stuck_off + self.stuck_on}", "at most 1"
            )
        if not (isfinite(self.drift_time) and self.drift_time >= 1):
            raise InputError("drift_time", f"got {self.drift_time}", "1 (fresh) or more")

    @property
    def ideal_cells(self) -> bool:
        """Whether every cell conducts what was programmed."""
        drifts = self.drift_time > 1 and (self.drift_exponent > 0 or self.drift_spread > 0)
        return not (self.variation or self.stuck_off or self.stuck_on or drifts)

    @property
    def ideal(self) -> bool:
        """Whether cells and reads are exact."""
        return self.ideal_cells and self.read_noise == 0
