from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from epim_nas._version import __version__
from epim_nas.epitome.design import Choice, Design, load_design
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import EpimError, InputError
from epim_nas.export.design import export_design
from epim_nas.export.manifest import (
    WEIGHTS_KEY,
    design_digest,
    verify_manifest,
    write_manifest,
)
from epim_nas.export.weights import WEIGHTS, export_weights, load_weights, weights_digest
from epim_nas.network.spec import INPUT, LayerSpec, Network

NETWORK = Network(
    "tiny",
    (
        LayerSpec("a", "conv", (INPUT,), 16, 32, (8, 8), (8, 8), (3, 3), padding=(1, 1)),
        LayerSpec("p", "pooling", ("a",), 32, 32, (8, 8), (1, 1)),
        LayerSpec("fc", "fc", ("p",), 32, 10),
    ),
    (16, 8, 8),
)
DESIGN = Design(
    "tiny",
    {
        "a": Choice(EpitomeShape(16, 8, 4, 4), True, 3, 9, (16, 8)),
        "fc": Choice(weight_bits=None, activation_bits=9),
    },
    provenance={"trial": 7},
)


def cost() -> SimpleNamespace:
    def layer(name: str, crossbars: int) -> SimpleNamespace:
        return SimpleNamespace(
            name=name, crossbars=crossbars, rounds=crossbars * 5,
            sequential_latency_ns=0.1 + crossbars, energy_nj={"total": crossbars / 3},
        )  # fmt: skip

    return SimpleNamespace(layers=(layer("a", 4), layer("p", 0), layer("fc", 2)))


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_design_file_and_layers_table(tmp_path: Path) -> None:
    design_path, table_path = export_design(DESIGN, tmp_path / "new", NETWORK, cost())
    assert load_design(design_path) == DESIGN
    first, last = read_csv(table_path)
    assert first == {
        "name": "a", "type": "conv", "weight_shape": "32x16x3x3", "epitome_shape": "16x8x4x4",
        "rows": "128", "columns": "16", "patch": "16x8", "wrap": "true",
        "wrap_in": "false", "weight_bits": "3",
        "activation_bits": "9", "size_fraction": repr(16 * 8 * 16 / (32 * 16 * 9)),
        "rounds": "2", "crossbars": "4", "latency_ns": "4.1",
        "energy_nj": repr(4 / 3),
    }  # fmt: skip
    assert (last["name"], last["epitome_shape"], last["patch"]) == ("fc", "", "")
    assert (last["rows"], last["columns"], last["weight_bits"]) == ("32", "10", "")


def test_design_without_cost_leaves_cells_empty(tmp_path: Path) -> None:
    _, table_path = export_design(DESIGN, tmp_path, NETWORK)
    assert {row["crossbars"] + row["energy_nj"] for row in read_csv(table_path)} == {""}


def test_design_that_does_not_fit_writes_nothing(tmp_path: Path) -> None:
    wrong = Design("tiny", {"a": Choice(EpitomeShape(64, 8, 3, 3)), "fc": Choice()})
    with pytest.raises(InputError, match=r"layer a.*out_channels"):
        export_design(wrong, tmp_path, NETWORK)
    assert list(tmp_path.iterdir()) == []


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2).half())
    state = model.state_dict()
    state["transposed"] = state["2.weight"].t()
    state["shared"] = state["0.weight"]
    path = export_weights(state, tmp_path / "w.safetensors", {"design": "abc"})
    tensors, metadata = load_weights(path)
    assert metadata["design"] == "abc"
    assert metadata[WEIGHTS_KEY] == weights_digest(state) == weights_digest(tensors)
    assert set(tensors) == set(state)
    for name, tensor in state.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_weights_digest_tells_weights_apart_and_nothing_else() -> None:
    x, y = torch.arange(6.0).reshape(2, 3), torch.zeros(4)
    digest = weights_digest({"x": x, "y": y})
    apart = x.t().contiguous().t()  # the same tensor, another layout
    assert digest == weights_digest({"y": nn.Parameter(y), "x": apart})
    others = [
        {"x": x},
        {"x": x, "z": y},
        {"x": y, "y": x},
        {"x": x.reshape(3, 2), "y": y},
        {"x": x, "y": y.int()},  # the same bytes
        {"x": x, "y": -y},  # equal numbers
        {"x": x, "y": y, "z": torch.empty(0)},
        {"x": x, "y": y, "z": torch.tensor(True)},
    ]
    assert len({digest, *map(weights_digest, others)}) == 1 + len(others)


def test_export_does_not_change_the_model(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    export_weights({"p": parameter}, tmp_path / "w.safetensors")
    assert parameter.requires_grad
    assert torch.equal(parameter, torch.ones(2, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_diverged_weights_are_refused_and_the_old_file_stays(tmp_path: Path, bad: float) -> None:
    path = export_weights({"x": torch.ones(3)}, tmp_path / "w.safetensors")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"weights\.layer\.epitome.*NaN or infinity"):
        export_weights({"layer.epitome": torch.tensor([1.0, bad])}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tensors"):
        export_weights({}, tmp_path / "w.safetensors")


def test_a_disk_that_lies_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    real = safetensors.torch.save_file

    def lossy(state: dict[str, Any], *args: Any, **options: Any) -> None:
        real({name: tensor * 2 for name, tensor in state.items()}, *args, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", lossy)
    with pytest.raises(EpimError, match="read back differs"):
        export_weights({"x": torch.ones(3)}, tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_unreadable_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_weights(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_weights(tmp_path / "bad")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    export_design(DESIGN, tmp_path, NETWORK, cost())
    export_weights({"x": torch.ones(3)}, tmp_path / "sub" / WEIGHTS)
    (tmp_path / ".hidden").write_text("x")
    write_manifest(tmp_path, DESIGN, {"trial": 7})
    return tmp_path


def test_manifest_names_every_file(exported: Path) -> None:
    manifest = verify_manifest(exported)
    assert set(manifest.files) == {"design.yaml", "layers.csv", "sub/epitomes.safetensors"}
    assert (manifest.version, manifest.network, manifest.details) == (
        __version__, "tiny", {"trial": 7},
    )  # fmt: skip
    assert manifest.design_sha256 == design_digest(load_design(exported / "design.yaml"))
    before = (exported / "manifest.json").read_bytes()
    write_manifest(exported, DESIGN, {"trial": 7})
    assert (exported / "manifest.json").read_bytes() == before


def test_design_digest_tells_choices_apart_and_nothing_else() -> None:
    same = Design("tiny", dict(reversed(DESIGN.choices.items())), totals={"crossbars": 1})
    other = Design("tiny", {**DESIGN.choices, "fc": Choice(weight_bits=8, activation_bits=9)})
    assert design_digest(same) == design_digest(DESIGN) != design_digest(other)


def test_changed_and_missing_files_are_found(exported: Path) -> None:
    table = exported / "layers.csv"
    content = bytearray(table.read_bytes())
    content[-3] ^= 1
    table.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"files\.layers\.csv: the file has changed"):
        verify_manifest(exported)
    table.unlink()
    with pytest.raises(InputError, match=r"files\.layers\.csv: the file is missing"):
        verify_manifest(exported)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {"../secret": {"sha256": "0" * 64, "size_bytes": 1}}}, "outside the folder"),
        ({"files": {"/etc/hosts": {"sha256": "0" * 64, "size_bytes": 1}}}, "outside the folder"),
        ({"files": {"a": {"sha256": "xyz", "size_bytes": 1}}}, "64 hexadecimal digits"),
        ({"schema": "other"}, "schema"),
        ({"fils": {}}, r"unknown key.*Did you mean `files`"),
    ],
)
def test_bad_manifests(exported: Path, change: dict[str, Any], message: str) -> None:
    path = exported / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        verify_manifest(exported)


def test_manifest_that_is_no_json_or_absent(exported: Path) -> None:
    (exported / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON at line 1"):
        verify_manifest(exported)
    (exported / "manifest.json").unlink()
    with pytest.raises(InputError, match="no such file"):
        verify_manifest(exported)


def test_manifest_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no exported file"):
        write_manifest(tmp_path, DESIGN)
    with pytest.raises(InputError, match="no such folder"):
        write_manifest(tmp_path / "none", DESIGN)
