"""Whole searches: every strategy, several budgets, other objectives, and nothing feasible."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from epim_nas.pipeline.config import RunConfig
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.driver import search
from epim_nas.pipeline.folder import RunFolder
from epim_nas.records import RunResult
from tests.pipeline.tiny import write_run


def run(folder: Path, **changes: Any) -> RunResult:
    changes = {"finalists__count": 1, "finalists__steps": 5, "search__trials": 10} | changes
    return search(str(write_run(folder, **changes)), folder / "run")


@pytest.mark.parametrize("strategy", ["exact", "gradient", "evolution", "nsga3", "tpe"])
def test_every_strategy_searches_within_the_budget(strategy: str, tmp_path: Path) -> None:
    result = run(tmp_path, search__strategy=strategy, search__population=4)
    assert 3 <= len(result.trials) <= 10
    assert strategy in ("exact", "gradient") or len(result.trials) == 10
    assert all(trial.feasible for trial in result.trials)
    limit = result.budget["crossbars"]
    assert all(trial.metrics["crossbars"] <= limit for trial in result.trials)
    origins = {trial.origin for trial in result.trials}
    assert origins == ({"seed"} if strategy == "exact" else {"search"})
    assert (tmp_path / "run" / "best.yaml").exists()


def test_several_budgets_hold_together(tmp_path: Path) -> None:
    free = run(tmp_path / "free", budget={"compression": 20})
    limits = {
        name: sorted(trial.metrics[name] for trial in free.trials)[6]
        for name in ("latency_ns", "energy_nj", "area_um2", "weight_bits")
    }
    budget = {"compression": 18, "tiles": 30, **limits, "weight_bits": int(limits["weight_bits"])}
    result = run(tmp_path / "bound", budget=budget)
    assert set(result.budget) == {"crossbars", "tiles", *limits}
    assert len(result.trials) == 10
    for trial in result.trials:
        assert trial.feasible
        for name, limit in result.budget.items():
            assert trial.metrics[name] <= limit * (1 + 1e-9), name


def test_other_objectives_and_directions(tmp_path: Path) -> None:
    objectives = ["loss", "edp_nj_ns", "utilization", "min tiles"]
    result = run(tmp_path, objectives=objectives)
    assert result.objectives == ("loss", "edp_nj_ns", "utilization", "tiles")
    on_front = [trial for trial in result.trials if trial.number in result.front]
    signs = {"loss": 1, "edp_nj_ns": 1, "utilization": -1, "tiles": 1}
    for trial in on_front:
        for other in result.trials:
            better = [s * other.metrics[n] <= s * trial.metrics[n] for n, s in signs.items()]
            strictly = [s * other.metrics[n] < s * trial.metrics[n] for n, s in signs.items()]
            assert not (all(better) and any(strictly))
    for trial in result.trials:
        expected = trial.metrics["energy_nj"] * trial.metrics["latency_ns"]
        assert trial.metrics["edp_nj_ns"] == pytest.approx(expected)


def test_a_search_without_accuracy_among_its_objectives(tmp_path: Path) -> None:
    result = run(tmp_path, objectives=["latency_ns", "energy_nj"])
    assert result.front
    assert (tmp_path / "run" / "report.html").exists()


def test_an_empty_front_says_which_design_comes_nearest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("epim_nas").propagate = True
    result = run(
        tmp_path, search__strategy="random", search__repair=False, search__trials=3,
        budget={"compression": 27},
    )  # fmt: skip
    assert result.front == ()
    assert "so the front is empty" in caplog.text
    assert "comes nearest" in caplog.text
    assert not (tmp_path / "run" / "best.yaml").exists()


def test_a_search_keeps_its_trials_in_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/trials.db"
    first = run(tmp_path / "a", search__storage=url)
    second = run(tmp_path / "b", search__storage=url, seed=4)
    assert len(first.trials) == len(second.trials) == 10
    assert not (tmp_path / "a" / "run" / "study.journal").exists()
    again = run(tmp_path / "a", search__storage=url, search__trials=12)
    assert [trial.metrics for trial in again.trials[:10]] == [t.metrics for t in first.trials]
    assert len(again.trials) == 12


def test_a_trials_costs_are_those_of_its_design_alone(tmp_path: Path) -> None:
    """A search asks the model of its whole space; a design is evaluated by itself elsewhere."""
    result = run(tmp_path)
    setup = Run.load(RunConfig.model_validate(result.config), RunFolder(tmp_path))
    for trial in result.trials:
        alone = setup.metrics(trial.design)
        assert set(alone) <= set(trial.metrics)
        assert {name: trial.metrics[name] for name in alone} == pytest.approx(alone)
