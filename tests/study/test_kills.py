"""Twenty SIGKILLs at random moments: no finished trial is lost, none is repeated."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from epim_nas.study.history import distributions
from tests.pipeline.test_trials import rows, search
from tests.study.kills import problem, stored

ROOT = Path(__file__).parents[2]
TRIALS = 70
KILLS = 20


@pytest.mark.parametrize("capacity", [1, 3])
def test_twenty_kills_lose_and_repeat_nothing(capacity: int, tmp_path: Path) -> None:
    folder, chance = tmp_path / "killed", random.Random(capacity)
    command = [sys.executable, "-m", "tests.study.kills", str(folder), str(TRIALS), str(capacity)]
    before: list[optuna.trial.FrozenTrial] = []
    kills = 0
    while kills < KILLS:
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        # Wait until it goes on with the search, then for a random moment within a few trials.
        mark = (folder / "inflight.jsonl").stat().st_mtime_ns if before else 0
        while process.poll() is None and not _newer(folder / "inflight.jsonl", mark):
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, 0.12))
        assert process.poll() is None, "it ended before the kills were over"
        process.kill()
        process.wait()
        kills += 1
        after = stored(folder)
        assert rows(after)[: len(before)] == rows(before)
        before = after
    assert len(before) < TRIALS
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    trials = stored(folder)
    assert len(trials) == TRIALS
    assert len(set(rows(trials))) == TRIALS
    assert len({trial.user_attrs["asked"] for trial in trials}) == TRIALS
    assert set(distributions(problem())) == set(trials[0].params)
    if capacity == 1:
        whole = search(tmp_path / "whole", problem(), "epitome", TRIALS)
        assert rows(trials) == rows(whole)
        assert [trial.values for trial in trials] == [trial.values for trial in whole]


def _newer(file: Path, mark: int) -> bool:
    return file.exists() and file.stat().st_mtime_ns > mark
