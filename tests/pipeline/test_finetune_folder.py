"""Whose a fine-tuning's folder is, and what a signal leaves in it."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import pytest

from epim_nas import InputError
from epim_nas.cli.app import run_command
from epim_nas.models.weights import read_state, save_weights
from epim_nas.stored import DIGESTS
from tests.pipeline import command
from tests.pipeline.finetuning import EPOCHS, SET, tune

BY_CROSSBAR = "quantization.granularity=crossbar"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("finetune.lr=0.5", '`finetune.lr`: stored "auto", asked 0.5'),
        ("seed=8", "`seed`: stored 3, asked 8"),
        ("precision=bfloat16", '`precision`: stored "float32", asked "bfloat16"'),
        ("search.batch_size=250", "`search.batch_size`: stored 500, asked 250"),
        ("search.calibration_images=50", "`search.calibration_images`: stored 64, asked 50"),
    ],
)
def test_a_folder_of_other_settings_is_refused(
    change: str, told: str, finished: Path, tuned: Path
) -> None:
    before = files_of(tuned)
    with pytest.raises(InputError) as caught:
        tune(finished, tuned, change)
    message = str(caught.value)
    assert message.startswith(f"--out: {tuned} holds a fine-tuning with other settings ({told})")
    assert "Give another --out, or remove the folder" in message
    assert files_of(tuned) == before


def test_a_folder_of_other_dense_weights_is_refused(
    finished: Path, tuned: Path, tmp_path: Path
) -> None:
    """As after a search that was repeated in the same folder."""
    again = shutil.copytree(finished, tmp_path / "run")
    weights = again / "checkpoints" / "baseline.safetensors"
    state = read_state(weights)
    save_weights(state, weights, metadata={"run": "another"}, stored=True)
    tune(again, tuned)  # the same weights in another file
    state["fc.bias"][0] += 0.1
    save_weights(state, weights, stored=True)
    shown = r"stored sha256 [0-9a-f]{12}\.\.\., asked sha256 [0-9a-f]{12}\.\.\."
    with pytest.raises(InputError, match=rf"other settings \(`dense_weights`: {shown}\)"):
        tune(again, tuned)


def test_the_chip_counts_where_its_crossbars_have_steps(
    finished: Path, tuned: Path, tmp_path: Path
) -> None:
    other = "hardware.chip=epim_256"
    assert tune(finished, tuned, other) == tune(finished, tuned)
    out = tmp_path / "out"
    tune(finished, out, BY_CROSSBAR)
    with pytest.raises(
        InputError, match=r"other settings \(`chip`: stored sha256 .*, asked sha256"
    ):
        tune(finished, out, BY_CROSSBAR, other)


def test_an_unfinished_training_is_not_continued_with_others(
    finished: Path, tuned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(tuned / "settings.json", out)
    (out / "start.json").write_text("{}")
    with pytest.raises(InputError, match=r"`precision`: stored"):
        tune(finished, out, "precision=bfloat16")


def test_a_folder_of_a_version_that_stored_less_is_refused(
    finished: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Which noted no digests either.
    old = shutil.copytree(tuned, tmp_path / "old", ignore=shutil.ignore_patterns(DIGESTS))
    settings = json.loads((old / "settings.json").read_text())
    for key in ("precision", "dense_weights", "chip", "search"):
        del settings[key]
    (old / "settings.json").write_text(json.dumps(settings))
    before = files_of(old)
    arguments = [
        "finetune", finished / "best.yaml", "--run", finished / "run.yaml", "--epochs", EPOCHS,
        "--out", old, *(part for key in SET for part in ("--set", key)),
    ]  # fmt: skip
    assert run_command([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (message,) = [line for line in captured.err.splitlines() if line.startswith("epim-nas: ")]
    assert message.startswith(f"epim-nas: --out: {old} holds a fine-tuning of an earlier version")
    for key in ("precision", "dense_weights", "chip", "search.batch_size"):
        assert f"`{key}`" in message
    assert "Give another --out" in message
    assert files_of(old) == before


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("settings.json", "[]", "Input should be an object"),
        ("settings.json", None, "no such file"),
        ("result.json", "{}", "schema: Field required"),
        ("result.json", "{", "Invalid JSON"),
        ("epitomes.safetensors", None, "is missing, though the fine-tuning is finished"),
    ],
)
def test_a_damaged_folder_is_said(
    file: str, content: str | None, told: str, finished: Path, tuned: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tuned, tmp_path / "out")
    if content is None:
        (out / file).unlink()
    else:
        (out / file).write_text(content)
    with pytest.raises(InputError, match=told) as caught:
        tune(finished, out)
    assert caught.value.field == str(out / file)


def test_a_damaged_start_is_said(finished: Path, tuned: Path, tmp_path: Path) -> None:
    out = shutil.copytree(tuned, tmp_path / "out")
    (out / "result.json").unlink()
    (out / "start.json").write_text("{}")
    (out / "start.safetensors").touch()
    with pytest.raises(InputError, match="before: Field required"):
        tune(finished, out)


@pytest.mark.parametrize(
    ("workers", "change", "told"),
    [
        (3, "name=tiny", "--workers: 3 cannot share batches of 50 images evenly"),
        (2, "executor.address=127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"),
        (1, "finetune.batch_size=100000", "finetune.batch_size: got 100000"),
        (1, "finetune.accumulation=51", "finetune.accumulation"),
    ],
)
def test_a_training_that_cannot_be_had_is_refused_before_anything_is_computed(
    workers: int, change: str, told: str, finished: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=told):
        tune(finished, tmp_path, change, workers=workers)
    assert set(files_of(tmp_path)) <= {"settings.json", ".lock"}


def interrupt(finished: Path, out: Path, file: str, kind: signal.Signals, *options: object) -> str:
    """Interrupt the command once a file of its folder is there; returns what it says."""
    process = command.start(
        "finetune", finished / "best.yaml", "--run", finished / "run.yaml", "--out", out,
        "--epochs", 1000, *(part for key in SET for part in ("--set", key)), *options,
    )  # fmt: skip
    command.wait_until(process, (out / file).exists)
    process.send_signal(kind)
    stdout, stderr = process.communicate(timeout=command.TIMEOUT_SECONDS)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    (message,) = re.findall(r"^epim-nas: (.*)$", stderr, re.MULTILINE)
    assert "saved" in message
    assert str(out) in message
    assert "Type the same command to go on" in message
    return message


@pytest.mark.parametrize(
    ("kind", "file"),
    [(signal.SIGTERM, ".lock"), (signal.SIGINT, "settings.json")],
    ids=["loading", "projection"],
)
def test_a_signal_before_the_training_ends_it_with_one_message(
    kind: signal.Signals, file: str, finished: Path, tmp_path: Path
) -> None:
    interrupt(finished, tmp_path / "out", file, kind)


@pytest.mark.parametrize(
    ("kind", "file"),
    [(signal.SIGTERM, "workers.json"), (signal.SIGINT, "training.state")],
    ids=["ray starts", "workers train"],
)
def test_a_signal_ends_several_workers_with_one_message(
    kind: signal.Signals, file: str, finished: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "out"
    interrupt(finished, out, file, kind, "--workers", 2)
    # What the same command goes on from.
    left = {path.name for path in out.iterdir()}
    assert {"settings.json", "start.json", "start.safetensors"} <= left
    assert ("training.state" in left) == (file == "training.state")
    assert "workers.json" not in left
