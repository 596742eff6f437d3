"""A few flips and kills of the scripts that try many."""

from __future__ import annotations

from pathlib import Path

from tests.torture import bit_flips, kills


def test_flips_change_no_result(finished: Path, tmp_path: Path) -> None:
    found = bit_flips.cases(tmp_path, ["pareto", "finished", "pareto"], finished)
    outcomes = bit_flips.torture(found, 6, 0, tmp_path)
    assert not [outcome for outcome in outcomes if outcome.startswith("WRONG")], outcomes
    assert outcomes[bit_flips.REFUSED] >= 2


def test_a_kill_costs_nothing(finished: Path, tmp_path: Path) -> None:
    counts = kills.torture(1, 0, tmp_path, finished)
    assert counts["kills"] == 1
    assert not any(counts[name] for name in kills.WRONG), counts
