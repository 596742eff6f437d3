"""The ``epim-nas`` command in child processes that start at once and may be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.pipeline.command import outcome_of

_PRELOADED = ["torch", "optuna", "epim_nas.cli.app", "epim_nas.pipeline.driver"]
TIMEOUT_SECONDS = 240


@dataclass
class Command:
    """A command in a process of its own; what it says is in files."""

    process: ForkServerProcess
    out: Path

    @property
    def stdout(self) -> str:
        """What it has written to stdout."""
        return self.out.read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        """What it has written to stderr."""
        return self.out.with_suffix(".stderr").read_text(encoding="utf-8", errors="replace")

    def wait(self) -> int:
        """Its exit code."""
        self.process.join(TIMEOUT_SECONDS)
        assert self.process.exitcode is not None, "it does not end"
        return self.process.exitcode

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.join()

    def kill_at(self, moment: Callable[[], bool]) -> None:
        """SIGKILL as soon as something is so."""
        started = time.monotonic()
        while not moment():
            assert self.process.is_alive(), self.stderr
            assert time.monotonic() - started < TIMEOUT_SECONDS, "it never came so far"
            time.sleep(0.002)
        self.kill()


def start(arguments: Sequence[object], out: Path) -> Command:
    """Start a command; ``out`` takes what it prints."""
    # One thread computes the same bits as another process with one.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_run, args=([str(a) for a in arguments], str(out)))
    process.start()
    return Command(process, out)


def run(arguments: Sequence[object], out: Path) -> Command:
    """A command to its end."""
    command = start(arguments, out)
    command.wait()
    return command


def _run(arguments: list[str], out: str) -> None:
    import torch

    from epim_nas.cli.app import run_command

    for descriptor, path in ((1, Path(out)), (2, Path(out).with_suffix(".stderr"))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    torch.set_num_threads(1)
    code = run_command(arguments)
    sys.stdout.flush()
    sys.exit(code)


def stored_trials(folder: Path) -> int:
    """How many trials are stored, without opening the journal."""
    journal = folder / "study.journal"
    return journal.read_bytes().count(b'"op_code":4') if journal.exists() else 0


def result_of(folder: Path) -> dict[str, Any]:
    """What a search has found, without times: equal for equal searches."""
    return {
        "trials": outcome_of(folder),
        "front": (folder / "front.csv").read_bytes(),
        "best": (folder / "best.yaml").read_bytes(),
        "finalists": {
            path.name: json.loads(path.read_text())
            for path in (folder / "finalists").glob("*.json")
        },
    }
