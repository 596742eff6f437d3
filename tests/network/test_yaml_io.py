"""The network YAML: geometry against torch, round trips, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from epim_nas.errors import InputError
from epim_nas.models import build_model
from epim_nas.network import LayerSpec, load_network, network_to_dict, save_network, trace

CONV = {"name": "c1", "type": "conv", "inputs": ["input"], "in_channels": 3, "out_channels": 64,
        "kernel": 3, "stride": 1, "padding": 1, "input_size": [32, 32]}  # fmt: skip
POOL = {"name": "p1", "type": "pooling", "inputs": ["c1"], "channels": 64, "kernel": 2,
        "stride": 2, "padding": 0, "input_size": [32, 32]}  # fmt: skip
FC = {"name": "f1", "type": "fc", "inputs": ["p1"], "in_features": 16384, "out_features": 10}
SUM = {"name": "s1", "type": "element_sum", "inputs": ["c1", "c2"]}


def write(folder, layers, **top):
    path = folder / "net.yaml"
    data = {"schema": "epim-nas/network@1", "name": "tiny", **top, "layers": layers}
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def test_the_documented_example(tmp_path):
    network = load_network(write(tmp_path, [CONV, POOL, FC]))
    assert network.name == "tiny"
    assert network.input_shape == (3, 32, 32)
    assert network["c1"] == LayerSpec(
        "c1", "conv", ("input",), 3, 64, (32, 32), (32, 32), (3, 3), (1, 1), (1, 1)
    )
    assert network["p1"] == LayerSpec(
        "p1", "pooling", ("c1",), 64, 64, (32, 32), (16, 16), (2, 2), (2, 2), (0, 0)
    )
    assert network["f1"] == LayerSpec("f1", "fc", ("p1",), 16384, 10)


def test_a_sum_takes_the_shape_of_its_inputs(tmp_path):
    second = {**CONV, "name": "c2"}
    network = load_network(write(tmp_path, [CONV, second, SUM]))
    assert network["s1"] == LayerSpec("s1", "element_sum", ("c1", "c2"), 64, 64, (32, 32), (32, 32))


def test_several_inputs_of_a_convolution_are_concatenated(tmp_path):
    second = {**CONV, "name": "c2", "out_channels": 10}
    third = {**CONV, "name": "c3", "inputs": ["c1", "c2"], "in_channels": 74}
    network = load_network(write(tmp_path, [CONV, second, third]))
    assert network["c3"].inputs == ("c1", "c2")
    with pytest.raises(InputError, match="`c1` \\+ `c2` has 74"):
        load_network(write(tmp_path, [CONV, second, {**third, "in_channels": 64}]))


@settings(max_examples=40)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=st.tuples(st.integers(9, 17), st.integers(9, 17)),
)
def test_output_sizes_are_torchs(tmp_path_factory, kernel, stride, padding, dilation, size):
    layer = {**CONV, "kernel": list(kernel), "stride": list(stride), "padding": list(padding),
             "dilation": list(dilation), "input_size": list(size)}  # fmt: skip
    got = load_network(write(tmp_path_factory.mktemp("n"), [layer]))["c1"].output_size
    expected = nn.Conv2d(3, 1, kernel, stride, padding, dilation)(torch.zeros(1, 3, *size))
    assert got == tuple(expected.shape[2:])


@pytest.mark.parametrize(
    ("name", "shape"),
    [("resnet20", (1, 28, 28)), ("resnet18", (3, 96, 64)), ("vgg11_bn", (3, 32, 32))],
)
def test_traced_networks_survive_the_file(tmp_path, name, shape):
    args = {"small_input": True} if name.startswith("vgg") else {}
    model = build_model(name, in_channels=shape[0], num_classes=10, args=args)
    network = trace(model, shape)
    save_network(network, tmp_path / "net.yaml")
    assert load_network(tmp_path / "net.yaml") == network
    # The only feature maps that change on the way are those of option-A shortcuts.
    changed = [item["name"] for item in network_to_dict(network)["layers"] if "reshaped" in item]
    assert changed == (["layer2.0.add", "layer3.0.add"] if name == "resnet20" else [])


def test_unusual_geometry_survives_the_file(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(4, 8, (3, 1), (2, 1), (1, 0), groups=2)
            self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
            self.gate = nn.Conv2d(8, 8, 1)
            self.b = nn.Conv2d(12, 6, 3, dilation=2)
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            y = self.pool(self.a(nn.functional.pad(x, (2, 2))))
            y = y * self.gate(y.mean((2, 3), keepdim=True))
            y = self.b(torch.cat([y, x[:, :, : y.shape[2], : y.shape[3]]], 1))
            return self.fc(y.amax((2, 3)))

    network = trace(Odd(), (4, 24, 9))
    save_network(network, tmp_path / "net.yaml")
    assert load_network(tmp_path / "net.yaml") == network


def test_an_fc_that_reads_part_of_its_input_is_loaded_with_a_warning(tmp_path):
    # The reference simulator's own test networks have such layers.
    with pytest.warns(UserWarning, match=r"layers.1 \(f1\): in_features: 16 features"):
        network = load_network(write(tmp_path, [CONV, {**FC, "inputs": ["c1"], "in_features": 16}]))
    assert network["f1"].in_channels == 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_network(write(tmp_path, [CONV, {**FC, "inputs": ["c1"], "in_features": 64}]))


BAD = {
    "unknown type": ([{**CONV, "type": "convolution"}], "layers.0 (c1): type", "Did you mean"),
    "no type": ([{"name": "x", "inputs": ["input"]}], "layers.0 (x): type", "is missing"),
    "unknown key": ([{**CONV, "kernal": 3}], "layers.0 (c1): kernal", "Did you mean `kernel`"),
    "missing key": ([{k: v for k, v in CONV.items() if k != "kernel"}], "kernel", "is missing"),
    "zero channels": ([{**CONV, "in_channels": 0}], "in_channels", "greater than or equal to 1"),
    "text channels": ([{**CONV, "in_channels": "3"}], "in_channels", "integer"),
    "fractional": ([{**CONV, "out_channels": 1.5}], "out_channels", "integer"),
    "three sizes": ([{**CONV, "kernel": [3, 3, 3]}], "kernel", "[height, width]"),
    "type in a list": ([{**CONV, "type": ["conv"]}], "type", "['conv']"),
    "type in a mapping": ([{**CONV, "type": {"a": 1}}], "type", "`conv`"),
    "huge size": ([{**CONV, "input_size": [65536, 65536]}], "input_size", "16777216 pixels"),
    "huge padding": ([{**CONV, "padding": 65536}], "input_size", "16777216 pixels"),
    "side too long": ([{**CONV, "input_size": [10**6, 1]}], "input_size", "65536"),
    "too many channels": ([{**CONV, "out_channels": 10**9}], "out_channels", "1048576"),
    "zero stride": ([{**CONV, "stride": 0}], "stride", "from 1 to 65536"),
    "negative padding": ([{**CONV, "padding": -1}], "padding", "from 0"),
    "boolean size": ([{**CONV, "kernel": True}], "kernel", "True"),
    "unknown input": ([CONV, {**POOL, "inputs": ["c2"]}], "(p1): inputs", "Did you mean `c1`"),
    "own input": ([{**CONV, "inputs": ["c1"]}, CONV], "(c1): inputs", "not a layer before"),
    "no inputs": ([{**CONV, "inputs": []}], "inputs", "at least 1"),
    "used twice": ([CONV, CONV], "layers.1 (c1): name", "used twice"),
    "input of its name": ([{**CONV, "name": "input"}], "layers", "reads `.input` alone"),
    "channels differ": ([CONV, {**POOL, "channels": 32}], "(p1): channels", "`c1` has 64"),
    "sizes differ": ([CONV, {**POOL, "input_size": 16}], "input_size", "`c1` has [32, 32]"),
    "large kernel": ([{**CONV, "kernel": 35}], "kernel", "padded input's 34"),
    "groups": ([{**CONV, "groups": 2}], "groups", "does not divide in_channels 3"),
    "too many features": ([CONV, POOL, {**FC, "in_features": 20000}], "in_features", "16384"),
    "wrong output": ([{**CONV, "output_size": 31}], "output_size", "[32, 32]"),
    "unequal sum": ([CONV, {**CONV, "name": "c2", "stride": 2}, SUM], "(s1): inputs",
                    "[64, 16, 16]"),
    "no network input": ([{**SUM, "inputs": ["input", "input"]}], "layers", "shape is unknown"),
    "no layers": ([], "layers", "at least 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_name_the_field(tmp_path, case):
    layers, field, said = BAD[case]
    with pytest.raises(InputError) as caught:
        load_network(write(tmp_path, layers))
    message = str(caught.value)
    assert field in caught.value.field
    assert said in message
    assert message.startswith(str(tmp_path / "net.yaml"))
    assert "\n" not in message


def test_bad_top_level(tmp_path):
    with pytest.raises(InputError, match="schema"):
        load_network(write(tmp_path, [CONV], schema="epim-nas/network@2"))
    with pytest.raises(InputError, match="no such file"):
        load_network(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="a mapping with the keys"):
        load_network(tmp_path / "list.yaml")
    with pytest.raises(InputError, match=r"input_shape"):
        load_network(write(tmp_path, [CONV], input_shape=[3, 32]))
    with pytest.raises(InputError, match=r"got 3, but `input` has 1"):
        load_network(write(tmp_path, [CONV], input_shape=[1, 32, 32]))


def test_importing_networks_and_models_does_not_import_torch():
    code = (
        "import sys, epim_nas.network, epim_nas.models; epim_nas.models.model_names();"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_function_and_its_module_have_one_name():
    code = (
        "from epim_nas.network import trace; import epim_nas.network.trace as module;"
        "from epim_nas.network.trace import trace as same; assert trace is same and callable(trace)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_layer_may_be_called_input(tmp_path):
    conv = {**CONV, "name": "input", "inputs": [".input"]}
    network = load_network(write(tmp_path, [conv, {**POOL, "inputs": ["input"]}]))
    assert network["input"].inputs == (".input",)
    assert network["p1"].inputs == ("input",)
    assert network.consumers["input"] == ("p1",)
    save_network(network, tmp_path / "again.yaml")
    assert load_network(tmp_path / "again.yaml") == network
