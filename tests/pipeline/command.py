"""The installed ``epim-nas`` command in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from epim_nas.study.store import STUDY_NAME

ROOT = Path(__file__).parents[2]
"""The repository: the current folder of the commands, so that they can import ``tests``."""

PROGRAM = Path(sys.executable).with_name("epim-nas")
TIMEOUT_SECONDS = 240


def start(*arguments: object, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """The command, running in a folder."""
    environment = {
        **os.environ,
        # One thread computes the same bits on every machine with this processor.
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "COLUMNS": "120",
    }
    # A session of its own: a signal for it must not reach the tests.
    return subprocess.Popen(
        [str(PROGRAM), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run in the background of a shell ignore Ctrl-C, and what they start would too.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def run(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command to its end."""
    process = start(*arguments, cwd=cwd)
    stdout, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run_json(*arguments: object) -> dict[str, Any]:
    """The object that a command prints with ``--json``; nothing else may be on stdout."""
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert isinstance(data, dict)
    return data


def wait_until(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """Wait until a process has reached a point."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not reached():
        if process.poll() is not None:
            raise AssertionError(f"the process ended before: {process.communicate()[1]}")
        assert time.monotonic() < deadline, "the process never got there"
        time.sleep(0.005)


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """The trials of a run folder."""
    return study_of(folder).get_trials(deepcopy=False)


def study_of(folder: Path) -> optuna.Study:
    """The study of a run folder, read by stock Optuna."""
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    )
    return optuna.load_study(study_name=STUDY_NAME, storage=storage)


def outcome_of(folder: Path) -> list[tuple[dict[str, Any], list[float], str]]:
    """What a search found, without the times: parameters, values and origin of every trial."""
    return [
        (trial.params, list(trial.values), trial.user_attrs["origin"])
        for trial in trials_of(folder)
    ]
