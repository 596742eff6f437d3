"""Quantities in units that people read."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal


def at_least(value: float, digits: int = 6) -> str:
    """The least number of so many significant digits that is not below ``value``.

    For limits that are promised: what is rounded to the nearest may be refused when it is typed.
    Whole numbers stay as they are.
    """
    exact = Decimal(value)
    if exact == exact.to_integral_value():
        return f"{exact:.0f}"
    place = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    return _plain(exact.quantize(place, rounding=ROUND_CEILING))


def ratio_at_most(whole: float, part: float) -> str:
    """``whole / part`` to two decimals, rounded down, for a ratio that is promised."""
    exact = Decimal(whole) / Decimal(part)
    return f"{exact.quantize(Decimal('0.01'), rounding=ROUND_FLOOR):f}"


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(seconds: float) -> str:
    """A time in two units at most: ``4.2 s``, ``89 s``, ``12 min 5 s``, ``3 h 20 min``."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"
