"""Objectives: names, directions, and what is refused."""

from __future__ import annotations

import pytest

from epim_nas import InputError
from epim_nas.solver.metrics import (
    METRICS,
    is_maximised,
    maximised,
    metric_of,
    parse_objective,
)


@pytest.mark.parametrize(
    ("text", "objective", "more"),
    [
        ("accuracy", "accuracy", True),
        ("max accuracy", "accuracy", True),
        ("maximise utilization", "utilization", True),
        ("min utilization", "min utilization", False),
        ("minimize latency_ns", "latency_ns", False),
        ("max area_um2", "max area_um2", True),
        (" energy_nj ", "energy_nj", False),
    ],
)
def test_objectives_have_one_spelling(text: str, objective: str, more: bool) -> None:
    assert parse_objective(text) == objective
    assert is_maximised(objective) is more
    assert metric_of(objective) in METRICS


@pytest.mark.parametrize("text", ["latency", "most accuracy", "", "min", "accuracy min"])
def test_what_is_no_objective_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not an objective"):
        parse_objective(text, "objectives")


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(InputError, match="Did you mean `latency_ns`"):
        parse_objective("latency_n")


def test_directions_in_order() -> None:
    assert maximised(["accuracy", "energy_nj", "min compression"]) == [True, False, False]
