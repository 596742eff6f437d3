"""``epim-nas describe``: counts against the space itself, and what it never does."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epim_nas import CostModel, SearchSpace, load_chip, trace
from epim_nas.cli.app import run_command
from epim_nas.data.config import DataConfig
from epim_nas.data.geometry import DataGeometry, data_geometry
from epim_nas.data.registry import load_data
from epim_nas.files import dump_yaml
from epim_nas.schema import validate
from epim_nas.space import SpaceConfig
from tests.pipeline.tiny import tiny_net, tiny_run, write_run


def described(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert run_command(["describe", *map(str, arguments), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "epim-nas/space-description@1"
    return found


def test_resnet50_has_more_than_ten_to_the_sixty_designs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--space", "wide", "--model", "resnet50", "--hardware", "epim_256"]
    found = described(capsys, *arguments)
    assert found["log10_designs"]["offered"] > found["log10_designs"]["searched"] > 60
    assert found["crossbars"]["dense_32_bit"] == 13120
    assert len(found["layers"]) == found["decisions"] == 54
    assert run_command(["describe", *arguments]) == 0
    shown = capsys.readouterr().out
    power = math.floor(10 * found["log10_designs"]["searched"]) / 10
    assert f"designs      10^{power:.1f} (" in shown
    assert "layer4.2.conv3" in shown
    assert f"compression  {found['compression']['least']:.2f}x to" in shown


def test_a_run_is_counted_as_the_search_counts_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tiny_run()
    ties = [["left", "right"]]
    found = described(capsys, write_run(tmp_path, space={**run["space"], "ties": ties}))
    assert found["input_shape"] == [1, 14, 14]
    network = trace(tiny_net(), (1, 14, 14), "tests.pipeline.tiny:tiny_net")
    chip = load_chip("xbar_64")
    config = validate(SpaceConfig, {**run["space"], "ties": ties}, "space")
    offered = SearchSpace.build(config, network, chip)
    table = CostModel(network, chip).table(offered.layer_choices)
    names = ("crossbars", "sequential_latency_ns", "energy_nj", "area_um2")
    space = offered.without_dominated({name: table.by_layer(name) for name in names})
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers["left"]["tied_with"] == ["right"]
    assert layers["fc"]["tied_with"] == []
    for name, choices in offered.layer_choices.items():
        assert layers[name]["offered"] == len(choices)
        assert layers[name]["choices"] == len(space.layer_choices[name])
        assert layers[name]["weight_shape"] == list(network[name].weight_shape)
        assert layers[name]["fewest"] == table.layers[name].crossbars.min()
    # Smallest and largest design, by every design of a group.
    model = CostModel(network, chip)
    for index, key in ((0, "fewest"), (-1, "most")):
        row = [0 if index == 0 else len(group) - 1 for group in space.groups]
        assert found["crossbars"][key] == model.evaluate(space.design(row)).totals.crossbars
    assert 10 ** found["log10_designs"]["searched"] == pytest.approx(
        np.prod([len(group) for group in space.groups])
    )
    assert found["dropped_choices"] == sum(map(len, offered.groups)) - sum(map(len, space.groups))


def test_changes_apply_to_the_run_or_the_chip(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = write_run(tmp_path)
    plain = described(capsys, run)
    changed = described(capsys, run, "--set", "space.defaults.weight_bits=[2]")
    assert changed["log10_designs"]["offered"] < plain["log10_designs"]["offered"]
    packed = described(capsys, run, "--set", "hardware.set={mapping: {cell_bits: 4}}")
    assert packed["crossbars"]["dense_32_bit"] < plain["crossbars"]["dense_32_bit"]
    parts = ("--space", "narrow", "--model", "resnet20", "--hardware", "xbar_64")
    fewer = described(capsys, *parts, "--set", "mapping.cell_bits=4")
    assert fewer["crossbars"]["fewest"] <= described(capsys, *parts)["crossbars"]["fewest"]
    assert fewer["crossbars"]["dense_32_bit"] < 2310


def test_a_size_in_crossbars_is_resolved_on_the_chip(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    space = {
        "schema": "epim-nas/space@1",
        "name": "aligned",
        "defaults": {"epitome": {"in_channels": ["1 crossbar"]}, "weight_bits": [3]},
    }
    path = tmp_path / "aligned.yaml"
    path.write_text(dump_yaml(space))
    parts = ("--model", "resnet20", "--hardware", "xbar_64")
    found = {layer["name"]: layer for layer in described(capsys, "--space", path, *parts)["layers"]}
    # 64 // 9 = 7 channels: 64 output channels of 2 slices on one row of crossbars, 64 // 7 dense.
    assert found["layer3.2.conv2"]["fewest"] == 2
    assert found["layer3.2.conv2"]["most"] == 20


def test_it_neither_reads_images_nor_downloads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("images were read")

    monkeypatch.setattr("epim_nas.data.geometry.load_data", refused)
    monkeypatch.setattr("epim_nas.data.fashion_mnist.fashion_mnist_subset", refused)
    assert described(capsys, "demo")["network"] == "resnet20"
    run = "resnet20_cifar10"
    assert described(capsys, run)["input_shape"] == [3, 32, 32]
    # An image folder that nobody has named yet: the model's usual images.
    arguments = ["describe", run, "--set", "data.name=imagefolder", "--json"]
    assert run_command(arguments) == 0
    captured = capsys.readouterr()
    assert "data.root is not given" in captured.err
    assert json.loads(captured.out)["input_shape"] == [3, 32, 32]
    shape = ["--input-shape", "1,64,48", "--classes", "7"]
    found = described(capsys, run, "--set", "data.name=no.such:function", *shape)
    assert found["input_shape"] == [1, 64, 48]
    assert found["layers"][-1]["weight_shape"][0] == 7


@pytest.mark.skipif(find_spec("torchvision") is None, reason="needs the extra `vision`")
def test_trained_weights_are_not_downloaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("something was downloaded")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refused)
    # The preset names trained weights, and no folder of images.
    found = described(capsys, "epim_resnet50")
    assert found["log10_designs"]["searched"] > 60
    assert found["crossbars"]["dense_32_bit"] == 13120


@pytest.mark.parametrize("size", [(20, 20), (80, 80), (20, 12)])
@pytest.mark.parametrize("changes", [{}, {"image_size": 16}, {"args": {"mode": "L"}}])
def test_a_folder_has_the_geometry_that_loading_it_finds(
    size: tuple[int, int], changes: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("PIL")
    from PIL import Image

    for split in ("train", "val", "test"):
        for label in ("cat", "dog", "emu"):
            (tmp_path / split / label).mkdir(parents=True)
            colour = Image.new("RGB", size, (10, 200, 30))
            colour.save(tmp_path / split / label / "1.png")
    keys = {"name": "imagefolder", "root": str(tmp_path), "batch_size": 2, **changes}
    config = validate(DataConfig, keys, "data")
    data = load_data(config)
    assert data_geometry(config) == DataGeometry(data.input_shape, data.num_classes)
    assert data.num_classes == 3


def test_shipped_data_has_the_geometry_that_loading_it_finds() -> None:
    for keys in ({}, {"image_size": 14}):
        config = validate(DataConfig, {"name": "fashion_mnist_subset", **keys}, "data")
        data = load_data(config)
        assert data_geometry(config) == DataGeometry(data.input_shape, data.num_classes)


PARTS = ["--space", "narrow", "--model", "resnet20", "--hardware", "xbar_64"]
WRONG = {
    "nothing": ([], ("--space", "--hardware", "missing")),
    "no chip": (PARTS[:4], ("--hardware", "missing")),
    "no network": ([*PARTS[:2], *PARTS[4:]], ("--network", "--model", "neither")),
    "a run and a space": (["demo", *PARTS[:2]], ("--space", "run file has its own")),
    "an unknown run": (["demoo"], ("RUN", "demoo", "`demo`?")),
    "an unknown space": (["--space", "naroww", *PARTS[2:]], ("--space", "`narrow`?")),
    "an unknown chip": ([*PARTS[:5], "xbar64"], ("xbar64", "`xbar_64`?")),
    "a wrong key of a run": (["demo", "--set", "data.naem=x"], ("data.naem", "`name`?")),
    "no such root": (["demo", "--set", "data={name: imagefolder, root: /no}"], ("data.root",)),
    "an unknown data set": (["demo", "--set", "data.name=fashion"], ("data.name", "fashion")),
    "an input shape": ([*PARTS, "--input-shape", "3x3"], ("--input-shape", "3x3")),
    "no classes": (["demo", "--classes", "0"], ("--classes", "0")),
    "a pattern": (
        ["demo", "--set", "space={schema: epim-nas/space@1, name: s, ties: [[layer9*]]}"],
        ("ties.0", "layer9"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_message(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = WRONG[case]
    assert run_command(["describe", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    messages = [line for line in captured.err.splitlines() if line.startswith("epim-nas: ")]
    assert len(messages) == 1
    for word in words:
        assert word in messages[0]
