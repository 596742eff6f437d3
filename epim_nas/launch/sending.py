"""Sending a job's file with the command of its cluster."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from epim_nas.errors import EpimError, InputError
from epim_nas.launch.texts import command_line


def send(command: Sequence[str], file: Path, cluster: str, where: str) -> str:
    """Run a command with a file as its last argument; returns what it prints.

    Args:
        command: the program and its options.
        file: what to send.
        cluster: who takes it, for messages.
        where: a machine that has the program, for messages.

    Raises:
        InputError: there is no such program.
        EpimError: the cluster refused the job.
    """
    line = [*command, str(file)]
    if shutil.which(command[0]) is None:
        raise InputError(
            "--submit", f"the command `{command[0]}` is not on this machine", where,
            f"Send it there: {command_line(*line)}",
        )  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise EpimError(f"{cluster} refused the job: {done.stderr.strip()}")
    return done.stdout.strip()
