"""Quantities in units that people read."""

from __future__ import annotations


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
