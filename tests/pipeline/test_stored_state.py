"""What a run folder reads back is what was stored, or it is said."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from epim_nas import InputError
from epim_nas.cli.app import run_command
from epim_nas.pipeline.evaluate import evaluate_design
from epim_nas.pipeline.export import trained_model
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.results import front_dict, load_cost_model, load_result
from epim_nas.pipeline.reuse import take_over
from epim_nas.stored import DIGESTS, check_stored, digest_file
from tests.pipeline import command
from tests.pipeline.finetuning import tune

READ: dict[str, Callable[[Path], object]] = {
    "run.yaml": lambda folder: load_result(RunFolder(folder)),
    "space.json": lambda folder: load_result(RunFolder(folder)),
    "baseline.json": lambda folder: load_result(RunFolder(folder)),
    "budget.json": lambda folder: load_result(RunFolder(folder)),
    "supernet.json": lambda folder: load_result(RunFolder(folder)),
    "stages.json": lambda folder: load_result(RunFolder(folder)),
    "study.journal": lambda folder: load_result(RunFolder(folder)),
    "finalists/*.json": lambda folder: load_result(RunFolder(folder)),
    "network.yaml": lambda folder: load_cost_model(RunFolder(folder)),
    "chip.yaml": lambda folder: load_cost_model(RunFolder(folder)),
    "finalists/*.safetensors": lambda folder: [
        trained_model(folder, finalist.number)
        for finalist in load_result(RunFolder(folder)).finalists
    ],
    "checkpoints/baseline.safetensors": lambda folder: evaluate_design(
        folder / "best.yaml", str(folder / "run.yaml")
    ),
}
"""File of a run folder -> what reads it."""


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    shutil.copy(finished.with_name("tiny.yaml"), tmp_path)
    return tmp_path / "run"


def change(file: Path) -> None:
    """Change the last digit of a text for another, or a bit in the middle of other bytes."""
    content = bytearray(file.read_bytes())
    if file.name == "run.yaml":  # one that is allowed there
        content = content.replace(b"seed: 3", b"seed: 4")
    elif file.suffix in (".json", ".yaml", ".journal"):
        at = max(at for at, byte in enumerate(content) if byte in b"12345678")
        content[at] += 1
    else:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", READ)
def test_a_changed_digit_or_bit_is_refused_by_the_name_of_the_file(name: str, copied: Path) -> None:
    (file, *_) = sorted(copied.glob(name))
    assert digest_file(file).is_file()
    change(file)
    with pytest.raises(InputError, match="is damaged") as caught:
        READ[name](copied)
    assert caught.value.field == str(file)


def test_every_file_that_is_not_written_anew_has_a_digest(finished: Path, tuned: Path) -> None:
    written_anew = {"front.csv", "front.png", "report.html", "best.yaml", "log.txt", ".lock"}
    # Whose formats have digests of their own.
    own = {"inflight.jsonl", "tensorboard", "designs", "design.yaml"}
    for folder in (finished, tuned):
        files = [
            path
            for path in folder.rglob("*")
            if path.is_file()
            and DIGESTS not in path.parts
            and path.relative_to(folder).parts[0] not in written_anew | own
        ]
        assert len(files) >= 3
        assert [path for path in files if not digest_file(path).is_file()] == []
        for path in files:
            if path.name != "study.journal":
                check_stored(path)


def test_a_folder_without_digests_is_read_with_one_warning(
    finished: Path, copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in list(copied.rglob(DIGESTS)):
        shutil.rmtree(folder)
    with caplog.at_level(logging.WARNING):
        result = load_result(RunFolder(copied))
        load_cost_model(RunFolder(copied))
    assert front_dict(result) == front_dict(load_result(RunFolder(finished)))
    (record,) = caplog.records
    assert "without digests" in record.getMessage()


def test_damaged_caches_are_computed_again(
    finished: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caches = list(copied.glob("checkpoints/**/*.npz"))
    assert len(caches) >= 4
    for number, cache in enumerate(caches):
        change(cache) if number % 2 else cache.write_bytes(b"PK\x05\x06" + os.urandom(40))
    (copied / "inflight.jsonl").write_bytes(b"\xff\xfe\n")
    run = copied.with_name("tiny.yaml")
    assert run_command(["--quiet", "search", str(run), "--out", str(copied)]) == 0
    said = capsys.readouterr().err
    for cache in caches:
        assert f"{cache} cannot be read" in said.replace("\n", " ")
        check_stored(cache)
    assert "inflight.jsonl, line 1: damaged" in said
    assert command.outcome_of(copied) == command.outcome_of(finished)
    assert (copied / "front.csv").read_bytes() == (finished / "front.csv").read_bytes()


@pytest.mark.parametrize("name", ["baseline.safetensors", "supernet.state"])
def test_a_damaged_training_is_refused_by_its_own_name(
    name: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copied / "checkpoints" / name
    change(file)
    run = copied.with_name("tiny.yaml")
    assert run_command(["--quiet", "search", str(run), "--out", str(copied)]) == 2
    said = capsys.readouterr().err
    assert f"{file}: is damaged" in said
    assert "model.weights" not in said


def test_what_is_damaged_is_not_taken_over(
    finished: Path, copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(copied / "checkpoints" / "baseline.safetensors")
    config = RunFolder(finished).load_config().model_copy(update={"reuse": str(copied)})
    taken = take_over(config, RunFolder(tmp_path / "other"))
    assert any(name.startswith("sensitivity-") for name in taken)
    assert "baseline.safetensors" not in taken
    assert "baseline.safetensors: is damaged" in caplog.text
    for name in taken:
        check_stored(tmp_path / "other" / "checkpoints" / name)
        assert digest_file(tmp_path / "other" / "checkpoints" / name).is_file()


@pytest.mark.parametrize("name", ["settings.json", "result.json", "epitomes.safetensors"])
def test_a_changed_file_of_a_fine_tuning_is_refused(
    name: str, finished: Path, tuned: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tuned, tmp_path / "out")
    if name == "settings.json":
        settings = json.loads((out / name).read_text())
        (out / name).write_text(json.dumps(settings))  # another text of the same settings
    else:
        change(out / name)
    with pytest.raises(InputError, match="is damaged") as caught:
        tune(finished, out)
    assert caught.value.field == str(out / name)
