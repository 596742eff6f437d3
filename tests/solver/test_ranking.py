"""The score that ranks designs before they are trained on their own, on measured designs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy.stats import kendalltau

from epim_nas.solver.ranking import expected_rank

CASES = json.loads((Path(__file__).parent / "data" / "ranking.json").read_text())


def tau(values: list[float], kind: str) -> float:
    picked = [n for n, design in enumerate(CASES["designs"]) if design["set"] == kind]
    truth = [CASES["designs"][n]["test_accuracy"] for n in picked]
    return float(kendalltau([values[n] for n in picked], truth).statistic)


@pytest.mark.parametrize("kind", ["across budgets", "one budget"])
def test_it_ranks_measured_designs_as_well_as_each_of_its_parts(kind: str) -> None:
    designs = CASES["designs"]
    both = tau([expected_rank(design) for design in designs], kind)
    assert both > 0.9
    for part in ("sensitivity", "loss"):
        assert both >= tau([-design[part] for design in designs], kind) - 0.015


def test_less_of_either_loss_is_better() -> None:
    base = {"sensitivity": 0.2, "loss": 0.5}
    assert expected_rank({**base, "loss": 0.4}) > expected_rank(base)
    assert expected_rank({**base, "sensitivity": 0.1}) > expected_rank(base)
    assert expected_rank({"sensitivity": 0.0, "loss": 0.0}) > expected_rank(base)
