"""A real SLURM: a search that is preempted is queued again and goes on."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.cluster.machines import short_folder
from tests.launch.slurm import Slurm, missing
from tests.pipeline.command import PROGRAM, ROOT, study_of
from tests.pipeline.tiny import write_run
from tests.study.kills import stored

pytest.importorskip("ray")

TRIALS = 150

# `ray symmetric-run` ends with `ray stop`, which stops every Ray of the machine.
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}"),
]


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    with short_folder() as folder:
        made = Slurm(folder)
        yield made
        made.close()


def launch(slurm: Slurm, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**slurm.environment, "HOME": str(slurm.folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(PROGRAM), "launch", *arguments], env=environment, cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip


def test_a_preempted_search_is_requeued_and_loses_nothing(slurm: Slurm) -> None:
    run = write_run(slurm.folder, search__trials=TRIALS, search__validation_images=300)
    out = slurm.folder / "out"
    done = launch(
        slurm, str(run), "--on", "slurm", "--out", str(out), "--cpus", "2", "--partition", "low",
        "--time", "00:20:00", "--submit",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[-1]

    def wait_for(reached: object, what: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not reached():  # type: ignore[operator]
            log = "".join(path.read_text()[-3000:] for path in out.glob("launch/slurm-*.log"))
            state = slurm.state(job)
            assert not state.startswith("FAILED"), log
            assert time.monotonic() < until, f"{what}: {state} {log}"
            time.sleep(0.3)

    wait_for(lambda: len(stored(out)) >= 10, "first trials", 90)
    urgent = ["sbatch", "--partition=high", "--cpus-per-task=2", "--output=/dev/null"]
    slurm.run(*urgent, "--wrap", "sleep 2")
    wait_for(lambda: slurm.state(job) == "PENDING 1", "the requeue", 60)
    before = [(trial.number, trial.params, trial.values) for trial in stored(out)]
    assert 10 <= len(before) < TRIALS, "it was not preempted in the middle"
    log = next(out.glob("launch/slurm-*.log")).read_text()
    assert "interrupted; everything finished is saved" in log

    wait_for(lambda: slurm.state(job).startswith("COMPLETED"), "the end", 150)
    trials = study_of(out).get_trials(deepcopy=False)
    assert len(trials) == TRIALS
    assert [(t.number, t.params, t.values) for t in trials][: len(before)] == before
    assert len({tuple(sorted(trial.params.items())) for trial in trials}) == TRIALS
    assert (out / "best.yaml").exists()
    token = out / "launch" / "token"
    assert token.stat().st_mode & 0o077 == 0, "others may not read the token"


def test_what_slurm_refuses_is_said(slurm: Slurm) -> None:
    run = write_run(slurm.folder)
    done = launch(
        slurm, str(run), "--on", "slurm", "--out", str(slurm.folder / "no"), "--partition",
        "nowhere", "--submit",
    )  # fmt: skip
    assert done.returncode == 1
    assert "nowhere" in done.stderr or "partition" in done.stderr
    assert "Traceback" not in done.stderr


def test_sbatch_takes_every_option(slurm: Slurm) -> None:
    run = write_run(slurm.folder)
    out = slurm.folder / "asked"
    done = launch(
        slurm, str(run), "--on", "slurm", "--out", str(out), "--cpus", "1", "--memory", "1",
        "--time", "1-00:00:00", "--account", "mine",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    script = out / "launch" / "job.sbatch"
    assert f"sbatch {script}" in done.stdout
    assert "to start at" in slurm.run("sbatch", "--test-only", str(script))
