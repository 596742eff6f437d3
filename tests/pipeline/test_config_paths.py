"""Relative paths in a run file and in ``--set``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from epim_nas.errors import InputError
from epim_nas.pipeline.config import RunConfig, load_run_config
from tests.pipeline.tiny import tiny_net, write_run

PLACES = ("file", "here")
"""The folder of the run file, and the one in which the command is typed."""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both places with files and folders of the same names."""
    for place in PLACES:
        for folder in ("images", "other", "xbar_64", "narrow"):
            (tmp_path / place / folder).mkdir(parents=True)
        for file in ("w.safetensors", "chip.yaml", "space.yaml"):
            (tmp_path / place / file).touch()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


PATHS = {
    "model.weights": "w.safetensors",
    "data.root": "images",
    "hardware.chip": "chip.yaml",
    "space": "space.yaml",
    "reuse": "other",
}


def value(config: RunConfig, key: str) -> Any:
    group, _, last = key.rpartition(".")
    return getattr(getattr(config, group) if group else config, last)


@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("key", PATHS)
def test_paths_in_the_file_are_meant_from_there(base: Path, key: str, prefix: str) -> None:
    run = write_run(base / "file", **{key.replace(".", "__"): prefix + PATHS[key]})
    # As it is typed: the file's own path is relative too.
    config, _ = load_run_config("../file/tiny.yaml")
    assert value(config, key) == str(base / "file" / PATHS[key])
    (base / "file" / PATHS[key]).rename(base / "gone")
    config, _ = load_run_config(str(run))
    assert value(config, key) == str(base / "here" / PATHS[key])


@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("key", PATHS)
def test_paths_that_are_typed_are_meant_from_the_current_folder(
    base: Path, key: str, prefix: str
) -> None:
    run = write_run(base / "file")
    config, _ = load_run_config(str(run), [f"{key}={prefix}{PATHS[key]}"])
    assert value(config, key) == str(base / "here" / PATHS[key])


def test_a_group_that_is_typed(base: Path) -> None:
    run = write_run(base / "file", data={"name": "imagefolder", "root": "images"})
    given = ["data={name: imagefolder, root: images}", "model={name: resnet20, weights: ./w.pt}"]
    config, _ = load_run_config(str(run), given)
    assert config.data.root == str(base / "here" / "images")
    assert config.model.weights == str(base / "here" / "w.pt"), "though it does not exist"


def test_names_stay_names(base: Path) -> None:
    given = ["hardware.chip=xbar_64", "space=narrow", "model.weights=pretrained"]
    run = str(write_run(base / "file"))
    config, _ = load_run_config(run, given)
    assert (config.hardware.chip, config.space) == ("xbar_64", "narrow")
    assert config.model.weights == "pretrained"
    with pytest.raises(InputError, match=r"data\.root: `~x/y`: no user `x`"):
        load_run_config(run, ["data.root=~x/y"])


def test_what_is_downloaded_meanwhile_changes_no_path(base: Path) -> None:
    run = write_run(base / "file", data={"name": "fashion_mnist", "root": "downloads"})
    before, _ = load_run_config(str(run))
    (base / "here" / "downloads").mkdir()
    after, _ = load_run_config(str(run))
    assert before == after
    assert after.data.root == str(base / "here" / "downloads")


def test_a_stored_run_file_works_from_anywhere(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from epim_nas.cli.app import run_command
    from epim_nas.models.weights import save_weights

    (base / "file" / "w.safetensors").write_text("not these")
    save_weights(tiny_net(), base / "here" / "w.safetensors")
    run = write_run(base / "file", supernet__steps=0, search__trials=1, search__seeds=1)
    arguments = ["--set", "model.weights=w.safetensors", "--set", "finalists.count=0"]
    assert run_command(["search", str(run), "--out", "out", *arguments]) == 0
    stored = base / "here" / "out" / "run.yaml"
    written = yaml.safe_load(stored.read_text())["model"]["weights"]
    assert written == str(base / "here" / "w.safetensors")
    monkeypatch.chdir(base)
    design = next((base / "here" / "out" / "designs").glob("*.yaml"))
    capsys.readouterr()
    assert run_command(["evaluate", str(design), "--run", str(stored), "--json"]) == 0
