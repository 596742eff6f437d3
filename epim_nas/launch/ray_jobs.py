"""A running Ray cluster: jobs through its dashboard's API."""

from __future__ import annotations

import logging
import os
import shlex
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epim_nas.cluster.connection import refusal, wrong_token
from epim_nas.cluster.executor import one_line
from epim_nas.errors import EpimError, InputError, missing_extra
from epim_nas.files import read_text, write_text
from epim_nas.launch.job import Job
from epim_nas.launch.texts import command_line
from epim_nas.pipeline.folder import LAUNCH

_DASHBOARD_PORT = 8265
_SCRIPT = "job.sh"
_STOP_SECONDS = 30.0
"""How long to wait for a job that was told to stop."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
"""Statuses in which a job stays."""


@dataclass(frozen=True)
class JobState:
    """A job of a cluster.

    Attributes:
        name: its id.
        status: ``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``.
        run: name of its run, or what it runs.
        out: its run folder, where it is known.
        message: Ray's words on its status.
    """

    name: str
    status: str
    run: str
    out: str
    message: str


def write(job: Job) -> Path:
    """Write the run file beside the modules, and the command; returns the command's file."""
    write_text(job.code / "run.yaml", read_text(job.run_file))
    script = job.code / _SCRIPT
    write_text(script, command_of(job) + "\n")
    return script


def command_of(job: Job) -> str:
    """What the cluster runs, in a directory with the run file and the modules.

    They are copied into the run folder first: Ray deletes the directory when it likes.
    """
    code = shlex.quote(str(_code_of(job)))
    search = command_line("epim-nas", "search", "run.yaml", "--out", job.out)
    return f"mkdir -p {code} && cp -R . {code} && cd {code} && exec {search}"


def _code_of(job: Job) -> Path:
    return job.out / LAUNCH / "code"


class JobClient:
    """Submits jobs to a cluster, and looks at them.

    Args:
        address: the dashboard's (``http://HOST:8265``), or None for RAY_API_SERVER_ADDRESS, else
            for RAY_ADDRESS with the dashboard's usual port.

    Raises:
        InputError: Ray is not installed, or nothing answers, or the token is missing or wrong.
    """

    def __init__(self, address: str | None) -> None:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError:
            raise missing_extra("ray", "ray", "submitting to a Ray cluster") from None
        logging.getLogger("ray").setLevel(logging.WARNING)  # it tells of every upload
        self.address = dashboard_address(address)
        _check_answers(self.address)
        with _explained(self.address):
            self._client = JobSubmissionClient(self.address)

    def submit(self, job: Job) -> str:
        """Send a job; returns its id."""
        with _explained(self.address):
            return str(
                self._client.submit_job(
                    entrypoint=f"sh {_SCRIPT}",
                    runtime_env={
                        "working_dir": str(job.code),
                        "env_vars": {"PYTHONPATH": str(_code_of(job))},
                    },
                    metadata={"run": job.name, "out": str(job.out)},
                )
            )

    def jobs(self) -> list[JobState]:
        """The jobs of the cluster, oldest first."""
        with _explained(self.address):
            found = self._client.list_jobs()
        known = [entry for entry in found if entry.submission_id]
        return [_state(entry) for entry in sorted(known, key=lambda e: e.start_time or 0)]

    def job(self, name: str) -> JobState:
        """One job.

        Raises:
            InputError: there is none of this name.
        """
        found = {state.name: state for state in self.jobs()}
        if name not in found:
            raise InputError(
                "ID", f"no job `{name}` at {self.address}", ", ".join(found) or "no job is there"
            )
        return found[name]

    def logs(self, name: str) -> str:
        """What a job has printed so far."""
        with _explained(self.address):
            return str(self._client.get_job_logs(name))

    def stop(self, name: str) -> None:
        """Stop a job and wait until it has; what it had finished is saved."""
        with _explained(self.address):
            self._client.stop_job(name)
        until = time.monotonic() + _STOP_SECONDS
        while self.job(name).status not in ENDED and time.monotonic() < until:
            time.sleep(0.5)

    def follow(self, name: str, say: Callable[[str], None]) -> JobState:
        """Pass on what a job prints until it ends.

        Args:
            name: its id.
            say: called with parts of its output.
        """
        import asyncio

        async def pass_on() -> None:
            async for part in self._client.tail_job_logs(name):
                say(part)

        with _explained(self.address):
            asyncio.run(pass_on())
        return self.job(name)


def dashboard_address(address: str | None) -> str:
    """The address of a cluster's dashboard.

    Raises:
        InputError: none is known, or it is not one.
    """
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if address is None and "RAY_ADDRESS" in os.environ:
        host = os.environ["RAY_ADDRESS"].removeprefix("ray://").rpartition(":")[0]
        address = f"http://{host or os.environ['RAY_ADDRESS']}:{_DASHBOARD_PORT}"
    parts = urllib.parse.urlparse(address or "")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            "--address",
            f"`{address}` is not a dashboard's address" if address else "no cluster is named",
            f"http://HOST:{_DASHBOARD_PORT}, as `ray start --head` prints it",
            "Give --address, or set RAY_API_SERVER_ADDRESS.",
        )
    return address or ""


def _check_answers(address: str) -> None:
    parts = urllib.parse.urlparse(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    refused = refusal(parts.hostname or "", port)
    if refused:
        raise InputError(
            "--address",
            f"no Ray dashboard answers at {address} ({refused})",
            hint="Check the address, that the head runs with its dashboard (the extra "
            "`ray[default]`), and that its port is reachable from here.",
        )


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn errors of Ray's client into the user's."""
    try:
        yield
    except (EpimError, KeyboardInterrupt):
        raise
    except Exception as error:
        text = str(error)
        if any(word in text for word in ("401", "403", "oken", "uthentication", "nauthorized")):
            raise wrong_token(address) from None
        raise EpimError(f"the Ray cluster at {address}: {one_line(error)}") from error


def _state(entry: Any) -> JobState:
    status = str(getattr(entry.status, "value", entry.status))
    known = entry.metadata or {}
    run, out = known.get("run", entry.entrypoint), known.get("out", "")
    return JobState(entry.submission_id, status, run, out, entry.message or "")
