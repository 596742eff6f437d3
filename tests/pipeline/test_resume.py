"""Searches that are killed, interrupted, extended, or started twice."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from epim_nas.cli.app import run_command
from epim_nas.pipeline.config import load_run_config
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.measure import make_scorer
from epim_nas.pipeline.stages.supernet import prepare_supernet
from epim_nas.space.space import SearchSpace
from epim_nas.study.inflight import Pending
from epim_nas.study.store import TrialStore
from epim_nas.supernet.training import TrainConfig
from tests.pipeline import command
from tests.pipeline.tiny import tiny_run, write_run

TRIALS = tiny_run()["search"]["trials"]


def logged(folder: Path, text: str, times: int = 1) -> Callable[[], bool]:
    """Whether the log of a run holds a text so many times."""

    def check() -> bool:
        log = folder / "log.txt"
        return log.exists() and log.read_text().count(text) >= times

    return check


def stored_trials(folder: Path, count: int) -> Callable[[], bool]:
    """Whether so many trials are stored, without opening the journal."""

    def check() -> bool:
        journal = folder / "study.journal"
        return journal.exists() and journal.read_bytes().count(b'"op_code":4') >= count

    return check


def kill(process: subprocess.Popen[str], delay: float) -> None:
    """SIGKILL after a delay; the process must not have ended before."""
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"


def test_killed_again_and_again_it_finds_what_the_uninterrupted_search_finds(
    finished: Path, tmp_path: Path
) -> None:
    run, folder = write_run(tmp_path), tmp_path / "run"
    rng = random.Random(20)

    def result_files() -> int:
        return len(list((folder / "finalists").glob("*.json")))

    moments = [
        logged(folder, "Baseline: "),
        logged(folder, "Supernet: "),
        stored_trials(folder, rng.randint(1, 4)),
        stored_trials(folder, rng.randint(6, TRIALS - 2)),
        lambda: result_files() >= 1,
    ]
    before: list[object] = []
    for number, moment in enumerate(moments):
        process = command.start("search", run, "--out", folder)
        command.wait_until(process, moment)
        # A finalist takes 12 steps, a trial even less: short delays still hit the stage.
        kill(process, rng.uniform(0, 0.3 if number < 2 else 0.03))
        if (folder / "study.journal").exists():
            after: list[object] = list(command.outcome_of(folder))
            assert after[: len(before)] == before, "a finished trial was lost or changed"
            before = after
    done = command.run("search", run, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert command.outcome_of(folder) == command.outcome_of(finished)
    # Everything that follows from the trials is the same as well.
    assert (folder / "front.csv").read_text() == (finished / "front.csv").read_text()
    assert (folder / "best.yaml").read_text() == (finished / "best.yaml").read_text()
    for path in (finished / "finalists").glob("*.json"):
        assert json.loads((folder / "finalists" / path.name).read_text()) == json.loads(
            path.read_text()
        )
    rows = sorted(path.name for path in (folder / "tensorboard" / "trials").iterdir())
    assert rows == [f"{number:04d}" for number in range(TRIALS)]
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder / "tensorboard"))
    multiplexer.Reload()
    points = multiplexer.Scalars("search", "hypervolume/over_trials")
    assert [event.step for event in points] == list(range(1, TRIALS + 1))


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change, its run file beside it."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.copy(finished.with_name("tiny.yaml"), tmp_path)
    return tmp_path / "run"


def test_interrupted_and_extended(finished: Path, copied: Path) -> None:
    run = copied.with_name("tiny.yaml")
    mine = [copied / "designs" / name for name in ("trial-0004-mine.yaml", "trial-².yaml")]
    for file in mine:
        file.write_text("of the user")

    def search(trials: int) -> tuple[object, ...]:
        return ("search", run, "--out", copied, "--set", f"search.trials={trials}")

    process = command.start(*search(400))
    command.wait_until(process, stored_trials(copied, TRIALS + 2))
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "same command" in stderr
    assert str(copied) in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    interrupted = command.outcome_of(copied)
    assert TRIALS + 2 <= len(interrupted) < 400
    assert interrupted[:TRIALS] == command.outcome_of(finished)

    more = len(interrupted) + 2
    done = command.run(*search(more))
    assert done.returncode == 0, done.stderr
    outcome = command.outcome_of(copied)
    assert len(outcome) == more
    assert outcome[: len(interrupted)] == interrupted
    assert len({tuple(sorted(params.items())) for params, _, _ in outcome}) == more
    # Called again with nothing left to do, it changes nothing.
    front = (copied / "front.csv").read_bytes()
    again = command.run(*search(more))
    assert again.returncode == 0, again.stderr
    assert command.outcome_of(copied) == outcome
    assert (copied / "front.csv").read_bytes() == front
    assert [file.read_text() for file in mine] == ["of the user"] * 2


def test_a_finalist_goes_on_where_its_damage_is_measured_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another device: the learning rate follows the damage, and it is the training's."""
    config, _ = load_run_config(str(write_run(tmp_path)))
    this = Run.load(config, RunFolder(tmp_path / "run"))
    this.folder.checkpoints.mkdir(parents=True)
    supernet = prepare_supernet(this, this.model, this.build_space())
    scorer = make_scorer(this, supernet, this.model)
    files = str(tmp_path / "a.state"), str(tmp_path / "a.safetensors")
    row, training = (0,) * len(supernet.space.groups), TrainConfig(6, 32, warmup=0)

    monkeypatch.setattr("epim_nas.supernet.scorer.measure_damage", lambda *_: 0.2)
    first = scorer.finetune(row, training, 0, *files, until=3)
    monkeypatch.setattr("epim_nas.supernet.scorer.measure_damage", lambda *_: 0.3)
    second = scorer.finetune(row, training, 0, *files)
    assert second.learning_rate == first.learning_rate
    assert second.before == first.before
    other = scorer.finetune(row, training, 0, str(tmp_path / "b.state"), files[1])
    assert other.learning_rate > first.learning_rate


@pytest.mark.parametrize(
    "change", ["seed=4", "budget.compression=20", "supernet.steps=31", "objectives=[accuracy]"]
)
def test_another_run_file_is_refused(
    copied: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (copied / "run.yaml").read_bytes()
    run = copied.with_name("tiny.yaml")
    code = run_command(["search", str(run), "--out", str(copied), "--set", change])
    captured = capsys.readouterr()
    assert code == 2
    assert f"`{change.partition('=')[0]}`" in captured.err
    assert "--out" in captured.err
    assert captured.out == ""
    assert (copied / "run.yaml").read_bytes() == before


def test_two_searches_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, folder = write_run(tmp_path), tmp_path / "run"
    first = command.start("search", run, "--out", folder)
    try:
        command.wait_until(first, logged(folder, "Baseline: "))
        code = run_command(["search", str(run), "--out", str(folder)])
        captured = capsys.readouterr()
        assert code == 2
        assert "another search is running" in captured.err
        assert captured.out == ""
        assert first.poll() is None, "the second search ended the first"
    finally:
        first.kill()
        first.communicate()


def test_a_run_file_that_failed_can_be_corrected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    wrong = write_run(tmp_path, budget={"crossbars": 1})
    assert run_command(["search", str(wrong), "--out", str(folder)]) == 2
    assert "budget.crossbars" in capsys.readouterr().err
    # The folder takes the corrected file: the next error is about something else.
    corrected = write_run(tmp_path, model__weights="no.safetensors")
    assert run_command(["search", str(corrected), "--out", str(folder)]) == 2
    assert "model.weights" in capsys.readouterr().err


def test_proposals_in_flight_outlive_a_second_kill(finished: Path, tmp_path: Path) -> None:
    # With several workers a driver has several; killed twice, it must not forget the second.
    space = SearchSpace.from_dict(json.loads((finished / "space.json").read_text()))

    def opened() -> TrialStore:
        return TrialStore(tmp_path / "study.journal", ["accuracy", "latency_ns"], space)

    smallest = tuple(0 for _ in space.groups)
    largest = tuple(len(group) - 1 for group in space.groups)
    proposals = [Pending(0, smallest, "seed"), Pending(1, largest, "search")]
    first = opened()
    for pending in proposals:
        first.begin(pending)
    second = opened()
    assert second.left_over() == proposals
    second.begin(proposals[0])
    assert opened().left_over() == proposals
