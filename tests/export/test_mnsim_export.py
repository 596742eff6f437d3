"""The description for MNSIM 2.0, against the simulator's records, its formulas, and torch."""

from __future__ import annotations

import ast
import importlib.util
import itertools
from dataclasses import replace
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from epim_nas.epitome.design import Choice, Design
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError
from epim_nas.export.mnsim import MNSIM_FILE, describe_mnsim, export_mnsim
from epim_nas.hardware import CostModel, load_chip
from epim_nas.hardware.chip import Chip
from epim_nas.models.registry import build_model
from epim_nas.network.spec import INPUT, LayerSpec, Network
from epim_nas.network.trace import trace
from tests.hardware.nets import chain, conv, residual
from tests.hardware.reference import ini_text, load_cases, network_of, whole_ini

CHIP = load_chip("mnsim_default")


def read(path: Path) -> SimpleNamespace:
    """The file's assignments, as the literals that they are."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {}
    for node in tree.body:
        assert isinstance(node, ast.Assign)
        assert isinstance(node.targets[0], ast.Name)
        found[node.targets[0].id] = ast.literal_eval(node.value)
    return SimpleNamespace(**found)


def layers_of(found: SimpleNamespace) -> list[dict[str, Any]]:
    """The dictionaries that MNSIM's hardware models read: the first of the first."""
    return [tiles[0][0] for tiles in found.NetStruct]


def exported(
    folder: Path, network: Network, design: Design | None = None, chip: Chip = CHIP
) -> SimpleNamespace:
    design = design or Design.uniform(network, 9, 9)
    return read(export_mnsim(design, network, chip, folder / MNSIM_FILE))


def mapping(entry: dict[str, Any], chip: Chip) -> dict[str, int]:
    """MNSIM's mapping of a layer (reference, section 1), from its dictionary and the chip alone."""
    rows, columns = chip.crossbar.rows, chip.crossbar.columns
    bits = entry["Weightbit"] - (1 if chip.mapping.polarity == 2 else 0)
    if entry["type"] == "pooling":
        return {"PEs": 0, "tiles": 1, "max_row": 0, "max_column": 0}
    if entry["type"] == "element_sum":
        return {"PEs": 0, "tiles": 0, "max_row": 0, "max_column": 0}
    if entry["type"] == "conv":
        area = entry["Kernelsize"] ** 2
        each, outputs = rows // area, entry["Outputchannel"]
        down = ceil(entry["Inputchannel"] / each)
        used = min(each, entry["Inputchannel"]) * area
    else:
        down, outputs = ceil(entry["Infeature"] / rows), entry["Outfeature"]
        used = min(entry["Infeature"], rows)
    pes = down * ceil(bits / chip.mapping.groups) * ceil(outputs / columns)
    tiles = ceil(pes / (chip.tile.pes[0] * chip.tile.pes[1]))
    return {"PEs": pes, "tiles": tiles, "max_row": used, "max_column": min(outputs, columns)}


def rebuilt(found: SimpleNamespace) -> tuple[Network, Design]:
    """Network and design from the dictionaries alone."""
    layers: list[LayerSpec] = []
    choices = {}
    for here, entry in enumerate(layers_of(found)):
        kind, name = entry["type"], f"l{here}"
        inputs = tuple(
            INPUT if here + back < 0 else f"l{here + back}" for back in entry["Inputindex"]
        )
        sources = [layers[here + back] for back in entry["Inputindex"] if here + back >= 0]
        if kind == "element_sum":
            like = next(source for source in sources if source.type != "element_sum")
            size, ins = like.output_size, like.out_channels
            layers.append(LayerSpec(name, kind, inputs, ins, ins, size, size))
        elif kind == "fc":
            layers.append(LayerSpec(name, kind, inputs, entry["Infeature"], entry["Outfeature"]))
        else:
            layers.append(
                LayerSpec(
                    name, kind, inputs, entry["Inputchannel"], entry["Outputchannel"],
                    tuple(entry["Inputsize"]), tuple(entry["Outputsize"]),
                    *((entry[key],) * 2 for key in ("Kernelsize", "Stride", "Padding")),
                )
            )  # fmt: skip
        if kind in ("conv", "fc"):
            choices[name] = Choice(
                weight_bits=entry["Weightbit"], activation_bits=entry["Inputbit"]
            )
    shape = (layers[0].in_channels, *layers[0].input_size)
    return Network("rebuilt", tuple(layers), shape), Design("rebuilt", choices)


def check_lookups(found: SimpleNamespace) -> None:
    """Run through the positions that MNSIM waits for (reference, section 4): all have to exist."""
    finished: list[int] = []
    entries = layers_of(found)
    for here, entry in enumerate(entries):
        kind, back = entry["type"], entry["Inputindex"]
        if kind == "fc":
            finished.append(entry["Outfeature"])
        else:
            like = entry
            if kind == "element_sum":
                assert len(back) > 1
                like = next(
                    entries[here + step]
                    for step in back
                    if entries[here + step]["type"] != "element_sum"
                )
                assert {"Kernelsize", "Outputchannel", "outputbit"} <= set(like)
            height, width = like["Outputsize"]
            finished.append(height * width)
        if here == 0 or kind == "fc":
            assert here or (kind, back) == ("conv", [-1])
            assert all(0 <= here + step < here for step in back) or here == 0
            continue
        for i, j in itertools.product(range(height), range(width)):
            if kind == "element_sum":
                position = i * width + j
            else:
                size, stride = entry["Inputsize"], entry["Stride"]
                if kind == "conv" and entry["Kernelsize"] == 1:
                    position = i * stride * size[1] + j * stride
                else:
                    first = max(entry["Kernelsize"] - entry["Padding"], 1)
                    row, column = (min(first + stride * n, s) - 1 for n, s in zip((i, j), size))  # noqa: B905
                    position = row * size[1] + column
            assert all(0 <= here + step < here for step in back)
            assert all(position < finished[here + step] for step in back)


def run_graph(
    found: SimpleNamespace, parameters: dict[int, Any] | None = None
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Run the lists as ``NetworkGraph`` is said to: inputs are relative, -1 the layer before.

    Args:
        found: the description.
        parameters: position in the list -> weight, or the batch normalisation's module.

    Returns:
        The output, and per layer that MNSIM models what can be told of it from the tensors.
    """
    torch.manual_seed(0)
    tensors = [torch.rand(found.input_params["input_shape"])]
    owner: list[int] = []  # the modelled layer that a tensor comes from, counted among these
    seen: list[dict[str, Any]] = []
    for here, (config, back) in enumerate(
        zip(found.layer_config_list, found.input_index_list, strict=True)
    ):
        assert config.get("input_index", [-1]) == back
        given = [tensors[here + 1 + step] for step in back]
        weight = (parameters or {}).get(here)
        kind, x = config["type"], given[0]
        if kind == "conv":
            shape = (config["out_channels"], config["in_channels"], *[config["kernel_size"]] * 2)
            groups = 1
            if config.get("depthwise") == "separable":
                shape, groups = (shape[0], 1, *shape[2:]), shape[0]
            weight = torch.zeros(shape) if weight is None else weight
            x = F.conv2d(x, weight, None, config["stride"], config["padding"], groups=groups)
        elif kind == "fc":
            shape = (config["out_features"], config["in_features"])
            x = F.linear(x, torch.zeros(shape) if weight is None else weight)
        elif kind == "pooling":
            pool = {"MAX": F.max_pool2d, "AVE": F.avg_pool2d}[config["mode"]]
            x = pool(x, config["kernel_size"], config["stride"], config["padding"])
        elif kind == "element_sum":
            assert len(given) == 2
            x = given[0] + given[1]
        elif kind == "bn":
            assert config["features"] == x.shape[1]
            x = x if weight is None else weight(x)
        else:
            x = {"relu": F.relu, "view": lambda t: t.flatten(1), "concat": None}[kind](x)
        tensors.append(x)
        if kind in ("relu", "bn", "view"):
            owner.append(owner[here + back[0]])
            continue
        owner.append(len(seen))
        entry = {"type": kind, "Inputindex": [
            (owner[here + step] if here + step >= 0 else -1) - len(seen) for step in back
        ]}  # fmt: skip
        if kind == "fc":
            entry |= {"Infeature": given[0].shape[1], "Outfeature": x.shape[1]}
        elif kind != "element_sum":
            entry |= {
                "Inputchannel": given[0].shape[1], "Inputsize": list(given[0].shape[2:]),
                "Outputchannel": x.shape[1], "Outputsize": list(x.shape[2:]),
                "Kernelsize": config["kernel_size"], "Stride": config["stride"],
                "Padding": config["padding"],
            }  # fmt: skip
        entry["outputbit"] = found.quantize_config_list[here]["activation_bit"]
        if kind in ("conv", "fc"):
            entry["weight_bit"] = found.quantize_config_list[here]["weight_bit"]
        seen.append(entry)
    return tensors[-1], seen


def check_graph(found: SimpleNamespace) -> None:
    """The lists and the dictionaries are of the same network."""
    _, seen = run_graph(found)
    entries = layers_of(found)
    assert len(seen) == len(entries)
    for here, (left, right) in enumerate(zip(seen, entries, strict=True)):
        bits = left.pop("weight_bit", None)
        assert bits is None or bits == right["epim_nas"]["weight_bits"]
        assert {key: right[key] for key in left} == left
        readers = [
            there - here
            for there, other in enumerate(seen)
            if here - there in other["Inputindex"]
        ]  # fmt: skip
        assert right["Outputindex"] == readers
        assert right["Layerindex"] == here


# --- dense networks ----------------------------------------------------------------------------


def _cases() -> list[dict[str, Any]]:
    """One record of every network, crossbar and precision that the simulator ran."""
    cases = {}
    for case in load_cases():
        process = case["config"]["Process element level"]
        key = (
            case["network"], case["overrides"].get("Xbar_Size"), case["weight_bits"],
            case["act_bits"], process["xbar_polarity"], process["group_num"],
            str(case["layers"]["type"]) if "error" not in case else "",
        )  # fmt: skip
        if "error" not in case and case["mapping"] == "as_is":
            cases.setdefault(key, case)
    return list(cases.values())


@pytest.mark.parametrize("case", _cases(), ids=lambda case: f"{case['id']}-{case['network']}")
def test_dense_networks_equal_what_the_simulator_was_given(
    case: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "SimConfig.ini").write_text(ini_text(case))
    chip = load_chip(str(tmp_path / "SimConfig.ini"))
    network = network_of(case)
    design = Design.uniform(network, case["Weightbit_given_to_MNSIM"], case["act_bits"])
    found = exported(tmp_path, network, design, chip)
    table, entries = case["layers"], layers_of(found)
    assert len(entries) == len(table["type"])
    for here, entry in enumerate(entries):
        compared = set(entry) & set(table)
        if not {"conv", "fc"} & {entry["type"]}:
            compared.discard("Weightbit")
        assert {"type", "Inputindex"} <= compared
        expected = {key: table[key][here] for key in compared if table[key][here] is not None}
        assert {key: entry[key] for key in expected} == expected
        assert entry["outputbit"] == entry["Inputbit"] == case["act_bits"]
        record = {key: table[key][here] for key in ("PEs", "tiles", "max_row", "max_column")}
        assert mapping(entry, chip) == record
    assert found.totals["mnsim_crossbars"] == found.totals["design_crossbars"]
    assert found.totals["mnsim_crossbars"] == case["total"]["PEs"]
    assert found.totals["mnsim_tiles"] == case["total"]["tiles"]
    check_lookups(found)


@pytest.fixture(scope="module")
def resnet18() -> tuple[torch.nn.Module, Network]:
    torch.manual_seed(1)
    model = build_model("resnet18", in_channels=3, num_classes=10).eval()
    return model, trace(model, (3, 64, 64), "resnet18")


def _mixed(network: Network) -> Design:
    choices = {
        layer.name: Choice(weight_bits=2 + index % 8, activation_bits=4 + index % 5)
        for index, layer in enumerate(network.weighted)
    }
    return Design(network.name, choices)


@pytest.mark.parametrize("bits", ["uniform", "mixed"])
def test_a_network_rebuilt_from_the_file_costs_the_same(
    resnet18: tuple[torch.nn.Module, Network], bits: str, tmp_path: Path
) -> None:
    network = resnet18[1]
    design = Design.uniform(network, 9, 9) if bits == "uniform" else _mixed(network)
    found = exported(tmp_path, network, design)
    again, same_design = rebuilt(found)
    ours, theirs = CostModel(network, CHIP), CostModel(again, CHIP)
    assert theirs.evaluate(same_design).totals == ours.evaluate(design).totals
    for left, right in zip(ours.evaluate(design).layers, layers_of(found), strict=True):
        numbers = mapping(right, CHIP)
        assert (left.crossbars, left.tiles) == (numbers["PEs"], numbers["tiles"])
    assert found.network_graph_problems == []
    check_lookups(found)
    check_graph(found)


def test_the_lists_compute_what_the_network_computes(
    resnet18: tuple[torch.nn.Module, Network], tmp_path: Path
) -> None:
    """With the weights of the network: so its sums, poolings, activations and readers are right."""
    model, network = resnet18
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    model.get_submodule("fc").bias.data.zero_()  # MNSIM's layers have no bias
    found = exported(tmp_path, network)
    names = iter(layer.name for layer in network.weighted)
    parameters: dict[int, Any] = {}
    for here, config in enumerate(found.layer_config_list):
        if config["type"] in ("conv", "fc"):
            name = next(names)
            parameters[here] = model.get_submodule(name).weight
        elif config["type"] == "bn":
            norm = name.replace("downsample.0", "downsample.1").replace("conv", "bn")
            parameters[here] = model.get_submodule(norm)
    with torch.no_grad():
        torch.manual_seed(0)
        expected = model(torch.rand(1, 3, 64, 64))
        got = run_graph(found, parameters)[0]
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("network", [chain(), residual()], ids=lambda network: network.name)
def test_small_networks(network: Network, tmp_path: Path) -> None:
    found = exported(tmp_path, network)
    assert found.network_graph_problems == []
    check_lookups(found)
    check_graph(found)


def test_shortcuts_that_slice_and_pad(tmp_path: Path) -> None:
    model = build_model("resnet20", in_channels=3, num_classes=10)
    network = trace(model, (3, 32, 32), "resnet20")
    found = exported(tmp_path, network)
    check_lookups(found)
    (problem,) = found.network_graph_problems
    assert problem.startswith("layer2.0.add, layer3.0.add: its inputs are sliced")
    assert any(note.startswith("layer2.0.add, layer3.0.add: reads a part") for note in found.notes)
    with pytest.raises(RuntimeError, match="size of tensor"):
        run_graph(found)


# --- epitomes ----------------------------------------------------------------------------------


def _alone(layer: LayerSpec, choice: Choice, chip: Chip = CHIP) -> tuple[dict[str, Any], Any]:
    """A layer behind a convolution that nobody asks about."""
    stem = conv("stem", INPUT, 3, layer.in_channels, layer.input_size[0], kernel=1)
    network = Network("n", (stem, replace(layer, inputs=("stem",))), (3, *layer.input_size))
    design = Design("n", {"stem": Choice(weight_bits=9, activation_bits=9), layer.name: choice})
    found = describe_mnsim(design, network, chip)
    return found.net_struct[1][0][0], (found, CostModel(network, chip).evaluate(design).layers[1])


SLICED = load_chip("xbar_64", ["mapping.packing=sliced"])


@settings(max_examples=150)
@given(
    data=st.data(),
    kernel=st.integers(1, 3),
    outputs=st.sampled_from([16, 64, 96]),
    inputs=st.sampled_from([8, 24, 64]),
    bits=st.integers(2, 9),
)
def test_epitomes_lie_on_the_same_crossbars(
    data: st.DataObject, kernel: int, outputs: int, inputs: int, bits: int
) -> None:
    shape = EpitomeShape(
        data.draw(st.integers(1, outputs // 2)),
        data.draw(st.integers(1, inputs // 2)),
        data.draw(st.integers(kernel, kernel + 2)),
        data.draw(st.integers(kernel, kernel + 2)),
    )
    if shape.size > outputs * inputs * kernel**2:
        return
    layer = replace(
        conv("c", INPUT, inputs, outputs, 8, kernel=kernel),
        padding=(kernel // 2,) * 2,
        output_size=(8 + 2 * (kernel // 2) - kernel + 1,) * 2,
    )
    choice = Choice(shape, weight_bits=bits, activation_bits=8)
    entry, (found, cost) = _alone(layer, choice, SLICED)
    ours, numbers = cost.mapping, mapping(entry, SLICED)
    assert (numbers["PEs"], numbers["tiles"]) == (ours.crossbars, ours.tiles)
    assert numbers["max_column"] == ours.columns
    same_rows = numbers["max_row"] == ours.rows
    told = any("another number of rows" in note for note in found.notes)
    assert told == (not same_rows)
    if shape.height == shape.width:
        assert same_rows
        assert not told
        assert (entry["Inputchannel"], entry["Kernelsize"]) == (shape.in_channels, shape.height)
        # A position waits for the inputs of the convolution, not of the larger epitome.
        assert entry["Kernelsize"] - entry["Padding"] == kernel - kernel // 2
    else:
        assert any("not square" in note for note in found.notes)
    assert entry["epim_nas"]["epitome"] == list(shape.as_tuple)
    assert entry["epim_nas"]["rounds"] == cost.rounds
    assert entry["Outputsize"] == list(layer.output_size)


def test_an_epitome_that_leaves_most_rows_of_its_crossbars_empty() -> None:
    # 33 rows a channel: one channel on each of 4 crossbars of 64 rows, although 3 have the rows.
    choice = Choice(EpitomeShape(4, 4, 3, 11), weight_bits=2, activation_bits=8)
    entry, (_, cost) = _alone(conv("c", INPUT, 64, 64, 8), choice, SLICED)
    assert mapping(entry, SLICED)["PEs"] == cost.crossbars == 4


@pytest.mark.parametrize(
    ("shape", "same_rows"),
    [((4, 16, 2, 2), True), ((4, 50, 1, 1), True), ((4, 25, 1, 3), False), ((4, 20, 1, 3), True)],
)
def test_epitomes_of_linear_layers(shape: tuple[int, ...], same_rows: bool) -> None:
    layer = LayerSpec("f", "fc", ("a",), 64, 40)
    choice = Choice(EpitomeShape(*shape), weight_bits=4, activation_bits=8)
    entry, (found, cost) = _alone(layer, choice, SLICED)
    numbers = mapping(entry, SLICED)
    assert numbers["PEs"] == cost.crossbars
    assert (numbers["max_row"] == cost.mapping.rows) == same_rows
    assert any("another number of rows" in note for note in found.notes) != same_rows


def test_what_an_epitome_has_beyond_mnsim_is_told(tmp_path: Path) -> None:
    network = residual()
    choices = {
        "a": Choice(weight_bits=None, activation_bits=None),
        "b": Choice(EpitomeShape(16, 16, 4, 4), True, 3, 8, (16, 8), wrap_in=True),
        "c": Choice(EpitomeShape(24, 16, 1, 1), weight_bits=3, activation_bits=8),
        "f": Choice(weight_bits=5, activation_bits=8),
    }
    found = exported(tmp_path, network, Design("residual", choices))
    entries = {entry["epim_nas"]["layer"]: entry for entry in layers_of(found)}
    extra = entries["b"]["epim_nas"]
    cost = CostModel(network, CHIP).evaluate(Design("residual", choices))
    assert extra == {
        "layer": "b", "weight_shape": [32, 32, 3, 3], "padding": [1, 1], "dilation": [1, 1],
        "groups": 1, "epitome": [16, 16, 4, 4], "patch": [16, 8], "wrap": True, "wrap_in": True,
        "weight_bits": 3, "activation_bits": 8, "rounds": cost.layers[1].rounds, "slots": 1,
        "replicas": 16, "crossbars": cost.layers[1].crossbars, "tiles": 1,
    }  # fmt: skip
    assert entries["a"]["Weightbit"] == entries["a"]["Inputbit"] == 32
    assert entries["c"]["epim_nas"]["rounds"] == 4
    notes = "\n".join(found.notes)
    for text in (
        "b, c: an epitome: ", "b: output-channel wrapping", "b: input-channel wrapping",
        "c: takes several activations a position", "a: weights in floating point: as 32 bits",
        "a: inputs in floating point",
    ):  # fmt: skip
        assert text in notes
    # The lists have the convolutions themselves, whatever their weights are sampled from.
    plain = exported(tmp_path, network, _mixed(network))
    assert found.layer_config_list == plain.layer_config_list
    # A sum learns its channels from an input that has them all.
    assert entries["s"]["Inputindex"] == [-2, -1]


def test_a_sum_takes_its_size_from_an_input_that_has_it() -> None:
    whole = residual().layers
    swapped = replace(whole[2], inputs=("b", "a"))
    network = Network("n", (*whole[:2], swapped, *whole[3:]), (3, 8, 8))
    choices = dict(Design.uniform(network, 9, 9).choices)
    assert describe_mnsim(Design("n", choices), network, CHIP).net_struct[2][0][0][
        "Inputindex"
    ] == [-1, -2]
    choices["b"] = Choice(EpitomeShape(16, 16, 3, 3), weight_bits=9, activation_bits=9)
    assert describe_mnsim(Design("n", choices), network, CHIP).net_struct[2][0][0][
        "Inputindex"
    ] == [-2, -1]
    choices["a"] = Choice(EpitomeShape(16, 3, 3, 3), weight_bits=9, activation_bits=9)
    notes = describe_mnsim(Design("n", choices), network, CHIP).notes
    assert any(note.startswith("s: adds fewer channels") for note in notes)


@pytest.mark.parametrize("chip", ["xbar_64", "epim_256", "isaac_128", "raella_512"])
def test_chips_that_mnsim_maps_in_another_way(chip: str, tmp_path: Path) -> None:
    network, loaded = chain(), load_chip(chip)
    design = Design.uniform(network, 8, 8)
    found = exported(tmp_path, network, design, loaded)
    cost = CostModel(network, loaded).evaluate(design)
    sliced = CostModel(network, load_chip(chip, ["mapping.packing=sliced"])).evaluate(design)
    numbers = [mapping(entry, loaded) for entry in layers_of(found)]
    assert found.totals == {
        "mnsim_crossbars": sum(layer["PEs"] for layer in numbers),
        "mnsim_tiles": sum(layer["tiles"] for layer in numbers),
        "design_crossbars": cost.totals.crossbars,
        "design_tiles": cost.totals.tiles,
    }
    assert found.totals["mnsim_crossbars"] == sliced.totals.crossbars
    assert any("side by side" in note for note in found.notes) == (
        sliced.totals.crossbars != cost.totals.crossbars
    )
    several_bits = loaded.mapping.cell_bits > 1
    assert any("one bit a cell" in note for note in found.notes) == several_bits
    # What decides the mapping comes back from MNSIM's own configuration file.
    values = {
        key.lower(): str(value) for keys in found.sim_config.values() for key, value in keys.items()
    }
    (tmp_path / "SimConfig.ini").write_text(whole_ini(**values))
    again = load_chip(str(tmp_path / "SimConfig.ini"))
    for group, names in (
        ("crossbar", ("rows", "columns", "subarray_rows")),
        ("mapping", ("polarity", "groups")),
        ("tile", ("pes",)),
    ):
        for name in names:
            assert getattr(getattr(again, group), name) == getattr(getattr(loaded, group), name)


def test_grouped_dilated_and_oblong_layers() -> None:
    dense = Choice(weight_bits=9, activation_bits=9)
    entry, (found, cost) = _alone(conv("d", INPUT, 32, 32, 8, groups=32), dense)
    assert mapping(entry, CHIP)["PEs"] == cost.crossbars
    assert (entry["Depthwise"], found.network_graph_problems) == ("separable", [])
    assert any(note.startswith("d: grouped: stored as a dense") for note in found.notes)

    entry, (found, cost) = _alone(conv("g", INPUT, 32, 32, 8, groups=4), dense)
    assert (mapping(entry, CHIP)["PEs"], entry["Depthwise"]) == (cost.crossbars, "normal")
    assert found.network_graph_problems == ["g: groups of several channels"]

    dilated = replace(conv("w", INPUT, 32, 32, 8), dilation=(2, 2), padding=(2, 2))
    entry, (found, cost) = _alone(dilated, dense)
    assert mapping(entry, CHIP)["PEs"] == cost.crossbars
    # The first position needs rows 0 to 2, which MNSIM finds from Kernelsize - Padding.
    assert entry["Kernelsize"] - entry["Padding"] == 3
    assert found.network_graph_problems == ["w: a dilated window"]

    oblong = replace(conv("o", INPUT, 64, 32, 8), kernel=(1, 7), padding=(0, 3))
    entry, (found, cost) = _alone(oblong, dense)
    numbers = mapping(entry, CHIP)
    assert (numbers["PEs"], numbers["max_row"]) == (cost.crossbars, cost.mapping.rows)
    assert found.network_graph_problems == ["o: a window that is not square"]


def test_a_concatenation(tmp_path: Path) -> None:
    layers = (
        conv("a", INPUT, 3, 8, 8),
        conv("b", "a", 8, 8, 8),
        replace(conv("c", "a", 16, 8, 8), inputs=("a", "b")),
    )
    found = exported(tmp_path, Network("n", layers, (3, 8, 8)))
    assert layers_of(found)[2]["Inputindex"] == [-2, -1]
    assert [config["type"] for config in found.layer_config_list][6:8] == ["concat", "conv"]
    assert found.input_index_list[6] == [-4, -1]
    assert found.network_graph_problems[0].startswith("c: a concatenation: NetworkGraph runs it")
    check_lookups(found)


# --- what is refused ---------------------------------------------------------------------------

A = conv("a", INPUT, 3, 8, 8)
POOL = LayerSpec("p", "pooling", ("a",), 8, 8, (8, 8), (4, 4), (2, 2), (2, 2))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), r"layers\.0: no layers"),
        (
            (LayerSpec("f", "fc", (INPUT,), 192, 10),),
            r"layers\.0: the first layer is `fc`.*convolution",
        ),
        ((A, conv("b", INPUT, 3, 8, 8)), r"b\.inputs: `input` is read by a second layer"),
        (
            (A, replace(conv("b", "a", 8, 8, 8), stride=(2, 1), output_size=(4, 8))),
            r"b\.stride: got \[2, 1\]",
        ),
        ((A, replace(POOL, kernel=(2, 3))), r"p\.kernel: got \[2, 3\]"),
        (
            (A, POOL, LayerSpec("s", "element_sum", ("a", "p"), 8, 8, (8, 8), (8, 8))),
            r"s\.inputs: `p` has 16 positions, the sum 64",
        ),
        (
            (A, LayerSpec("s", "element_sum", ("a",), 8, 8, (8, 8), (8, 8))),
            r"s\.inputs: a sum of one input",
        ),
        (
            (
                A,
                conv("b", "a", 8, 8, 8),
                LayerSpec("s", "element_sum", ("a", "b"), 8, 8, (8, 8), (8, 8)),
                LayerSpec("t", "element_sum", ("s", "a"), 8, 8, (8, 8), (8, 8)),
                LayerSpec("u", "element_sum", ("s", "t"), 8, 8, (8, 8), (8, 8)),
            ),
            r"u\.inputs: no convolution or pooling of the sum's size",
        ),
        (
            (A, replace(conv("b", "a", 8, 8, 10), padding=(0, 0), output_size=(8, 8))),
            r"b\.input_size: waits for positions of `a`.*\[8, 8\].*Pad in the layer",
        ),
        ((conv("a", INPUT, 3, 8, 32, kernel=17),), r"one input channel takes 289 rows"),
    ],
)
def test_networks_that_mnsim_cannot_express(
    layers: tuple[LayerSpec, ...], message: str, tmp_path: Path
) -> None:
    network = Network("n", layers, (3, 8, 8))
    with pytest.raises(InputError, match=message):
        export_mnsim(Design.uniform(network, 9, 9), network, CHIP, tmp_path / MNSIM_FILE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["network.json", "my-network.py"])
def test_files_that_python_cannot_import(name: str, tmp_path: Path) -> None:
    network = chain()
    with pytest.raises(InputError, match=r"can import, such as `mnsim_network\.py`"):
        export_mnsim(Design.uniform(network, 9, 9), network, CHIP, tmp_path / name)


# --- the file ----------------------------------------------------------------------------------


def test_the_file_is_importable_and_the_same_every_time(tmp_path: Path) -> None:
    layers = (replace(A, name="odd 'name\"\n, 'x"), replace(POOL, inputs=("odd 'name\"\n, 'x",)))
    network = Network("two\nlines", layers, (3, 8, 8))
    design = Design.uniform(network, 9, 9)
    path = export_mnsim(design, network, CHIP, tmp_path / "new" / MNSIM_FILE)
    before = path.read_bytes()
    spec = importlib.util.spec_from_file_location("mnsim_network", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = read(path)
    for name, value in vars(found).items():
        assert getattr(module, name) == value
    described = describe_mnsim(design, network, CHIP)
    assert found.NetStruct == described.net_struct
    assert found.layer_config_list == described.layer_config_list
    assert found.notes == described.notes
    assert layers_of(found)[0]["epim_nas"]["layer"] == "odd 'name\"\n, 'x"
    # MNSIM's latency model asks `layer_dict["type"] is "conv"`.
    kinds = {"conv": "conv", "pooling": "pooling"}
    assert all(kinds[entry["type"]] is entry["type"] for entry in layers_of(module))
    assert export_mnsim(design, network, CHIP, path).read_bytes() == before
    other = Design.uniform(network, 9, 9)
    object.__setattr__(other, "choices", {})
    with pytest.raises(InputError, match="is missing"):
        export_mnsim(other, network, CHIP, path)
    assert path.read_bytes() == before
