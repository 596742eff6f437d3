"""A run with another budget takes over what another run has computed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from epim_nas import InputError
from epim_nas.pipeline.driver import search
from tests.pipeline.tiny import write_run


def _checkpoints(folder: Path, pattern: str) -> list[Path]:
    return sorted((folder / "checkpoints").glob(pattern))


def run(tmp_path: Path, other: Path, *overrides: str) -> Path:
    folder = tmp_path / "run"
    settings = [
        "search.trials=3", "search.seeds=2", "supernet.steps=0", "finalists.count=0",
        f"reuse={other}", *overrides,
    ]  # fmt: skip
    search(str(write_run(tmp_path)), folder, overrides=settings)
    return folder


def test_another_budget_takes_over_baseline_orders_and_sensitivity(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        folder = run(tmp_path, finished, "budget.compression=6")
    assert "taken over from" in caplog.text
    assert "training the baseline first" not in caplog.text
    names = ["baseline.safetensors", *(p.name for p in _checkpoints(finished, "sensitivity-*"))]
    assert len(names) == 2
    for name in names:
        mine, theirs = (path / "checkpoints" / name for path in (folder, finished))
        assert mine.read_bytes() == theirs.read_bytes()


def test_what_does_not_fit_is_computed(finished: Path, tmp_path: Path) -> None:
    folder = run(tmp_path, finished, "seed=4", "baseline.steps=3", "baseline.lr=0.1")
    a, b = (path / "checkpoints" / "baseline.safetensors" for path in (finished, folder))
    assert a.read_bytes() != b.read_bytes()
    (old,) = _checkpoints(finished, "sensitivity-*")
    assert old.read_bytes() != (folder / "checkpoints" / old.name).read_bytes()


def test_only_a_run_folder_can_be_reused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"reuse: .*is not a run folder.*another search"):
        run(tmp_path, tmp_path)
