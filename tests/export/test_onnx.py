"""The ONNX files, against PyTorch and against the sampling plan."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from epim_nas import (
    Choice,
    Design,
    EpitomeConv2d,
    EpitomeLinear,
    EpitomeShape,
    SamplingPlan,
    apply_design,
)
from epim_nas.epitome.quantization import ActivationQuantizer, CrossbarBlock, Quantization
from epim_nas.errors import EpimError, InputError
from epim_nas.export.onnx import (
    TOLERANCE,
    OnnxExport,
    comparison,
    export,
    export_onnx,
    recording,
    sampling,
)
from tests.epitome.test_plan import plans, reordered_plans

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


class Net(nn.Module):
    """Every kind of layer that a design may change, and some that it leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.wrapped = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.both = nn.Conv2d(16, 16, 3, padding="same", padding_mode="circular")
        self.shared = nn.Conv2d(16, 16, 1)
        self.again = self.shared
        self.depthwise = nn.Conv2d(16, 16, (4, 3), padding="same", groups=16)
        self.grouped = nn.Conv2d(16, 24, 3, padding=2, dilation=2, groups=2, padding_mode="reflect")
        self.shortcut = nn.Conv2d(16, 24, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in (16, 16, 24))
        self.tokens = nn.Linear(24, 16)
        self.head = nn.Sequential(nn.Linear(16, 14), nn.ReLU(), nn.Linear(14, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.norms[0](self.wrapped(x)))
        x = x + self.again(self.shared(self.both(x)))
        y = F.relu(self.norms[1](self.depthwise(x)))
        x = self.norms[2](self.grouped(y)) + self.shortcut(x)
        x = self.tokens(x.flatten(2).transpose(1, 2)).mean(1)
        return self.head(x)


def choices(bits: int | None, inputs: int | None) -> dict[str, Choice]:
    """Wrappings, partial slabs, growth, and patches smaller than their epitome."""
    common = {"weight_bits": bits, "activation_bits": inputs}
    return {
        "wrapped": Choice(EpitomeShape(6, 3, 4, 4), wrap=True, **common),
        "both": Choice(EpitomeShape(4, 8, 3, 3), wrap=True, wrap_in=True, **common),
        "shared": Choice(EpitomeShape(8, 6, 1, 1), patch=(3, 4), **common),
        "depthwise": Choice(EpitomeShape(4, 1, 5, 4), **common),
        "grouped": Choice(EpitomeShape(10, 3, 4, 5), patch=(7, 3), **common),
        "tokens": Choice(EpitomeShape(8, 12, 1, 1), wrap_in=True, **common),
        "head.0": Choice(EpitomeShape(4, 8, 2, 1), **common),
    }


CROSSBARS = Quantization("crossbar", CrossbarBlock(2, 4, 1), overlap_weights=(0.7, 0.3))
LEARNED = Quantization(weight_range="least_squares", learned_weight_step=True)
DESIGNS: dict[str, tuple[dict[str, Choice], Quantization, bool]] = {
    "floating point": (choices(None, None), Quantization(), True),
    "3 bits, dense ends": (
        {
            **choices(3, 4),
            "stem": Choice(weight_bits=9, activation_bits=9),
            "head.2": Choice(weight_bits=20, activation_bits=9),
        },
        Quantization(),
        False,
    ),
    "4 bits by crossbar": (choices(4, 3), CROSSBARS, True),
    "2 bits, learned": (choices(2, None), LEARNED, False),
}


def build(name: str) -> nn.Module:
    """The network of a design: its statistics are not trivial, and its channels not in order."""
    torch.manual_seed(0)
    chosen, quantization, reorder = DESIGNS[name]
    model = apply_design(Net(), Design("net", chosen), quantization=quantization)
    model.again = model.shared
    generator = np.random.default_rng(0)
    for layer in layers(model).values():
        if reorder:
            outputs, inputs, *_ = layer.plan.conv_shape
            size = outputs // layer.plan.groups
            starts = range(0, outputs, size)
            single = layer.plan.wrap or layer.plan.wrap_in
            layer.reorder(
                [start + int(i) for start in starts for i in generator.permutation(size)],
                [
                    generator.permutation(inputs).tolist()
                    for _ in range(1 if single else layer.plan.out_slabs)
                ],
            )
    model.train()
    for _ in range(3):
        model(images(8))
    return model


def layers(model: nn.Module) -> dict[str, EpitomeConv2d | EpitomeLinear]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (EpitomeConv2d, EpitomeLinear))
    }


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 9, 9)


def initializers(file: Path) -> dict[str, np.ndarray]:
    graph = onnx.load(file).graph
    return {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}


def run(file: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"input": x.numpy()})
    return torch.from_numpy(out)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("floating point", "epitomes"),
        ("3 bits, dense ends", "expanded"),
        ("3 bits, dense ends", "epitomes"),
        ("4 bits by crossbar", "epitomes"),
        ("2 bits, learned", "expanded"),
    ],
)
def test_a_file_computes_what_the_network_does(
    tmp_path: Path, name: str, form: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    model = build(name)
    before = copy.deepcopy(model.state_dict())
    exported = export_onnx(model, (3, 9, 9), tmp_path / "new" / "net.onnx", form=form)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert capfd.readouterr().out == ""

    model.eval()
    x = images(7)  # a number that neither the exporter nor the check has seen
    expected = model(x).detach()
    found = run(exported.path, x)
    comparison = exported.comparison
    assert comparison is not None
    assert comparison.max_difference <= TOLERANCE * max(1.0, float(expected.abs().amax()))
    inputs = [layer.activation for layer in layers(model).values() if layer.activation]
    assert (comparison.activations > 0) == bool(inputs)
    assert comparison.flips <= 1e-4 * comparison.activations
    if not inputs:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert comparison.free_difference == comparison.max_difference
    # Where a flip does happen, it changes an output by a few per cent at most.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1 * float(expected.abs().amax()))

    stored = initializers(exported.path)
    graph = onnx.load(exported.path).graph
    assert exported.file_bytes == exported.path.stat().st_size
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    operators = [node.op_type for node in graph.node]
    assert operators.count("Conv") == 8, "the shared layer is called twice"
    assert ("Gather" in operators) == (form == "epitomes")
    for layer_name, layer in layers(model).items():
        if form == "expanded":
            assert np.array_equal(stored[f"{layer_name}.weight"], layer.weight.detach().numpy())
        else:
            values = stored.get(f"{layer_name}.epitome", stored.get(f"{layer_name}.weight"))
            assert values is not None
            assert values.size == layer.epitome.numel()
            integers = layer.weight_bits is not None and layer.weight_bits <= 16
            assert (values.dtype.kind == "i") == integers


@settings(max_examples=150)
@given(
    node_bytes=st.sampled_from([0, 150]),
    plan=st.one_of(plans(), reordered_plans()),
    bits=st.sampled_from([None, "tensor", "channel", "crossbar"]),
    seed=st.integers(0, 1000),
)
def test_the_sampled_weight_follows_the_plan_bit_for_bit(
    node_bytes: int, plan: SamplingPlan, bits: str | None, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(plan.shape.as_tuple).astype(np.float32)
    steps = None
    whole = values
    if bits is not None:
        values = generator.integers(-128, 128, plan.shape.as_tuple).astype(np.int8)
        outputs, inputs = plan.shape.as_tuple[:2]
        blocks = {"tensor": (1, 1), "channel": (outputs, 1), "crossbar": (outputs, inputs)}[bits]
        # Few different ones, as crossbars have.
        steps = generator.choice(np.float32([0.1, 0.7, 3.3]), (*blocks, 1, 1))
        whole = values.astype(np.float32) * steps
    weight = whole.ravel()[plan.weight_index]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "NODE_BYTES", node_bytes)
        sampling.Sampling(recording.Layer("a.b", plan, weight, values, steps)).check()


def shuffled(plan: SamplingPlan, count: int) -> SamplingPlan:
    generator = np.random.default_rng(0)
    outputs, inputs = plan.conv_shape[:2]
    return plan.reordered(
        generator.permutation(outputs).tolist(),
        [generator.permutation(inputs).tolist() for _ in range(count)],
    )


ROTATED = SamplingPlan.build((1024, 500, 1, 1), EpitomeShape(64, 128, 1, 1))
GROWN = SamplingPlan.build((128, 256, 3, 3), EpitomeShape(64, 64, 4, 4), patch=(32, 32))
WRAPPED = SamplingPlan.build((512, 256, 3, 3), EpitomeShape(64, 128, 3, 3), wrap=True)
INPUTS = SamplingPlan.build((256, 2048, 1, 1), EpitomeShape(64, 128, 1, 1), wrap_in=True)


@pytest.mark.parametrize(
    ("plan", "share"),
    [
        (ROTATED, 0.13),
        (shuffled(ROTATED, 1), 0.13),
        # An order of 500 inputs for each of 16 slabs is in the plan, and so in the tables.
        (shuffled(ROTATED, 16), 0.31),
        (GROWN, 0.01),
        (WRAPPED, 0.01),
        (shuffled(WRAPPED, 1), 0.01),
        (INPUTS, 0.08),
    ],
)
def test_index_tables_are_small(plan: SamplingPlan, share: float) -> None:
    values = np.random.default_rng(0).standard_normal(plan.shape.as_tuple).astype(np.float32)
    weight = values.ravel()[plan.weight_index]
    made = sampling.Sampling(recording.Layer("a", plan, weight, values, None))
    made.check()
    tables = sum(len(tensor.raw_data) for tensor in made.tables.values())
    nodes = sum(node.ByteSize() for node in made.nodes)
    assert tables < share * plan.shape.size * 4
    assert nodes < 1000


def test_shapes_alone_make_the_file_of_epitomes_smaller(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 128, 3), nn.Flatten(), nn.Linear(512, 64)
    )
    design = Design(
        "net",
        {
            "0": Choice(),
            "2": Choice(EpitomeShape(64, 32, 4, 4)),
            "4": Choice(EpitomeShape(32, 128, 1, 1), wrap=True),
        },
    )
    model = apply_design(dense, design)
    exported = export_onnx(model, (3, 6, 6), tmp_path / "net.onnx", form="epitomes")
    epitomes = 4 * (64 * 32 * 16 + 32 * 128)
    weights = 4 * (128 * 64 * 9 + 512 * 64)
    others = 4 * (3 * 64 * 9 + 64 + 128 + 64)
    assert exported.file_bytes == exported.epitomes_bytes == exported.path.stat().st_size
    assert exported.epitome_bytes == epitomes
    assert exported.index_bytes < 0.02 * epitomes
    assert exported.epitomes_bytes < epitomes + others + 6000
    assert weights + others < exported.expanded_bytes < weights + others + 3000
    assert exported.epitomes_bytes < 0.4 * exported.expanded_bytes


def tiny(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    layer = EpitomeConv2d(4, 6, 1, shape=EpitomeShape(3, 4, 1, 1), **options)
    return nn.Sequential(layer, nn.ReLU())


def test_the_network_may_be_a_layer(tmp_path: Path) -> None:
    exported = export_onnx(tiny()[0], (4, 2, 2), tmp_path / "a.onnx", form="epitomes")
    assert {"epitome", "bias"} <= set(initializers(exported.path))


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{package}.*pip install 'epim_nas\[onnx\]'"):
        export_onnx(tiny(), (4, 2, 2), tmp_path / "a.onnx", form="epitomes")
    assert os.listdir(tmp_path) == []


def test_without_onnxruntime_the_file_is_the_same_but_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(name: str) -> OnnxExport:
        return export_onnx(tiny(weight_bits=3), (4, 2, 2), tmp_path / name, form="epitomes")

    compared = export("a.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    exported = export("b.onnx")
    assert compared.comparison is not None
    assert exported.comparison is None
    assert exported.path.read_bytes() == compared.path.read_bytes()


def test_inputs_that_cannot_be_exported(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"

    def refused(model: nn.Module, match: str, shape: tuple[int, ...] = (4, 2, 2)) -> None:
        with pytest.raises(InputError, match=match):
            export_onnx(model, shape, path, form="epitomes")

    refused(tiny(activation_bits=4), r"model: 0\.activation.*never calibrated.*Run the model")
    refused(tiny().double(), r"model: 0\.epitome: is torch\.float64.*model\.float")
    refused(tiny(), r"input_shape: the model does not run on 5 of \(5, 2, 2\)", (5, 2, 2))
    refused(nn.Sequential(tiny(), nn.Unflatten(0, (2, 1))), "does not run on 5 of")
    broken = tiny(weight_bits=3)
    with torch.no_grad():
        broken[0].epitome[0, 0] = float("nan")
    refused(broken, r"model: 0\.epitome: contains NaN or infinity")
    with pytest.raises(InputError, match=r"form: got `small`.*expanded, epitomes"):
        export_onnx(tiny(), (4, 2, 2), path, form="small")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_more_than_a_protobuf_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "LARGEST_FILE", 100)
    with pytest.raises(InputError, match="2 GiB"):
        export_onnx(tiny(), (4, 2, 2), tmp_path / "a.onnx", form="epitomes")


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        export_onnx(tiny(), (4, 2, 2), tmp_path, form="expanded")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"file/a\.onnx: cannot be written"):
        export_onnx(tiny(), (4, 2, 2), tmp_path / "file" / "a.onnx", form="expanded")


class Undecided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_recorded(tmp_path: Path) -> None:
    model = nn.Sequential(tiny(), Undecided())
    with pytest.raises(EpimError, match="cannot export it to ONNX with any number of inputs"):
        export_onnx(model, (4, 2, 2), tmp_path / "a.onnx", form="expanded")
    assert os.listdir(tmp_path) == []


def test_damaged_files_are_noticed_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")

    def refused(match: str) -> None:
        with pytest.raises(EpimError, match=match):
            export_onnx(tiny(), (4, 2, 2), path, form="epitomes")
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["a.onnx"]

    real = Path.read_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda self: real(self)[:-1])
        with pytest.raises(EpimError, match="read back differs"):
            export_onnx(tiny(), (4, 2, 2), path, form="epitomes")
    assert path.read_bytes() == b"old"
    with monkeypatch.context() as patch:
        # Weights that nothing gives a value.
        patch.setattr(export, "prepend", lambda *arguments: None)
        refused("is not valid ONNX")
    with monkeypatch.context() as patch:
        table = sampling.Columns.table
        patch.setattr(sampling.Columns, "table", lambda self: table(self)[:, ::-1])
        refused("sampled in ONNX is not the layer's weight")


class Floor(recording.Rounding):
    def forward(self, x: Tensor) -> Tensor:
        out = (x / self.step).floor().clamp(self.low, self.high) * self.step
        self.tape.rounded.append(out)
        return out


def test_a_file_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = tiny(activation_bits=4)
    rounded(torch.randn(8, 4, 2, 2))
    real = recording._open

    def shifted(*arguments: Any) -> nn.Module:
        layer = real(*arguments)
        layer.bias = nn.Parameter(layer.bias + 0.01)
        return layer

    for name, wrong, match in (
        ("Rounding", Floor, r"rounded inputs of layer `0` are not those of PyTorch"),
        ("_open", shifted, r"the output for 1 inputs differs from that of PyTorch by 0\.01"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(recording, name, wrong)
            with pytest.raises(EpimError, match=match):
                export_onnx(rounded, (4, 2, 2), tmp_path / "a.onnx", form="expanded")
    assert os.listdir(tmp_path) == []


def test_flips_at_rounding_boundaries_are_followed_and_counted() -> None:
    layer = EpitomeLinear(4, 2, shape=EpitomeShape(2, 4, 1, 1), activation_bits=4)
    quantizer = layer.activation
    assert isinstance(quantizer, ActivationQuantizer)
    with torch.no_grad():
        quantizer.step.fill_(0.5)
    x = torch.tensor([[0.0, 0.2499999, 1.2500001, 3.0]])
    followed = comparison.Followed(layer, Path("f"))
    given = torch.tensor([[0.0, 0.5, 1.0, 3.0]])  # two of them to the other side
    with followed.by([given]):
        out = layer(x)
    torch.testing.assert_close(out, F.linear(given, layer.weight, layer.bias))
    assert (followed.flips, followed.activations) == (2, 4)
    assert not torch.equal(layer(x), out), "each on its own again"
    far = torch.tensor([[0.0, 0.0, 1.5, 2.5]])
    with followed.by([far]), pytest.raises(EpimError, match=r"1 of the 4 rounded inputs"):
        layer(x)
