"""A real search on a cluster whose machines come and go, whose workers and driver are killed."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest

from tests.cluster.machines import Cluster, short_folder
from tests.pipeline.tiny import write_run
from tests.study.kills import stored

pytest.importorskip("ray")

ROOT = Path(__file__).parents[2]
TRIALS = 150


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with short_folder() as folder:
        made = Cluster(folder)
        yield made
        made.close()


class Search:
    """``epim-nas search`` as a process."""

    def __init__(self, cluster: Cluster, run: Path, out: Path) -> None:
        self.out = out
        self._log = open(out.parent / "search.log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "epim-nas"), "search", str(run),
                "--out", str(out), "--set", "executor.kind=ray",
                "--set", "executor.workers=auto", "--set", f"executor.address={cluster.address}",
            ],
            env={**cluster.environment, "PYTHONPATH": str(ROOT)},
            cwd=ROOT, stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    @property
    def log(self) -> str:
        return (self.out.parent / "search.log").read_text()

    @property
    def worker(self) -> int:
        """Process of the newest actor of this search: another test's cluster may run beside it."""
        return int(re.findall(r"worker (\d+) on \S+ is ready", self.log)[-1])

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.log[-3000:]}"
            assert time.monotonic() < deadline, f"not {what} in time:\n{self.log[-3000:]}"
            time.sleep(0.05)


def test_no_trial_is_lost_or_repeated_when_workers_nodes_and_the_driver_are_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    rng = random.Random(7)
    run = write_run(
        tmp_path, model={"name": "tests.cluster.slow:slow_net"}, search__trials=TRIALS,
        search__validation_images=300,
    )  # fmt: skip
    out = tmp_path / "run"
    first = cluster.add_node(cpus=1)
    search = Search(cluster, run, out)
    some, more = rng.randint(5, 15), rng.randint(5, 20)
    search.wait_until(lambda: len(stored(out)) >= some, "some trials were stored")
    os.kill(search.worker, signal.SIGKILL)
    search.wait_until(lambda: search.log.count(" is ready (") >= 2, "the worker was back")
    os.kill(search.worker, signal.SIGSTOP)  # or it does all trials before the node is there
    cluster.add_node(cpus=1)  # joins late
    search.wait_until(lambda: search.log.count(" is ready (") >= 3, "the late node's worker")
    cluster.kill_node(first)
    before = len(stored(out))
    search.wait_until(lambda: len(stored(out)) >= before + more, "work on the other node")
    search.process.kill()
    search.process.wait()
    saved = {trial.user_attrs["asked"]: (trial.params, trial.values) for trial in stored(out)}
    assert before + more <= len(saved) < TRIALS

    again = Search(cluster, run, out)
    again.process.wait(timeout=120)
    assert again.process.returncode == 0, again.log[-3000:]
    trials = stored(out)
    assert len(trials) == TRIALS
    assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials)
    assert len({tuple(sorted(trial.params.items())) for trial in trials}) == TRIALS
    final = {trial.user_attrs["asked"]: (trial.params, trial.values) for trial in trials}
    assert {key: final[key] for key in saved} == saved
    assert "its worker died" in again.log


@pytest.mark.parametrize(
    ("environment", "hint"),
    [
        ({"RAY_AUTH_TOKEN": "", "RAY_AUTH_MODE": "token"}, "RAY_AUTH_TOKEN_PATH"),
        ({"RAY_AUTH_TOKEN": "x" * 40}, "RAY_AUTH_TOKEN_PATH"),
        ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE"),
    ],
    ids=["no token", "wrong token", "authentication off"],
)
def test_a_client_without_the_token_is_told(
    cluster: Cluster, environment: dict[str, str], hint: str, tmp_path: Path
) -> None:
    code = (
        "import sys; from epim_nas.cluster.connection import connect\n"
        "from epim_nas import InputError\n"
        "try: connect(sys.argv[1], 'a test')\n"
        "except InputError as error: print(error); sys.exit(2)\n"
    )
    started = time.monotonic()
    variables = {**cluster.environment, "HOME": str(tmp_path), **environment}
    found = subprocess.run(
        [sys.executable, "-c", code, cluster.address], env=variables, cwd=ROOT,
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert found.returncode == 2, found.stdout + found.stderr
    assert hint in found.stdout
    assert time.monotonic() - started < 30
