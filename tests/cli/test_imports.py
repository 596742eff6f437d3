"""What an import costs, and the help of every command."""

from __future__ import annotations

import configparser
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import typer

import epim_nas.solver
from epim_nas.cli.app import app, run_command

SOLVER = Path(epim_nas.solver.__file__).parent
HEAVY = ("torch", "optuna", "ray", "matplotlib", "plotly", "torchvision", "timm", "tensorboard")
COMMANDS = sorted(command.name or "" for command in app.registered_commands)


@lru_cache(maxsize=32)
def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a statement loads in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_by("import epim_nas")
    assert "epim_nas" in loaded
    assert not loaded & {*HEAVY, "numpy", "scipy", "pydantic"}


def test_reading_a_run_loads_no_compiler() -> None:
    """PyTorch's takes a second, which every command would wait for."""
    code = "import sys, epim_nas.pipeline.results; print('torch._dynamo' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "module",
    [
        "epim_nas.export.datapath",
        "epim_nas.hardware",
        "epim_nas.network",
        "epim_nas.space",
        *(f"epim_nas.solver.{path.stem}" for path in sorted(SOLVER.glob("[a-z]*.py"))),
    ],
)
def test_parts_without_gradients_load_without_torch(module: str) -> None:
    assert not loaded_by(f"import {module}") & set(HEAVY)


def test_a_search_loads_ray_and_figures_only_where_they_are_used() -> None:
    loaded = loaded_by("import epim_nas.pipeline.driver")
    assert "torch" in loaded  # the check can see what is loaded
    assert not loaded & {"ray", "matplotlib", "plotly", "torchvision", "timm"}


def test_every_public_name_can_be_imported() -> None:
    loaded_by("import epim_nas\nfor name in epim_nas.__all__: getattr(epim_nas, name)")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([name, "--help"]) == 0
    captured = capsys.readouterr()
    # Once in the line of the usage, and at least once more in an example.
    assert captured.out.count(f"epim-nas {name}") >= 2
    assert captured.err == ""


def test_the_commands_are_those_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    shown = capsys.readouterr().out
    assert {"search", "pareto", "export", "finetune", "evaluate", "cost", "presets"} <= set(
        COMMANDS
    )
    for name in COMMANDS:
        assert name in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from epim_nas import __version__

    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"epim-nas {__version__}\n"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, typer.Abort])
def test_an_interrupt_is_not_a_success(
    stop: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import epim_nas.cli.catalogue

    def interrupted() -> None:
        raise stop

    monkeypatch.setattr(epim_nas.cli.catalogue, "catalogue", interrupted)
    assert run_command(["presets"]) == 130
    captured = capsys.readouterr()
    assert "interrupted" in captured.err
    assert captured.out == ""


def test_presets_json_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert run_command(["presets", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert {"run files", "search spaces", "chips", "networks", "data sets"} <= set(entries)
    assert "demo" in entries["run files"]
    assert "xbar_64" in entries["chips"]


def test_every_package_is_installed() -> None:
    """An editable install finds them all; a plain one only those that are listed."""
    root = Path(__file__).parents[2]
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    present = {
        str(path.parent.relative_to(root)).replace("/", ".")
        for path in (root / "epim_nas").rglob("__init__.py")
    }
    assert present <= listed
