from __future__ import annotations

import pytest

from epim_nas.units import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (-1, "0.0 s"), (4.23, "4.2 s"), (10, "10 s"), (119.4, "119 s"),
     (119.6, "2 min 0 s"), (725, "12 min 5 s"), (7199, "119 min 59 s"), (7200, "2 h 0 min"),
     (12_000, "3 h 20 min"), (90_000, "25 h 0 min")],
)  # fmt: skip
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text
