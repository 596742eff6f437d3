"""A network of one's own with grouped, dilated, oblong and even kernels, from trace to export."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from epim_nas import (
    Choice,
    CostModel,
    Design,
    EpitomeShape,
    Network,
    SearchSpace,
    apply_design,
    load_design,
    trace,
)
from epim_nas.hardware import load_chip
from epim_nas.space import load_space_config
from tests.pipeline.command import ROOT, run, run_json

RUNS = ROOT / "benchmarks" / "generality"
INPUT = (1, 45, 37)


@pytest.fixture(scope="module")
def odd() -> ModuleType:
    sys.path.insert(0, str(RUNS))
    try:
        import odd
    finally:
        sys.path.remove(str(RUNS))
    return odd


@pytest.fixture(scope="module")
def network(odd: ModuleType) -> Network:
    return trace(odd.network(1, 10), INPUT, "odd")


def test_layers_are_what_the_module_says(network: Network) -> None:
    found = {
        layer.name: (layer.weight_shape, layer.groups, layer.dilation, layer.output_size)
        for layer in network.weighted
    }
    assert found == {
        "stem.0": ((23, 1, 5, 3), 1, (1, 1), (23, 19)),
        "depthwise.0": ((23, 1, 5, 5), 23, (1, 1), (23, 19)),
        "expand.0": ((37, 23, 1, 1), 1, (1, 1), (23, 19)),
        "across.0": ((37, 37, 1, 5), 1, (1, 1), (23, 19)),
        "down.0": ((37, 37, 3, 1), 1, (1, 1), (23, 19)),
        "dilated.0": ((37, 1, 3, 3), 37, (2, 2), (23, 19)),
        "grouped.0": ((75, 4, 3, 3), 15, (1, 1), (12, 10)),
        "mix.0": ((73, 75, 1, 1), 1, (1, 1), (12, 10)),
        "even": ((73, 73, 4, 2), 1, (1, 1), (5, 9)),
        "head": ((10, 73, 1, 1), 1, (1, 1), (1, 1)),
    }
    assert [layer.type for layer in network].count("element_sum") == 2
    # The concatenation of the stem and the second sum.
    assert network["grouped.0"].inputs == ("stem.0", "add_1")


def test_every_choice_of_every_layer_has_a_cost_and_fits(odd: ModuleType, network: Network) -> None:
    chip = load_chip("xbar_64")
    space = SearchSpace.build(load_space_config("narrow"), network, chip)
    model = CostModel(network, chip)
    choices = space.layer_choices
    for layer in network.weighted:
        whole = EpitomeShape.dense(layer.weight_shape)
        assert (layer.groups > 1) == any(choice.shape == whole for choice in choices[layer.name])
    most = max(map(len, choices.values()))
    dense, images = odd.network(1, 10).eval(), torch.randn(2, *INPUT)
    for index in range(0, most, 15):
        row = {name: found[index % len(found)] for name, found in choices.items()}
        totals = model.evaluate(Design("odd", row)).totals
        assert all(math.isfinite(value) and value > 0 for value in vars(totals).values())
        assert 0 < totals.utilization <= 1
        assert apply_design(dense, Design("odd", row)).eval()(images).isfinite().all()


def test_a_design_of_dense_layers_is_the_network(odd: ModuleType, network: Network) -> None:
    torch.manual_seed(0)
    model, images = odd.network(1, 10).eval(), torch.randn(3, *INPUT)
    dense = {layer.name: Choice() for layer in network.weighted}
    assert torch.equal(apply_design(model, Design("odd", dense))(images), model(images))
    # Stored without zeros, what a grouped layer computes stays the same; so do 24 bits.
    stored = {
        layer.name: Choice(
            EpitomeShape.dense(layer.weight_shape) if layer.groups > 1 else None, weight_bits=24
        )
        for layer in network.weighted
    }
    torch.testing.assert_close(apply_design(model, Design("odd", stored))(images), model(images))


@pytest.fixture
def generality(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, on a folder with one run file, and commands that only print their names."""
    spec = importlib.util.spec_from_file_location("generality", RUNS.with_suffix(".py"))
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "generality", module)  # for its dataclass
    spec.loader.exec_module(module)
    module.typed = []

    def typed(step: str, *_: object) -> str:
        module.typed.append(step)
        if step == "evaluate" and module.fails:
            raise SystemExit("ended with 1")
        return f"{step} printed"

    module.fails = False
    monkeypatch.setattr(module, "_run", typed)
    monkeypatch.setattr(module, "RUNS", tmp_path)
    (tmp_path / "one.yaml").write_text("first")
    return module


def test_what_is_done_is_not_done_again_until_the_run_file_is_edited(
    generality: ModuleType, tmp_path: Path
) -> None:
    all_of_them = ["search", "export", "verify", "evaluate"]
    out = tmp_path / "out"
    out.mkdir()

    def call() -> list[str]:
        generality.typed.clear()
        generality.Study("one", out).run()
        return list(generality.typed)

    generality.fails = True
    with pytest.raises(SystemExit):
        call()
    generality.fails = False
    assert call() == ["evaluate"], "goes on where it ended"
    assert generality.Study("one", out).done()["verify"] == "verify printed"
    assert call() == []
    folder = generality.Study("one", out).folder.path
    folder.mkdir()
    (tmp_path / "one.yaml").write_text("second")
    assert generality.Study("one", out).done() == {}
    assert call() == all_of_them
    assert not folder.exists(), "another run's"
    (tmp_path / "one.py").write_text("the network")
    assert call() == all_of_them
    folder.mkdir()
    for damaged in ("", "{", "[]", '{"search": {"seconds": 1}}', '{"run": "x"}'):
        (out / "one.json").write_text(damaged)
        assert call() == all_of_them
        assert call() == []
    assert folder.exists(), "may be of the same run: the search looks"


def test_search_export_verify(tmp_path: Path) -> None:
    """The three commands, in the folder of the run file, which holds the module."""
    smaller = [
        "data.args.every=8", "baseline.steps=8", "supernet.steps=2",
        "sensitivity.images=16", "sensitivity.batch_size=16", "search.trials=4", "search.seeds=3",
        "search.calibration_images=32", "search.validation_images=64", "finalists.steps=2",
        "projection.outputs=64",
    ]  # fmt: skip
    changes = [part for change in smaller for part in ("--set", change)]
    out, export = tmp_path / "run", tmp_path / "export"
    done = run("search", "odd.yaml", "--out", out, *changes, cwd=RUNS)
    assert done.returncode == 0, done.stderr
    done = run("export", out, "--select", "knee", "--to", "all", "--out", export, cwd=RUNS)
    assert done.returncode == 0, done.stderr
    assert "W left out: network odd:network: even.stride: got [2, 1]" in done.stderr  # of MNSIM
    assert {path.name for path in export.iterdir()} == {
        "design.yaml", "layers.csv", "epitomes.safetensors", "network.onnx",
        "network_epitomes.onnx", "datapath", "manifest.json",
    }  # fmt: skip
    checks = run_json("verify", export)["checks"]
    assert checks["datapath"] == "tables and memory images of 10 layers agree"
    budget = json.loads((out / "budget.json").read_text())["crossbars"]
    assert load_design(export / "design.yaml").totals["crossbars"] <= budget
