"""``epim-nas evaluate --simulate`` on a searched design and real images."""

from __future__ import annotations

from pathlib import Path

import pytest

from epim_nas.cli.app import run_command
from epim_nas.epitome.design import load_design
from epim_nas.hardware import CostModel, load_chip
from epim_nas.network.yaml_io import load_network
from epim_nas.report.figures import PNG_SIGNATURE
from tests.pipeline.test_run import answer


def test_accuracy_against_converters_and_variation(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = sorted((finished / "finalists").glob("*.safetensors"))[0]
    design = finished / "designs" / f"{weights.stem}.yaml"
    given = ["evaluate", design, "--run", finished / "run.yaml", "--weights", weights]
    given += ["--simulate", "--images", 100, "--out", tmp_path]
    result = answer(capsys, *given, "--adc-bits", "2,8", "--variation", "0,0.5")
    assert result["schema"] == "epim-nas/simulation@1"
    assert result["images"] == 100
    rows = {(row["adc_bits"], row["variation"]): row for row in result["rows"]}
    assert set(rows) == {(2, 0.0), (8, 0.0), (2, 0.5), (8, 0.5)}
    wide = rows[8, 0.0]
    assert wide["clipping_columns"] == 0
    assert wide["exact_layers"] == result["layers"] == 5
    assert wide["accuracy"] == result["torch_accuracy"]
    assert rows[2, 0.0]["clipping_columns"] > 0
    assert rows[2, 0.0]["exact_layers"] < 5
    accuracies = {key: row["accuracy"] for key, row in rows.items()}
    assert accuracies[2, 0.0] != accuracies[8, 0.0] != accuracies[8, 0.5]
    cost = CostModel(
        load_network(finished / "network.yaml"), load_chip(str(finished / "chip.yaml"))
    )
    layers = cost.evaluate(load_design(design)).layers
    for name in ("activations", "adc_conversions", "dac_conversions"):
        charged = sum(layer.counts.get(name, 0) for layer in layers)
        assert result["events"][name] == charged
    assert (tmp_path / "accuracy.png").read_bytes().startswith(PNG_SIGNATURE)
    assert Path(result["figure"]) == tmp_path / "accuracy.png"

    again = answer(capsys, *given, "--adc-bits", "8", "--variation", "0.5")
    assert again["rows"] == [rows[8, 0.5]]
    assert run_command([*map(str, given), "--adc-bits", "2,8", "--variation", "0,0.5"]) == 0
    printed = capsys.readouterr().out
    for accuracy in accuracies.values():
        assert f"{100 * accuracy:.2f}" in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--adc-bits", "six"), ("--adc-bits", "`six`")),
        (("--adc-bits", "0"), ("adc_bits", "1 to 16")),
        (("--variation", "-1"), ("variation", "0 or more")),
        (("--adc-range", "ful"), ("adc_range", "`full`?")),
        (("--drift", "0.1"), ("--drift", "3 numbers")),
        (("--stuck-on", "1.5"), ("stuck_on", "0 to 1")),
        (("--images", "0"), ("--images", "1 or more")),
    ],
)
def test_options_out_of_range(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, str],
    words: tuple[str, ...],
) -> None:
    given = ["evaluate", finished / "best.yaml", "--run", finished / "run.yaml", "--simulate"]
    assert run_command([*map(str, given), "--out", str(tmp_path / "new"), *options]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert not (tmp_path / "new").exists()


def test_options_of_the_simulator_need_it(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", finished / "best.yaml", "--run", finished / "run.yaml", "--seed", 1]
    assert run_command([*map(str, given)]) == 2
    message = capsys.readouterr().err
    assert "--seed" in message
    assert "--simulate" in message
