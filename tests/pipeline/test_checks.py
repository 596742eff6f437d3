"""What would stop a run after hours is said before its baseline is trained."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import nn

from epim_nas import InputError
from epim_nas.cli.app import run_command
from epim_nas.pipeline.config import load_run_config
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.preflight import check_cluster, check_trainings
from tests.pipeline.tiny import write_run

NOWHERE = "127.0.0.1:9"


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """The message of a search that must end before its first training."""
    run, folder = write_run(tmp_path, baseline__steps=2), tmp_path / "run"
    given = [part for text in overrides for part in ("--set", text)]
    code = run_command(["search", str(run), "--out", str(folder), *given])
    error = capsys.readouterr().err
    assert code == 2, error
    assert "Traceback" not in error
    assert not RunFolder(folder).has_work
    log = folder / "log.txt"  # not there yet where the run file itself is wrong
    assert not log.exists() or "Baseline" not in log.read_text()
    return next(line for line in error.splitlines() if line.startswith("epim-nas: "))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["baseline.accumulation=33"], ["baseline.accumulation", "33", "1 to 32"]),
        (["supernet.accumulation=33"], ["supernet.accumulation", "33", "1 to 32"]),
        (["finalists.accumulation=33"], ["finalists.accumulation", "33", "1 to 32"]),
        (
            ["finalists.batch_size=8", "finalists.accumulation=9"],
            ["finalists.accumulation", "9", "1 to 8"],
        ),
        (["baseline.batch_size=501"], ["baseline.batch_size", "501", "1 to 500"]),
        (["supernet.batch_size=501"], ["supernet.batch_size", "501", "1 to 500"]),
        (["finalists.batch_size=501"], ["finalists.batch_size", "501", "1 to 500"]),
        (["sensitivity.batch_size=1"], ["sensitivity.batch_size", "at least 2"]),
        (["sensitivity.images=1"], ["sensitivity.batch_size", "`sensitivity.images`"]),
        (["supernet.workers=3"], ["supernet.workers", "3", "a divisor of 32"]),
        (
            ["supernet.workers=3", "supernet.batch_size=8"],
            ["supernet.workers", "3", "a divisor of 8"],
        ),
    ],
)
def test_batches_that_cannot_be_made(
    overrides: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(tmp_path, capsys, *overrides)
    assert f": {words[0]}: " in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("override", ["executor.kind=ray", "supernet.workers=2"])
def test_a_missing_ray(
    override: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "epim_nas[ray]" in refused(tmp_path, capsys, override)


@pytest.mark.parametrize("override", ["executor.kind=ray", "supernet.workers=2"])
@pytest.mark.parametrize("by_variable", [True, False])
def test_an_address_where_nothing_answers(
    override: str,
    by_variable: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray")
    if by_variable:
        monkeypatch.setenv("RAY_ADDRESS", NOWHERE)
        message = refused(tmp_path, capsys, override)
    else:
        message = refused(tmp_path, capsys, override, f"executor.address={NOWHERE}")
    assert f"executor.address: no Ray cluster answers at {NOWHERE}" in message


@pytest.mark.parametrize(
    ("method", "refused"), [("output_fisher", True), ("measured", True), ("weight_fisher", False)]
)
def test_one_image_is_enough_where_no_statistics_are_taken(
    method: str, refused: bool, tmp_path: Path
) -> None:
    run = write_run(tmp_path, sensitivity={"method": method, "batch_size": 1, "images": 8})
    setup = Run.load(load_run_config(str(run))[0], RunFolder(tmp_path / "run"))
    if not refused:
        check_trainings(setup)
        return
    with pytest.raises(InputError, match=r"sensitivity\.batch_size"):
        check_trainings(setup)


def test_what_is_trained_or_not_used_is_not_checked(finished: Path) -> None:
    def check(*overrides: str) -> None:
        given = [f"executor.address={NOWHERE}", "supernet.workers=3", *overrides]
        config, _ = load_run_config(str(finished / "run.yaml"), given)
        check_cluster(config, RunFolder(finished))

    check()
    check("supernet.steps=0")
    with pytest.raises(InputError, match=r"supernet\.workers"):
        check("supernet.steps=31")


def flat_norm(in_channels: int, num_classes: int) -> nn.Module:
    """A network with a batch norm of one value a channel."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.BatchNorm1d(8), nn.Linear(8, num_classes),
    )  # fmt: skip


@pytest.mark.parametrize(
    "overrides", [["data.batch_size=1"], ["supernet.batch_size=8", "supernet.accumulation=8"]]
)
def test_one_image_at_a_time_does_not_train_a_flat_batch_norm(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = 'model={name: "tests.pipeline.test_checks:flat_norm"}'
    message = refused(tmp_path, capsys, model, *overrides)
    assert f"{overrides[0].partition('.')[0]}.batch_size: gives batches of one image" in message
