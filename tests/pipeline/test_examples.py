"""The example for Python, as its head says to start it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from epim_nas import InputError, load_design, trained_model
from tests.pipeline.command import ROOT


def test_thirty_lines_lead_from_a_network_to_a_trained_design(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / "examples/thirty_lines.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "thirty_lines.py", "run"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^20 designs scored, \d+ on the front$", done.stdout, re.M)
    dense, small = map(int, re.findall(r"(\d+) crossbars became (\d+)", done.stdout)[0])
    assert small <= dense / 16
    shape, accuracy = re.findall(r"torch.Size\((.*)\) ([\d.]+)", done.stdout)[0]
    assert shape == "[1, 10]"
    assert float(accuracy) > 0.6
    monkeypatch.chdir(tmp_path)
    design = load_design("run/best.yaml")
    model = trained_model("run")
    trial = trained_model("run", design.provenance["trial"])
    assert all(map(torch.equal, model.state_dict().values(), trial.state_dict().values()))
    assert not model.training
    assert sum(name.endswith(".epitome") for name in model.state_dict()) == sum(
        choice.shape is not None or choice.weight_bits is not None
        for choice in design.choices.values()
    )
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(model(images), model(images))
    with pytest.raises(InputError, match="a fine-tuned trial"):
        trained_model("run", "19")
