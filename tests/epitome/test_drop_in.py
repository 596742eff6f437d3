"""The epitome layers in everything that PyTorch does with a convolution."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from epim_nas import (
    Choice,
    Design,
    EpitomeConv2d,
    EpitomeLinear,
    EpitomeShape,
    SamplingPlan,
    apply_design,
    load_design,
)
from epim_nas.epitome.functional import epitome_conv2d
from epim_nas.epitome.sampling import expand, project
from tests.epitome.test_plan import plans, reordered_plans

WRAPPINGS = [
    {"wrap": wrap, "wrap_in": wrap_in} for wrap in (False, True) for wrap_in in (False, True)
]


def make(groups: int = 1, reorder: bool = False, **options: Any) -> EpitomeConv2d:
    """A layer of 8 -> 12 channels a group, with partial slabs, spatial growth and a bias."""
    torch.manual_seed(0)
    shape = EpitomeShape(5, 3, 4, 3)
    layer = EpitomeConv2d(
        8 * groups, 12 * groups, 3, padding=1, groups=groups, shape=shape, **options
    )
    if reorder:
        generator = np.random.default_rng(0)
        outputs = [g * 12 + i for g in range(groups) for i in generator.permutation(12)]
        layer.reorder(outputs, [generator.permutation(8).tolist()])
    return layer


def images(layer: EpitomeConv2d, **options: Any) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, layer.in_channels, 7, 6, **options)


def dense_twin(layer: EpitomeConv2d) -> nn.Conv2d:
    """The dense convolution with the layer's weight."""
    dense = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, padding=1, groups=layer.groups
    ).to(layer.epitome.dtype)
    with torch.no_grad():
        dense.weight.copy_(layer.weight)
        dense.bias.copy_(layer.bias)
    return dense


@settings(max_examples=150)
@given(st.one_of(plans(), reordered_plans()), st.integers(0, 1000))
def test_output_and_gradients_follow_the_plan_element_by_element(
    plan: SamplingPlan, seed: int
) -> None:
    torch.manual_seed(seed)
    outputs, inputs, *kernel = plan.conv_shape
    geometry = nn.Conv2d(
        inputs * plan.groups, outputs, kernel, padding=2, groups=plan.groups, bias=False
    ).double()
    epitome = torch.randn(plan.shape.as_tuple, dtype=torch.double, requires_grad=True)
    x = torch.randn(2, inputs * plan.groups, 4, 5, dtype=torch.double, requires_grad=True)
    out = epitome_conv2d(geometry, x, epitome, plan)
    assert torch.equal(expand(epitome, plan), epitome.flatten()[torch.tensor(plan.weight_index)])

    weight = epitome.detach().flatten()[torch.tensor(plan.weight_index)].requires_grad_()
    twin = x.detach().clone().requires_grad_()
    expected = F.conv2d(twin, weight, padding=2, groups=plan.groups)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    factor = torch.randn_like(out)
    (out * factor).sum().backward()
    (expected * factor).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad, rtol=0, atol=1e-10)
    # The gradient of an element is the sum over its replicas.
    sums = np.bincount(
        plan.weight_index.ravel(), weight.grad.numpy().ravel(), minlength=epitome.numel()
    )
    np.testing.assert_allclose(epitome.grad.numpy().ravel(), sums, atol=1e-9)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("reorder", [False, True])
def test_second_derivatives(wrapping: dict, groups: int, reorder: bool) -> None:
    layer = make(groups, reorder, **wrapping).double()
    x = images(layer, dtype=torch.double)[:1, :, :3, :3].requires_grad_()

    def run(x: Tensor, epitome: Tensor, bias: Tensor) -> Tensor:
        parameters = {"epitome": epitome, "bias": bias}
        return torch.func.functional_call(layer, parameters, (x,)).square()

    arguments = (x, layer.epitome, layer.bias)
    assert torch.autograd.gradcheck(run, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, arguments, fast_mode=True)


def test_projection_has_second_derivatives_too() -> None:
    plan = SamplingPlan.build((6, 5, 3, 3), EpitomeShape(4, 2, 4, 3))
    weight = torch.randn(plan.conv_shape, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda w: project(w, plan).square(), (weight,))


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("reorder", [False, True])
def test_channels_last_is_kept(wrapping: dict, groups: int, reorder: bool) -> None:
    layer = make(groups, reorder, **wrapping)
    x = images(layer)
    expected = layer(x)
    last = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    found = x.to(memory_format=torch.channels_last).requires_grad_()
    out = last(found)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    for tensor in (out, found.grad, last.epitome.grad):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous()


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("reorder", [False, True])
def test_autocast(wrapping: dict, reorder: bool) -> None:
    layer = make(2, reorder, **wrapping)
    dense = dense_twin(layer)
    x = images(layer)
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = layer(x), dense(x)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected.float(), atol=0.03, rtol=0.03)
    out.float().square().mean().backward()
    assert layer.epitome.grad.dtype == torch.float32


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("reorder", [False, True])
def test_compile_in_one_graph(wrapping: dict, groups: int, reorder: bool) -> None:
    torch._dynamo.reset()
    layer = make(groups, reorder, **wrapping)
    x = images(layer, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layer(x))
        inputs = (x, layer.epitome, layer.bias)
        found = torch.autograd.grad(compiled(x).square().sum(), inputs)
    expected = torch.autograd.grad(layer(x).square().sum(), inputs)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_compile_with_quantization_once_it_is_calibrated() -> None:
    torch._dynamo.reset()
    layer = make(wrap=True, weight_bits=3, activation_bits=4)
    x = images(layer)
    layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(out, layer(x))


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("reorder", [False, True])
@pytest.mark.parametrize("bits", [{}, {"weight_bits": 3, "activation_bits": 4}])
def test_gradients_of_samples_by_vmap(wrapping: dict, reorder: bool, bits: dict) -> None:
    layer = make(2, reorder, **wrapping, **bits)
    x = images(layer)
    layer(x)  # sets the activations' range

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (image[None],)).square().sum()

    parameters = {name: value.detach() for name, value in layer.named_parameters()}
    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for number, image in enumerate(x):
        layer.zero_grad()
        layer(image[None]).square().sum().backward()
        torch.testing.assert_close(found["epitome"][number], layer.epitome.grad)
        torch.testing.assert_close(found["bias"][number], layer.bias.grad)
        if bits:
            step = dict(layer.named_parameters())["activation.step"]
            torch.testing.assert_close(found["activation.step"][number], step.grad)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("dynamo", [False, True])
def test_export_to_onnx(wrapping: dict, dynamo: bool) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    layer = make(2, reorder=True, **wrapping).eval()
    x = images(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            graph = torch.onnx.export(layer, (x,), dynamo=True, verbose=False).model_proto
        else:
            file = io.BytesIO()
            torch.onnx.export(layer, (x,), file, dynamo=False)
            graph = onnx.load_model_from_string(file.getvalue())
    (out,) = ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: x.numpy()})
    np.testing.assert_allclose(out, layer(x).detach().numpy(), atol=1e-5)
    # The epitome is expanded when the graph is made: nothing else works on weights.
    assert [node.op_type for node in graph.graph.node].count("Conv") == 1


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_one_image_without_a_batch(wrapping: dict) -> None:
    layer = make(2, **wrapping)
    x = images(layer)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_depthwise(wrapping: dict) -> None:
    torch.manual_seed(0)
    layer = EpitomeConv2d(
        6, 12, 3, groups=6, shape=EpitomeShape(2, 1, 3, 3), padding=1, **wrapping
    ).double()
    x = torch.randn(2, 6, 5, 5, dtype=torch.double)
    torch.testing.assert_close(layer(x), dense_twin(layer)(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_state_pickles_and_copies(wrapping: dict) -> None:
    layer = make(reorder=True, weight_bits=4, activation_bits=4, **wrapping)
    x = images(layer)
    out = layer(x)
    assert {name for name, _ in layer.named_parameters()} >= {"epitome", "bias"}
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    twins = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ]
    for twin in twins:
        assert twin.plan == layer.plan
        assert torch.equal(twin(x), out)
    other = make(weight_bits=4, activation_bits=4, **wrapping)
    nn.init.zeros_(other.epitome)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), out)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_identity_is_the_dense_layer_bit_for_bit(groups: int, last: bool) -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(8, 16, 3, padding=1, groups=groups)
    layer = EpitomeConv2d(
        8, 16, 3, padding=1, groups=groups, shape=EpitomeShape(16, 8 // groups, 3, 3)
    )
    layer.project_from(dense.weight)
    with torch.no_grad():
        layer.bias.copy_(dense.bias)
    gradients = []
    for module in (dense, layer):
        module.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        x = torch.arange(2 * 8 * 6 * 6.0).sin().reshape(2, 8, 6, 6).requires_grad_()
        out = module(x)
        out.square().sum().backward()
        gradients.append([out, x.grad, *(value.grad for value in module.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_no_copy_of_the_weight_outlives_a_step(wrapping: dict) -> None:
    layer = EpitomeConv2d(48, 80, 3, shape=EpitomeShape(40, 24, 3, 3), bias=False, **wrapping)
    x = torch.randn(1, 48, 5, 5)
    saved: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        out = layer(x)
    # A convolution needs its input and its weight; the weight here is what has to be computed.
    rows = 40 if layer.plan.wrap else 80
    columns = 24 if layer.plan.wrap_in else 48
    assert sorted(saved) == sorted([(1, columns, 5, 5), (rows, columns, 3, 3)])
    out.sum().backward()
    del out
    gc.collect()
    found = [item for item in gc.get_objects() if type(item) in (Tensor, nn.Parameter)]
    tensors = [item for item in found if not item.is_nested]  # those have no shape
    owned = {id(layer.epitome), id(layer.epitome.grad)}
    assert not [t for t in tensors if t.shape == (rows, columns, 3, 3) and id(t) not in owned]


def test_designs_carry_input_wrapping(tmp_path: Path) -> None:
    choice = Choice(EpitomeShape(12, 4, 3, 3), patch=(12, 4), wrap_in=True)
    design = Design("net", {"0": choice, "1": Choice(weight_bits=3)})
    design.save(tmp_path / "d.yaml")
    assert load_design(tmp_path / "d.yaml").choices == design.choices
    assert (tmp_path / "d.yaml").read_text().count("wrap_in") == 1, "absent where it is not used"
    model = nn.Sequential(nn.Conv2d(8, 12, 3), nn.Conv2d(12, 6, 1))
    layer = apply_design(model, design)[0]
    assert layer.plan.wrap_in
    torch.testing.assert_close(layer.weight[:, :4], layer.weight[:, 4:])
    torch.testing.assert_close(
        layer.weight[:, :4], (model[0].weight[:, :4] + model[0].weight[:, 4:]) / 2
    )


def test_indices_made_in_inference_mode_serve_training_later() -> None:
    layer = make(reorder=True, wrap=True)
    with torch.inference_mode():
        layer(images(layer))
    layer(images(layer)).sum().backward()
    assert layer.epitome.grad is not None


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_linear_in_all_shapes_of_input(wrapping: dict) -> None:
    torch.manual_seed(0)
    layer = EpitomeLinear(14, 10, shape=EpitomeShape(4, 5, 1, 1), **wrapping).double()
    for shape in ((14,), (3, 14), (2, 3, 14)):
        x = torch.randn(*shape, dtype=torch.double)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
