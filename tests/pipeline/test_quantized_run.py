"""A run whose file says how weights and inputs are quantized."""

from __future__ import annotations

import json
from pathlib import Path

from epim_nas.cli.app import run_command
from epim_nas.models.weights import read_state
from tests.pipeline.test_run import answer
from tests.pipeline.tiny import write_run


def test_options_hold_from_the_search_to_the_evaluation(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    run = write_run(
        tmp_path,
        quantization={
            "granularity": "crossbar",
            "weight_range": "max",
            "overlap_weights": [0.7, 0.3],
            "learned_weight_step": True,
            "activation_range": "percentile",
            "percentile": 99.0,
        },
        baseline={"steps": 10, "lr": 0.1},
        supernet={"steps": 2, "random": 1},
        search={"trials": 3, "seeds": 3, "calibration_images": 64, "validation_images": 100},
        finalists={"count": 1, "steps": 4, "lr": 0.01},
    )
    folder = tmp_path / "run"
    assert run_command(["search", str(run), "--out", str(folder)]) == 0, capsys.readouterr().err
    (result,) = folder.glob("finalists/trial-*.json")
    stored = json.loads(result.read_text())
    weights = result.with_suffix(".safetensors")
    steps = [key for key in read_state(weights) if key.endswith("weight_quantizer.step")]
    assert steps
    design = folder / "designs" / f"{result.stem}.yaml"
    config = folder / "run.yaml"
    given = ["evaluate", design, "--run", config, "--weights", weights]
    assert answer(capsys, *given)["accuracy"] == stored["test_accuracy"]
    # Under other options there are no steps to put them in.
    arguments = [*map(str, given), "--set", "quantization.learned_weight_step=false"]
    assert run_command(arguments) == 2
    assert "weight_quantizer.step" in capsys.readouterr().err
