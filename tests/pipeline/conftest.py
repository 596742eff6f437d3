from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.pipeline import command
from tests.pipeline.finetuning import tune
from tests.pipeline.tiny import write_run


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the commands' processes, so that both compute the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tuned(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished fine-tuning. Not to be changed."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    tune(finished, out)
    return out


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that ran to its end without interruption. Not to be changed."""
    base = tmp_path_factory.mktemp("finished")
    done = command.run("search", write_run(base), "--out", base / "run")
    assert done.returncode == 0, done.stderr
    (base / "run.stdout").write_text(done.stdout)
    (base / "run.stderr").write_text(done.stderr)
    return base / "run"
