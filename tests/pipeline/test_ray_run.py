"""The same run with two Ray workers."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState

from tests.pipeline import command
from tests.pipeline.tiny import tiny_run, write_run

pytest.importorskip("ray")

TRIALS = tiny_run()["search"]["trials"]


def test_killed_once_it_stores_every_trial_once_within_the_budget(
    finished: Path, tmp_path: Path
) -> None:
    run, folder = write_run(tmp_path, executor={"kind": "ray", "workers": 2}), tmp_path / "run"

    def some_trials() -> bool:
        journal = folder / "study.journal"
        return journal.exists() and journal.read_bytes().count(b'"op_code":4') >= 4

    process = command.start("search", run, "--out", folder)
    command.wait_until(process, some_trials)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = command.outcome_of(folder)

    done = command.run("search", run, "--out", folder)
    assert done.returncode == 0, done.stderr
    trials = command.trials_of(folder)
    assert command.outcome_of(folder)[: len(before)] == before
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len(trials) == TRIALS
    designs = Counter(tuple(sorted(trial.params.items())) for trial in trials)
    assert max(designs.values()) == 1, "a design was scored twice"
    asked = Counter(trial.user_attrs["asked"] for trial in trials)
    assert max(asked.values()) == 1, "two trials have the same place in the search"
    budget = json.loads((folder / "budget.json").read_text())["crossbars"]
    assert all(trial.user_attrs["metrics"]["crossbars"] <= budget for trial in trials)
    assert len(list((folder / "finalists").glob("*.json"))) == tiny_run()["finalists"]["count"]

    # Where a design is scored must not matter: the exact seeds have the scores of this process.
    assert seed_scores(folder) == seed_scores(finished)


def seed_scores(folder: Path) -> dict[tuple[tuple[str, int], ...], list[float]]:
    return {
        tuple(sorted(params.items())): values
        for params, values, origin in command.outcome_of(folder)
        if origin == "seed"
    }
