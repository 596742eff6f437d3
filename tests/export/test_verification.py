"""`epim-nas verify`: an untouched export passes, and every kind of damage is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from epim_nas import InputError, apply_design, load_chip
from epim_nas.datapath.stored import stored_layers
from epim_nas.epitome.design import Choice, Design, load_design
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.export.datapath import export_datapath
from epim_nas.export.design import export_design
from epim_nas.export.manifest import (
    DESIGN_KEY,
    MANIFEST_FILE,
    WEIGHTS_KEY,
    check_same_design,
    design_digest,
    write_manifest,
)
from epim_nas.export.mnsim import MNSIM_FILE, export_mnsim
from epim_nas.export.verification import DATAPATH, verify_export
from epim_nas.export.weights import WEIGHTS, export_weights, weights_digest
from tests.export.test_export import NETWORK

DESIGN = Design(
    "tiny",
    {
        "a": Choice(EpitomeShape(16, 8, 4, 4), True, 3, 9),
        "fc": Choice(weight_bits=5, activation_bits=9),
    },
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    export_design(DESIGN, folder, NETWORK)
    tensors = {"a.epitome": torch.randn(16, 8, 4, 4), "fc.weight": torch.randn(10, 32)}
    export_weights(tensors, folder / WEIGHTS)
    export_datapath(DESIGN, NETWORK, load_chip("xbar_64"), folder / DATAPATH)
    write_manifest(folder, DESIGN)
    return folder


@pytest.fixture
def export(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "export")


def test_an_untouched_export_passes(export: Path) -> None:
    manifest, checks = verify_export(export)
    assert manifest.network == "tiny"
    assert [check.part for check in checks] == ["digests", "design", "weights", "datapath"]


def truncate(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])


def other_design(folder: Path) -> None:
    design = load_design(folder / "design.yaml")
    choices = {**design.choices, "fc": Choice(weight_bits=4, activation_bits=9)}
    Design("tiny", choices).save(folder / "design.yaml")
    rewrite(folder)


def other_shape(folder: Path) -> None:
    export_weights({"a.epitome": torch.randn(16, 4, 4, 4)}, folder / WEIGHTS)
    rewrite(folder)


def other_tables(folder: Path) -> None:
    table = next((folder / DATAPATH).glob("000-a/tables.json"))
    other = next((folder / DATAPATH).glob("001-fc/tables.json"))
    shutil.copy(other, table)
    rewrite(folder)


def rewrite(folder: Path) -> None:
    """A manifest of the changed files that still claims the old design."""
    write_manifest(folder, DESIGN)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "layers.csv").unlink(), "files.layers.csv"),
        (truncate, f"files.{WEIGHTS}"),
        (lambda folder: (folder / MANIFEST_FILE).write_text("{"), MANIFEST_FILE),
        (other_design, "design.yaml"),
        (other_shape, "a.epitome"),
        (other_tables, "differs from"),
    ],
    ids=["missing", "changed", "manifest", "design", "weights", "datapath"],
)
def test_damage_is_named(export: Path, damage: Callable[[Path], object], named: str) -> None:
    damage(export)
    with pytest.raises(InputError) as caught:
        verify_export(export)
    assert named in str(caught.value)
    assert json.dumps(str(caught.value))


def test_parts_of_two_designs_are_not_one_export(export: Path, tmp_path: Path) -> None:
    """Leftovers of another design get fresh digests in a new manifest: designs are compared."""
    other = Design("tiny", {**DESIGN.choices, "fc": Choice(weight_bits=3, activation_bits=9)})
    with pytest.raises(InputError, match=r"--out.*another design"):
        check_same_design(export, other, "--out")
    check_same_design(export, DESIGN, "--out")
    check_same_design(tmp_path / "new", other, "--out")
    (export / "design.yaml").unlink()
    (export / WEIGHTS).unlink()
    write_manifest(export, other)
    with pytest.raises(InputError, match=r"datapath\.json.*another design"):
        verify_export(export)


def test_networks_for_other_tools_keep_their_design(tmp_path: Path) -> None:
    chip = load_chip("mnsim_default")
    export_mnsim(DESIGN, NETWORK, chip, tmp_path / MNSIM_FILE)
    write_manifest(tmp_path, DESIGN)
    assert [check.part for check in verify_export(tmp_path)[1]] == ["digests", MNSIM_FILE]
    other = Design("tiny", {**DESIGN.choices, "fc": Choice(weight_bits=3, activation_bits=9)})
    write_manifest(tmp_path, other)
    with pytest.raises(InputError, match=rf"{MNSIM_FILE}.*another design"):
        verify_export(tmp_path)


def test_onnx_files_keep_their_design(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from epim_nas.export.onnx import export_onnx

    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.ReLU())
    digest = design_digest(DESIGN)
    for kept in ({DESIGN_KEY: digest}, {DESIGN_KEY: "0" * 64}, {}):
        path = tmp_path / "network.onnx"
        export_onnx(model, (2, 4, 4), path, form="expanded", metadata=kept)
        write_manifest(tmp_path, DESIGN)
        if kept.get(DESIGN_KEY) == digest:
            assert len(verify_export(tmp_path)[1]) == 2
        else:
            with pytest.raises(InputError, match=r"network\.onnx.*another design"):
                verify_export(tmp_path)


def trained(seed: int) -> dict[str, Tensor]:
    """The weights of one training of the design."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({"a": nn.Conv2d(16, 32, 3, padding=1), "fc": nn.Linear(32, 10)})
    return apply_design(model, DESIGN).state_dict()


def write_weights(folder: Path, state: dict[str, Tensor]) -> None:
    export_weights(state, folder / WEIGHTS)


def write_datapath(folder: Path, state: dict[str, Tensor]) -> None:
    stored = stored_layers(NETWORK, DESIGN, state)
    chip, digest = load_chip("xbar_64"), weights_digest(state)
    export_datapath(DESIGN, NETWORK, chip, folder / DATAPATH, stored, digest)


def write_onnx(folder: Path, state: dict[str, Tensor]) -> None:
    pytest.importorskip("onnx")
    from epim_nas.export.onnx import export_onnx

    kept = {DESIGN_KEY: design_digest(DESIGN), WEIGHTS_KEY: weights_digest(state)}
    # Any network: a verification does not run the file.
    export_onnx(nn.Conv2d(2, 3, 1), (2, 4, 4), folder / ONNX, form="expanded", metadata=kept)


ONNX, INDEX = "network.onnx", f"{DATAPATH}/datapath.json"
WRITERS = {WEIGHTS: write_weights, INDEX: write_datapath, ONNX: write_onnx}


@pytest.mark.parametrize(
    ("older", "newer"),
    [(INDEX, WEIGHTS), (ONNX, WEIGHTS), (WEIGHTS, INDEX), (ONNX, INDEX), (INDEX, ONNX)],
)
def test_parts_of_two_trainings_are_not_one_export(tmp_path: Path, older: str, newer: str) -> None:
    export_design(DESIGN, tmp_path, NETWORK)
    for name in (older, newer):
        WRITERS[name](tmp_path, trained(0))
    rewrite(tmp_path)
    verify_export(tmp_path)
    WRITERS[newer](tmp_path, trained(1))
    rewrite(tmp_path)
    with pytest.raises(InputError) as caught:
        verify_export(tmp_path)
    message = str(caught.value)
    assert "is of other weights" in message
    assert str(tmp_path / older) in message
    assert str(tmp_path / newer) in message
    assert "into an empty folder" in message


def test_tables_without_cells_are_those_of_any_weights(tmp_path: Path) -> None:
    write_weights(tmp_path, trained(0))
    chip, digest = load_chip("xbar_64"), weights_digest(trained(1))
    export_datapath(DESIGN, NETWORK, chip, tmp_path / DATAPATH, weights_sha256=digest)
    rewrite(tmp_path)
    verify_export(tmp_path)


def test_older_exports_that_do_not_name_their_weights_pass(tmp_path: Path) -> None:
    write_weights(tmp_path, trained(0))
    write_datapath(tmp_path, trained(1))
    content = json.loads((tmp_path / INDEX).read_text())
    del content["weights_sha256"]
    (tmp_path / INDEX).write_text(json.dumps(content))
    rewrite(tmp_path)
    parts = [check.part for check in verify_export(tmp_path)[1]]
    assert parts == ["digests", "weights", "datapath"]
