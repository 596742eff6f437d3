"""Export of a network's datapath: what the images hold, read back by loops, is the network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from epim_nas import Choice, Design, EpitomeShape, InputError, apply_design, load_chip, trace
from epim_nas.datapath.cells import SliceRule, program
from epim_nas.datapath.files import read_tables
from epim_nas.datapath.index import LayerInfo
from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.memory import read_memory
from epim_nas.datapath.stored import block_diagonal, stored_layers
from epim_nas.datapath.tables import NOTHING
from epim_nas.epitome.quantization import Quantization
from epim_nas.export.datapath import export_datapath, read_datapath
from epim_nas.files import file_digest
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.mapping import quantized_by_crossbar

PAIRS = load_chip("xbar_64")
SINGLE = load_chip("xbar_64", ["mapping.polarity=1", "mapping.cell_bits=2", "mapping.groups=2"])
SLICED = load_chip("xbar_64", ["mapping.packing=sliced", "mapping.cell_bits=2"])


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1, groups=2),
        nn.Conv2d(24, 32, 3, bias=False),
        nn.Conv2d(32, 32, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


NETWORK = trace(model(), (3, 8, 8), "small")
DESIGN = Design(
    "small",
    {
        "0": Choice(weight_bits=9, activation_bits=9),
        "2": Choice(weight_bits=4, activation_bits=8),  # kept dense, with groups
        "3": Choice(EpitomeShape(8, 16, 4, 4), True, 3, 8),
        "4": Choice(EpitomeShape(16, 16, 1, 1), False, 2, 8),
        "7": Choice(),  # in floating point
    },
)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    stored = stored_layers(NETWORK, DESIGN, apply_design(model(), DESIGN).state_dict())
    export_datapath(DESIGN, NETWORK, PAIRS, tmp_path, stored)
    return tmp_path


def integers(folder: Path, info: LayerInfo, shape: tuple[int, ...], chip: Chip) -> np.ndarray:
    """The weights that the cells of a layer's images add up to, cell by cell."""
    assert info.cells is not None
    cells, memory = info.cells, info.cells.memory
    outputs, inputs, height, width = shape
    own = chip.crossbar.rows // (height * width)
    per_group = -(-cells.slices // cells.groups)
    packed = chip.mapping.packing == "packed"
    blocks = -(-outputs * (per_group if packed else 1) // chip.crossbar.columns)
    found = np.full(shape, -cells.offset)
    used = np.zeros(shape, dtype=int)
    for tile in info.tiles:
        for place, pe in enumerate(tile.pes):
            for path in (folder / info.folder / tile.folder).glob(f"pe{place}.*.hex"):
                _, group, sign, _ = path.name.split(".")
                factor = -1 if sign == "negative" else 1
                for row, word in enumerate(read_memory(path, memory.width, memory.depth)):
                    local, cell = divmod(row, height * width)
                    channel = pe.row_group * own + local
                    for column in range(chip.crossbar.columns):
                        value = word >> (column * cells.cell_bits) & (2**cells.cell_bits - 1)
                        if packed:
                            at = pe.column_group * chip.crossbar.columns + column
                            output, part = divmod(at, per_group)
                        else:
                            part, block = divmod(pe.column_group, blocks)
                            output = block * chip.crossbar.columns + column
                        slice_ = int(group.removeprefix("group")) * per_group + part
                        if local >= own or channel >= inputs or output >= outputs:
                            assert value == 0
                            continue
                        place_ = (output, channel, *divmod(cell, width))
                        found[place_] += factor * value << (slice_ * cells.cell_bits)
                        used[place_] += 1
    assert (used == per_group * cells.groups * cells.polarity).all()
    return found


@pytest.mark.parametrize("chip", [PAIRS, SINGLE, SLICED], ids=["pairs", "single", "sliced"])
def test_images_add_up_to_the_quantized_weights(tmp_path: Path, chip: Chip) -> None:
    small = apply_design(model(), DESIGN)
    export_datapath(
        DESIGN, NETWORK, chip, tmp_path, stored_layers(NETWORK, DESIGN, small.state_dict())
    )
    index, layers = read_datapath(tmp_path, DESIGN)
    assert index.hardware == {"name": chip.name, "digest": chip.digest}
    by_name = {info.name: info for info in index.layers}
    assert list(by_name) == list(layers) == ["0", "2", "3", "4", "7"]
    assert by_name["7"].cells is None
    for name in ("0", "2", "3", "4"):
        info, module = by_name[name], small.get_submodule(name)
        found = integers(tmp_path, info, layers[name].epitome, chip)
        assert info.cells is not None
        scales = np.array(info.cells.scales).reshape(info.cells.scale_shape)
        expected = module.quantized_epitome.detach().numpy()
        if name == "2":
            expected = block_diagonal(expected, 2)
        assert found * scales == pytest.approx(expected, rel=1e-6)


def run_by_hand(layer: LayerTables, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """One position of inputs (C, Kh, Kw), round by round, as docs/datapath.md says."""
    tables, own = layer.tables, layer.grid.channels_per_row_group
    height, width = layer.epitome[2:]
    outputs = np.zeros(layer.conv_shape[0])
    for turn in range(tables.rounds):
        for place, first in enumerate(tables.ifrt[turn]):
            if first == NOTHING:
                continue
            group, line = divmod(int(first), layer.crossbar_rows)
            local, cell = divmod(line, height * width)
            top, left = divmod(cell, width)
            driven = sum(x[channel] for channel in tables.ifat[turn, :, place] if channel >= 0)
            rows, columns = (
                slice(start, start + size)
                for start, size in zip((top, left), layer.conv_shape[2:], strict=True)
            )
            for result, channel in enumerate(tables.columns[turn]):
                if channel != NOTHING:
                    patch = weights[channel, group * own + local, rows, columns]
                    for target in tables.ofat[turn, :, result]:
                        if target != NOTHING:
                            outputs[target] += (driven * patch).sum()
    return outputs


@pytest.mark.parametrize("chip", [PAIRS, SINGLE, SLICED], ids=["pairs", "single", "sliced"])
@pytest.mark.parametrize("wrap", [True, False])
def test_aligned_layers_with_a_scale_a_crossbar(tmp_path: Path, chip: Chip, wrap: bool) -> None:
    choices = {**DESIGN.choices, "3": Choice(EpitomeShape(8, 16, 4, 4), wrap, 3, 8)}
    design = Design("small", choices)
    rule = quantized_by_crossbar(Quantization(), chip)
    small = apply_design(model(), design, quantization=rule, align=True)
    assert small.get_submodule("3").plan.in_order is not None
    assert small.get_submodule("4").plan.out_order is not None
    stored = stored_layers(NETWORK, design, small.state_dict(), rule)
    export_datapath(design, NETWORK, chip, tmp_path, stored)
    index, layers = read_datapath(tmp_path, design)
    for info in index.layers[:-1]:
        layer, module = layers[info.name], small.get_submodule(info.name)
        found = integers(tmp_path, info, layer.epitome, chip)
        assert info.cells is not None
        weights = found * np.array(info.cells.scales).reshape(info.cells.scale_shape)
        plan = module.plan
        x = torch.rand(1, plan.groups * plan.conv_shape[1], *plan.conv_shape[2:])
        expected = F.conv2d(x, module.weight.detach(), groups=plan.groups).flatten()
        assert run_by_hand(layer, weights, x[0].numpy()) == pytest.approx(
            expected.numpy(), rel=1e-4, abs=1e-5
        )


def test_a_grouped_convolution_as_an_epitome_stores_its_blocks_only(tmp_path: Path) -> None:
    whole = Choice(EpitomeShape(24, 8, 3, 3), False, 4, 8)
    design = Design("small", {**DESIGN.choices, "2": whole})
    small = apply_design(model(), design)
    stored = stored_layers(NETWORK, design, small.state_dict())
    export_datapath(design, NETWORK, PAIRS, tmp_path, stored)
    index, layers = read_datapath(tmp_path, design)
    assert layers["2"].groups == 2
    found = integers(tmp_path, index.layers[1], (24, 8, 3, 3), PAIRS)
    assert np.array_equal(found, stored["2"].weights)
    scaled = found * stored["2"].scales
    assert scaled == pytest.approx(small.get_submodule("2").weight.detach().numpy(), rel=1e-6)


def test_exported_tables_are_found_by_the_index(exported: Path) -> None:
    index, layers = read_datapath(exported)
    for info in index.layers:
        tables = read_tables(exported / info.folder / "tables.json")
        assert tables.equals(layers[info.name])
        assert tables.tables.rounds == info.rounds
        wired = layers[info.name].entry is None
        assert (info.bits.charged == 0) == wired == (info.memories == {})
        for name, memory in info.memories.items():
            for tile in info.tiles:
                path = exported / info.folder / tile.folder / f"{name}.hex"
                assert len(read_memory(path, memory.width, memory.depth)) == memory.depth
    # The wrapped layer: 8 outputs are computed, 24 copied.
    assert index.layers[2].replicas is not None
    assert index.layers[2].replicas.depth == 24


def test_exports_are_reproducible_and_replace_one_another(exported: Path, tmp_path: Path) -> None:
    def digests() -> dict[str, str]:
        return {str(p.relative_to(exported)): file_digest(p) for p in exported.rglob("*.*")
                if p.is_file()}  # fmt: skip

    before = digests()
    assert any("pe0" in name for name in before)
    export_datapath(DESIGN, NETWORK, PAIRS, exported)  # without weights
    assert not any("pe0" in name for name in digests())
    stored = stored_layers(NETWORK, DESIGN, apply_design(model(), DESIGN).state_dict())
    export_datapath(DESIGN, NETWORK, PAIRS, exported, stored)
    assert digests() == before


def test_tables_of_another_design_are_refused(exported: Path) -> None:
    other = Design("small", {**DESIGN.choices, "4": Choice(EpitomeShape(8, 16, 1, 1))})
    with pytest.raises(InputError, match=r"datapath\.json: design_sha256: got .*another design"):
        read_datapath(exported, other)


def test_damaged_images_are_named(exported: Path) -> None:
    (image,) = exported.glob("002-3/tile000/ifrt.hex")
    text = image.read_text()
    last = text[-2]
    image.write_text(text[:-2] + ("1" if last == "0" else "0") + "\n")
    with pytest.raises(InputError, match=r"ifrt\.hex: word 1: got .*Export the datapath again"):
        read_datapath(exported)
    image.unlink()
    with pytest.raises(InputError, match=r"ifrt\.hex: no such file"):
        read_datapath(exported)
    image.write_text(text)
    read_datapath(exported)
    (exported / "002-3" / "tables.bin").write_bytes(
        (exported / "003-4" / "tables.bin").read_bytes()
    )
    with pytest.raises(InputError, match=r"tables\.bin: differs from tables\.json"):
        read_datapath(exported)


def test_a_damaged_index_is_refused(exported: Path) -> None:
    path = exported / "datapath.json"
    content = json.loads(path.read_text())
    content["layers"][0]["cells"]["polarity"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"layers\.0\.cells\.polarity: got `3`"):
        read_datapath(exported)
    path.write_text("{")
    with pytest.raises(InputError, match="not valid JSON at line 1"):
        read_datapath(exported)


def test_a_dense_grouped_layer_has_one_step_on_a_crossbar() -> None:
    # Groups of 20 inputs, 7 of which fit on the rows of a crossbar: the second group begins in
    # the middle of one.
    grouped = nn.Sequential(nn.Conv2d(40, 8, 3, padding=1, groups=2))
    network, chip = trace(grouped, (40, 6, 6), "grouped"), load_chip("xbar_64")
    design = Design("grouped", {"0": Choice(weight_bits=4)})
    rule = quantized_by_crossbar(Quantization(), chip)
    made = apply_design(grouped, design, quantization=rule)
    (layer,) = stored_layers(network, design, made.state_dict(), rule).values()
    steps = np.broadcast_to(layer.scales, layer.weights.shape)
    for start in range(0, 40, 7):
        assert len(np.unique(steps[:, start : start + 7])) == 1
    weight = made[0].weight.detach().numpy()
    np.testing.assert_allclose((layer.weights * steps)[:4, :20], weight[:4], rtol=1e-6)
    np.testing.assert_allclose((layer.weights * steps)[4:, 20:], weight[4:], rtol=1e-6)


def test_the_tables_follow_the_order_that_the_weights_were_aligned_to() -> None:
    aligned = apply_design(model(), DESIGN, align=True)
    stored = stored_layers(NETWORK, DESIGN, aligned.state_dict())
    for name in ("3", "4"):
        plan = aligned.get_submodule(name).plan
        assert plan.in_order is not None
        assert stored[name].plan == plan


def test_weights_that_are_not_the_design_s_are_refused() -> None:
    state = apply_design(model(), DESIGN).state_dict()
    with pytest.raises(InputError, match=r"3\.epitome: \(1, 16, 4, 4\) and not"):
        stored_layers(NETWORK, DESIGN, {**state, "3.epitome": state["3.epitome"][:1]})
    with pytest.raises(InputError, match=r"1 missing \(4\.epitome\)"):
        stored_layers(NETWORK, DESIGN, {k: v for k, v in state.items() if k != "4.epitome"})
    bad = state["3.epitome"].clone()
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"`3\.epitome` contains NaN"):
        stored_layers(NETWORK, DESIGN, {**state, "3.epitome": bad})


def test_integers_that_do_not_fit_are_refused() -> None:
    layer = LayerTables.of(NETWORK.weighted[2], DESIGN["3"], PAIRS)
    rule = SliceRule.of(3, PAIRS)
    right = np.ones(layer.epitome, dtype=int)
    with pytest.raises(InputError, match=r"layer c: weights: got 4. Allowed: -3 to 3 with 3 bits"):
        program(right * -4, layer.grid, 64, rule, "c")
    with pytest.raises(InputError, match=r"are float64. Allowed: integers"):
        program(right / 2, layer.grid, 64, rule, "c")
    with pytest.raises(InputError, match=r"have shape \(9, 16, 4, 4\)"):
        program(np.ones((9, 16, 4, 4), dtype=int), layer.grid, 64, rule, "c")
    with pytest.raises(InputError, match=r"take 8 slices at 9 bits"):
        program(right, layer.grid, 64, SliceRule.of(9, PAIRS), "c")


NAMES = ["/tmp/outside", "../../outside", "..", "a/b", "a_b", "a b", "x\n@0\nff", "n" * 3000, ""]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    layers = tuple(
        replace(layer, name=name) if layer.name == "3" else layer for layer in NETWORK.layers
    )
    layers = tuple(
        replace(layer, inputs=tuple(name if used == "3" else used for used in layer.inputs))
        for layer in layers
    )
    network = replace(NETWORK, layers=layers)
    choices = {name if layer == "3" else layer: c for layer, c in DESIGN.choices.items()}
    folder = tmp_path / "deep" / "out"
    files = export_datapath(Design("small", choices), network, PAIRS, folder)
    assert all(path.resolve().is_relative_to(folder) for path in files)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    assert len([path for path in folder.iterdir() if path.is_dir()]) == len(network.weighted)
    _, read = read_datapath(folder)
    assert name in read
