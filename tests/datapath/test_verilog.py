"""The images in a Verilog simulator: the test bench of the examples, where Icarus is installed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from epim_nas import Choice, EpitomeShape

FOLDER = Path(__file__).parents[2] / "examples" / "verilog"

pytestmark = pytest.mark.skipif(
    shutil.which("iverilog") is None, reason="Icarus Verilog is not installed"
)


def export_layer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("export_layer", FOLDER / "export_layer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def simulate(folder: Path) -> str:
    command = ["iverilog", "-g2012", "-Wall", "-I", folder, "-o", folder / "tb"]
    built = subprocess.run(
        [*command, FOLDER / "tb_layer.v"], capture_output=True, text=True, check=True, timeout=120
    )
    assert "warning" not in built.stderr
    return subprocess.run(
        ["vvp", folder / "tb"], capture_output=True, text=True, check=True, timeout=120
    ).stdout


@pytest.mark.parametrize(
    ("choice", "overrides"),
    [
        (Choice(EpitomeShape(16, 16, 3, 3), False, 3, 9), []),
        # Several tiles, the last with one crossbar; copies.
        (Choice(EpitomeShape(16, 32, 3, 3), True, 3, 9), ["tile.pes=[1, 3]"]),
        # Summed inputs, two bits a cell, a grown kernel.
        (Choice(EpitomeShape(32, 8, 4, 4), False, 5, 9, (8, 8), True), ["mapping.cell_bits=2"]),
        # Eight rounds in two slots.
        (Choice(EpitomeShape(32, 16, 3, 3), False, 9, 9, (8, 16)), ["tile.pes=[2, 1]"]),
    ],
)
def test_the_test_bench_passes(tmp_path: Path, choice: Choice, overrides: list[str]) -> None:
    export_layer().main(tmp_path, choice, overrides)
    assert "PASS: 32 outputs" in simulate(tmp_path)


def test_the_test_bench_can_fail(tmp_path: Path) -> None:
    export_layer().main(tmp_path)
    image = next(tmp_path.glob("*/tile000/ifrt.hex"))
    head, first = image.read_text().rsplit("// from", 1)
    lines = first.splitlines()
    lines[1], lines[2] = lines[2], lines[1]  # the word lines of two rounds
    image.write_text(head + "// from" + "\n".join(lines) + "\n")
    assert "FAIL: " in simulate(tmp_path)
