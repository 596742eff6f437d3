"""Converters: the tables of MNSIM 2.0 (commit ca39ccb), and the latency of a conversion."""

from __future__ import annotations

from dataclasses import dataclass

from epim_nas.hardware.chip import Adc, Dac

# choice -> (area um2, bits, power W, rate GS/s). The sources are those that MNSIM 2.0 names.
ADCS: dict[int, tuple[float, int, float, float]] = {
    1: (1600, 10, 6.92e-3, 1.5),  # 10 b 1.5 GS/s pipelined SAR, 14 nm
    2: (1200, 8, 2e-3, 1.28),  # ISAAC
    3: (1650, 8, 4e-3, 1.1),  # 8 b 1.1 GS/s two-step SAR
    4: (580, 6, 1.26e-3, 1),  # 6 b 1 GS/s SAR
    5: (1650, 8, 4e-3, 1.1),
    6: (1650, 6, 1.26e-3, 1),
    7: (500, 4, 0.7e-3, 1),
    8: (1, 1, 1.629e-6, 1),  # sense amplifier
    9: (15899, 8, 5.84e-5, 6),  # counting converter
}
DACS: dict[int, tuple[float, int, float, float]] = {
    1: (0.166, 1, 3.9e-6, 1),
    2: (0.332, 2, 7.8e-6, 1),
    3: (0.664, 3, 1.56e-5, 1),
    4: (1.328, 4, 3.12e-5, 1),
    5: (5.312, 6, 1.248e-4, 1),
    # 0.4992 W is what MNSIM 2.0 computes with; 0.4992 mW would fit its neighbours.
    6: (21.248, 8, 0.4992, 1),
    7: (0.166, 1, 3.9e-6, 1),
}
COUNTING_ADC = 9


@dataclass(frozen=True)
class ConverterSpec:
    """A converter with every number known."""

    bits: int
    area_um2: float
    power_w: float
    latency_ns: float


def adc_spec(adc: Adc) -> ConverterSpec:
    """The ADC; (b + 2) cycles a conversion, 1 for one bit, 2^b for a counting converter."""
    bits, area, power, rate = _resolve(adc, ADCS)
    cycles = 1 if bits == 1 else bits + 2
    if adc.choice == COUNTING_ADC:
        cycles = 2**bits
    return ConverterSpec(bits, area, power, cycles / rate)


def dac_spec(dac: Dac) -> ConverterSpec:
    """The DAC; (b + 2) cycles a conversion."""
    bits, area, power, rate = _resolve(dac, DACS)
    return ConverterSpec(bits, area, power, (bits + 2) / rate)


def _resolve(
    converter: Adc | Dac, table: dict[int, tuple[float, int, float, float]]
) -> tuple[int, float, float, float]:
    area, bits, power, rate = table[converter.choice] if converter.choice else (0.0, 0, 0.0, 0.0)
    return (
        bits if converter.bits is None else converter.bits,
        area if converter.area_um2 is None else converter.area_um2,
        power if converter.power_w is None else converter.power_w,
        rate if converter.rate_gsps is None else converter.rate_gsps,
    )
