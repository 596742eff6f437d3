"""The same run with two Ray workers."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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


def test_supernet_and_finalists_on_several_workers(tmp_path: Path) -> None:
    run = write_run(
        tmp_path,
        executor={"kind": "ray", "workers": 2},
        supernet__workers=2,
        finalists={"count": 4, "steps": 12, "rungs": 3},
    )
    folder = tmp_path / "run"
    done = command.run("search", run, "--out", folder)
    assert done.returncode == 0, done.stderr
    curve = json.loads((folder / "supernet.json").read_text())
    assert [step for step, _ in curve] == list(range(1, tiny_run()["supernet"]["steps"] + 1))
    assert "Supernet x2: done" in done.stderr

    # ASHA: some of the finalists stop after 4 or 8 of the 12 steps, and the best goes on.
    finalists = [json.loads(p.read_text()) for p in (folder / "finalists").glob("*.json")]
    assert len(finalists) == 4
    reached = [finalist["curve"][-1][0] for finalist in finalists]
    assert set(reached) <= {4, 8, 12}
    assert 12 in reached
    assert min(reached) < 12, "none stopped early"
    assert not list((folder / "finalists").glob("*.state"))
    assert not (folder / "finalists" / "ray").exists()
    noted = command.study_of(folder).user_attrs["finalists"]
    assert {int(number): entry["validation_accuracy"] for number, entry in noted.items()} == {
        finalist["trial"]: finalist["validation_accuracy"] for finalist in finalists
    }
    scalars = EventAccumulator(str(folder / "tensorboard" / "workers"))
    scalars.Reload()
    assert {"workers/busy", "workers/lost_calls", "workers/seconds"} <= set(
        scalars.Tags()["scalars"]
    )
    assert any("workers/log" in tag for tag in scalars.Tags()["tensors"])

    again = command.run("search", run, "--out", folder)
    assert again.returncode == 0, again.stderr
    assert "Supernet x2" not in again.stderr, "what is finished starts no workers"


def seed_scores(folder: Path) -> dict[tuple[tuple[str, int], ...], list[float]]:
    return {
        tuple(sorted(params.items())): values
        for params, values, origin in command.outcome_of(folder)
        if origin == "seed"
    }
