"""Scoring designs, and the trainings of single designs that stop and go on."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from epim_nas.errors import InputError
from epim_nas.supernet.scorer import FinetuneResult, Measure, Scorer, ScoreSettings, start_file
from epim_nas.supernet.supernet import Supernet
from epim_nas.supernet.training import TrainConfig
from tests.supernet.nets import tiny
from tests.supernet.test_training import bright_or_dark

ROW, OTHER_BITS = (0, 4, 0, 0), (0, 5, 0, 0)
"""Two designs whose networks have weights of the same shapes."""
TRAINING = TrainConfig(6, 16, distillation=0.5)


def make_scorer(**own: Measure) -> Scorer:
    model, network, space = tiny()
    supernet = Supernet(model, network, space)
    data = bright_or_dark(classes=4)
    images, _ = next(iter(data.batches("train", 32)))
    supernet.calibrate_activations(images)
    settings = ScoreSettings(32, 32, None, "cpu", "float32", 0, own)
    return Scorer(supernet, model, data, settings)


def finetune(
    scorer: Scorer, folder: Path, row: Sequence[int] = ROW, config: TrainConfig = TRAINING,
    seed: int = 0, lr: float | Literal["auto"] = "auto", until: int | None = None,
) -> FinetuneResult:  # fmt: skip
    files = str(folder / "a.state"), str(folder / "a.safetensors")
    return scorer.finetune(row, config, seed, *files, lr, until)


def one(model: object, data: object) -> float:
    return 1.0


def test_own_metrics_are_measured_where_the_output_is_finite() -> None:
    scorer = pickle.loads(pickle.dumps(make_scorer(mine=one)))
    assert scorer.score(ROW).own == {"mine": 1.0}
    with torch.no_grad():
        scorer._supernet.layers["fc"].dense.bias[0] = math.nan
    broken = scorer.score(ROW)
    assert math.isnan(broken.loss)
    assert broken.own == {}


def test_a_training_in_parts_is_the_whole_one_and_keeps_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = make_scorer()
    (tmp_path / "whole").mkdir()
    whole = finetune(scorer, tmp_path / "whole")
    finetune(scorer, tmp_path, until=2)

    def elsewhere(*_: object) -> float:
        raise AssertionError("the damage is known")

    monkeypatch.setattr("epim_nas.supernet.scorer.measure_damage", elsewhere)
    finetune(scorer, tmp_path, until=4)
    assert finetune(scorer, tmp_path) == whole
    assert whole.steps in (0, 6)


@pytest.mark.parametrize(
    "other",
    [
        {"row": OTHER_BITS},
        {"seed": 1},
        {"config": replace(TRAINING, steps=7)},
        {"lr": 0.02},
    ],
    ids=["row", "seed", "steps", "rate"],
)
def test_the_state_of_another_training_is_not_gone_on_with(
    tmp_path: Path, other: dict[str, object]
) -> None:
    scorer = make_scorer()
    finetune(scorer, tmp_path, until=2)
    with pytest.raises(InputError, match=r"a\.state: belongs to another training.*Remove the file"):
        finetune(scorer, tmp_path, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [None, "half of", "[]", '{"damage": 1.0}'])
def test_without_what_was_measured_it_is_measured_again(
    tmp_path: Path, content: str | None
) -> None:
    scorer = make_scorer()
    first = finetune(scorer, tmp_path, until=2)
    start = start_file(tmp_path / "a.state")
    known = json.loads(start.read_text())
    if content is None:
        start.unlink()
    else:
        start.write_text(content)
    assert finetune(scorer, tmp_path).damage == first.damage
    assert json.loads(start.read_text()) == known
    # What is left of a training whose state is gone is nobody's.
    (tmp_path / "a.state").unlink()
    assert finetune(scorer, tmp_path, seed=1).before == first.before
