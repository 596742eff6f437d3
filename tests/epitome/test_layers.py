"""The epitome layers, against the dense layers they stand for."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from epim_nas import (
    Choice,
    Design,
    EpitomeConv2d,
    EpitomeLinear,
    EpitomeShape,
    InputError,
    SamplingPlan,
    apply_design,
)
from epim_nas.epitome.quantization.activations import ActivationQuantizer, activation_step
from epim_nas.epitome.quantization.ranges import gaussian_step
from epim_nas.epitome.quantization.steps import weight_levels
from epim_nas.epitome.quantization.weights import quantize_weight, weight_step
from epim_nas.epitome.sampling import channel_index, expand, project

GEOMETRIES = [
    dict(zip(("stride", "padding", "dilation", "groups", "padding_mode"), values, strict=True))
    for values in itertools.chain(
        itertools.product([1, 2], [0, 1, "same"], [1, 2], [1], ["zeros"]),
        itertools.product([1], [1, (2, 1)], [1], [2, 4], ["zeros", "circular", "reflect"]),
        [(1, "same", 2, 1, "replicate"), (1, "valid", 1, 1, "reflect")],
    )
    if not (values[0] == 2 and values[1] == "same")
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("wrap_in", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_convolution_with_its_weight(
    geometry: dict, wrap: bool, wrap_in: bool, bias: bool
) -> None:
    torch.manual_seed(0)
    groups = geometry["groups"]
    shape = EpitomeShape(6, max(1, 3 // groups), 3, 3)
    layer = EpitomeConv2d(
        8, 16, 3, bias=bias, shape=shape, wrap=wrap, wrap_in=wrap_in, **geometry
    ).double()
    dense = nn.Conv2d(8, 16, 3, bias=bias, **geometry).double()
    with torch.no_grad():
        dense.weight.copy_(layer.weight)
        if bias:
            dense.bias.copy_(layer.bias)
    x = torch.randn(2, 8, 9, 11, dtype=torch.double)
    torch.testing.assert_close(layer(x), dense(x), rtol=0, atol=1e-12)


def test_a_wrapped_layer_computes_only_the_distinct_channels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed = []
    real = F.conv2d

    def spy(x: torch.Tensor, weight: torch.Tensor, *args: object) -> torch.Tensor:
        computed.append(weight.shape[0])
        return real(x, weight, *args)

    monkeypatch.setattr(F, "conv2d", spy)
    EpitomeConv2d(8, 32, 3, shape=EpitomeShape(8, 4, 3, 3), wrap=True)(torch.randn(1, 8, 5, 5))
    EpitomeConv2d(8, 32, 3, shape=EpitomeShape(8, 4, 3, 3))(torch.randn(1, 8, 5, 5))
    assert computed == [8, 32]


def test_identity_plan_is_the_dense_convolution_bit_for_bit() -> None:
    torch.manual_seed(1)
    dense = nn.Conv2d(8, 16, 3, padding=1)
    layer = EpitomeConv2d(8, 16, 3, padding=1, shape=EpitomeShape(16, 8, 3, 3))
    layer.project_from(dense.weight)
    with torch.no_grad():
        layer.bias.copy_(dense.bias)
    x = torch.randn(4, 8, 12, 12)
    assert torch.equal(layer(x), dense(x))
    assert torch.equal(layer.epitome, dense.weight)


@pytest.mark.parametrize("wrap", [False, True])
def test_gradient_is_the_sum_over_replicas(wrap: bool) -> None:
    torch.manual_seed(2)
    layer = EpitomeConv2d(6, 9, 3, shape=EpitomeShape(4, 3, 4, 4), wrap=wrap).double()
    x = torch.randn(2, 6, 7, 7, dtype=torch.double)
    layer(x).square().sum().backward()
    weight = layer.weight.detach().requires_grad_()
    F.conv2d(x, weight, layer.bias).square().sum().backward()
    expected = np.bincount(
        layer.plan.weight_index.ravel(),
        weights=weight.grad.numpy().ravel(),
        minlength=layer.epitome.numel(),
    )
    np.testing.assert_allclose(layer.epitome.grad.numpy().ravel(), expected, atol=1e-9)


def test_linear_equals_the_linear_layer_with_its_weight() -> None:
    torch.manual_seed(3)
    for wrap in (False, True):
        layer = EpitomeLinear(12, 10, shape=EpitomeShape(4, 5, 1, 1), wrap=wrap).double()
        x = torch.randn(3, 12, dtype=torch.double)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
        assert layer.weight.shape == (10, 12)


def test_state_dict_deepcopy_and_channels_last() -> None:
    torch.manual_seed(4)
    make = lambda: EpitomeConv2d(  # noqa: E731
        8, 16, 3, shape=EpitomeShape(8, 4, 3, 3), weight_bits=3, activation_bits=4
    )
    layer, other = make(), make()
    x = torch.randn(2, 8, 6, 6)
    out = layer(x)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), out), "step and sign of the activations travel with the state"
    assert torch.equal(copy.deepcopy(layer)(x), out)
    last = layer(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, out, rtol=1e-4, atol=1e-5)


def test_autocast_and_compile_free_export_run() -> None:
    layer = EpitomeConv2d(8, 16, 3, shape=EpitomeShape(8, 4, 3, 3), wrap=True, activation_bits=8)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(2, 8, 6, 6))
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"groups": 3}, "groups"),
        ({"weight_bits": 1}, "weight_bits"),
        ({"weight_bits": 40}, "weight_bits"),
        ({"activation_bits": 1}, "activation_bits"),
        ({"padding_mode": "mirror"}, "padding_mode"),
        ({"padding": "full"}, "padding"),
        ({"padding": "same", "stride": 2}, "padding"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, field: str) -> None:
    with pytest.raises(InputError, match=field):
        EpitomeConv2d(8, 16, 3, shape=EpitomeShape(8, 4, 3, 3), **arguments)


def test_projection_refuses_a_broken_weight() -> None:
    layer = EpitomeConv2d(8, 16, 3, shape=EpitomeShape(8, 4, 3, 3))
    with pytest.raises(InputError, match="NaN"):
        layer.project_from(torch.full((16, 8, 3, 3), float("nan")))
    with pytest.raises(InputError, match="16, 8, 3, 3"):
        layer.project_from(torch.zeros(16, 8, 1, 1))
    with pytest.raises(InputError, match="importance"):
        project(torch.zeros(16, 8, 3, 3), layer.plan, torch.ones(16, 1, 1, 1))


def test_an_input_of_other_channels_is_refused_before_it_is_summed() -> None:
    layer = EpitomeConv2d(8, 16, 3, shape=EpitomeShape(8, 4, 3, 3), wrap_in=True)
    with pytest.raises(InputError, match="8 channels"):
        layer(torch.zeros(1, 12, 5, 5))


def test_an_epitome_that_does_not_fit_is_refused_with_layer_and_value() -> None:
    design = Design("net", {"1": Choice(EpitomeShape(8, 9, 3, 3))})
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(InputError, match=r"layers\.1: epitome\.in_channels: 9 does not fit"):
        apply_design(model, design)
    nan = copy.deepcopy(model)
    nn.init.constant_(nan[1].weight, float("inf"))
    design = Design("net", {"1": Choice(EpitomeShape(8, 4, 3, 3))})
    with pytest.raises(InputError, match=r"layers\.1: weight: has NaN or Inf"):
        apply_design(nan, design)


@given(st.integers(0, 10**6), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_projection_is_the_least_squares_solution(seed: int, wrap: bool, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    conv = (int(rng.integers(2, 7)), int(rng.integers(2, 7)), 3, 3)
    shape = EpitomeShape(int(rng.integers(1, conv[0])), int(rng.integers(1, conv[1])), 3, 3)
    plan = SamplingPlan.build(conv, shape, wrap)
    weight = rng.normal(size=conv)
    importance = rng.uniform(0.1, 2.0, size=conv) if weighted else np.ones(conv)
    # The weighted least-squares problem as a matrix: rows weight elements, columns epitome.
    matrix = np.zeros((weight.size, shape.size))
    matrix[np.arange(weight.size), plan.weight_index.ravel()] = 1
    root = np.sqrt(importance.ravel())
    solution = np.linalg.lstsq(matrix * root[:, None], weight.ravel() * root, rcond=None)[0]
    found = project(
        torch.tensor(weight), plan, torch.tensor(importance) if weighted else None
    ).numpy()
    used = plan.repeats.ravel() > 0
    np.testing.assert_allclose(found.ravel()[used], solution[used], atol=2e-5)
    assert (found.ravel()[~used] == 0).all()


def test_projection_of_an_expansion_is_the_epitome() -> None:
    plan = SamplingPlan.build((12, 8, 3, 3), EpitomeShape(6, 4, 4, 4))
    epitome = torch.randn(plan.shape.as_tuple, dtype=torch.double)
    epitome[torch.as_tensor(plan.repeats == 0)] = 0
    torch.testing.assert_close(project(expand(epitome, plan), plan), epitome)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8, 9])
def test_quantized_weights_lie_on_the_grid(bits: int) -> None:
    torch.manual_seed(5)
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    out = quantize_weight(weight, bits)
    levels = weight_levels(bits)
    assert levels == 2 ** (bits - 1) - 1
    integers = out.detach() / weight_step(weight, bits)
    torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-3)
    assert integers.abs().max() <= levels + 1e-3
    assert all(len(channel.unique()) <= 2 * levels + 1 for channel in integers.round())
    out.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight)), "straight through"


def test_quantization_error_falls_with_bits() -> None:
    torch.manual_seed(6)
    weight = torch.randn(8, 16, 3, 3)
    errors = [float((quantize_weight(weight, b) - weight).square().mean()) for b in range(2, 10)]
    assert errors == sorted(errors, reverse=True)
    assert quantize_weight(weight, None) is weight


@pytest.mark.parametrize(
    ("levels", "step"),
    # Max, "Quantizing for minimum distortion" (1960), table of equally spaced quantizers.
    [(1, 1.224), (3, 0.6508), (7, 0.3534)],
)
def test_gaussian_step_is_the_published_one(levels: int, step: float) -> None:
    assert gaussian_step(levels) == pytest.approx(step, abs=5e-4)


def test_gaussian_step_is_a_constant_to_the_compiler() -> None:
    """By hand, since the decorator imports the whole compiler: see that it does the same."""

    def plain(levels: int) -> float:
        return float(levels)

    marked = vars(torch.compiler.assume_constant_result(plain))
    assert marked
    assert marked.items() <= vars(gaussian_step.__wrapped__).items()


def test_gaussian_step_of_many_bits_is_there_at_once() -> None:
    clipped = [gaussian_step(2 ** (bits - 1) - 1) * 2 ** (bits - 1) for bits in range(2, 33)]
    assert clipped == sorted(clipped)
    # Where the error stops being summed level by level nothing jumps.
    ratios = np.diff(clipped[6:12])
    assert ratios.max() < 1.2 * ratios.min()
    # Minimised over the step, level by level, in double precision.
    assert gaussian_step(2047) == pytest.approx(2.44897e-3, rel=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_activation_quantizer_calibrates_once(bits: int, signed: bool) -> None:
    torch.manual_seed(7)
    quantizer = ActivationQuantizer(bits)
    x = torch.randn(64, 8) if signed else torch.randn(64, 8).relu()
    out = quantizer(x)
    assert bool(quantizer.signed) == signed
    low, high = quantizer.range(signed)
    integers = out / quantizer.step
    assert integers.min() >= low - 1e-4
    assert integers.max() <= high + 1e-4
    torch.testing.assert_close(integers, integers.round(), atol=1e-3, rtol=0)
    before = quantizer.step.item()
    quantizer(10 * x)
    assert quantizer.step.item() == before


def test_activation_step_is_close_to_the_best_of_a_fine_search() -> None:
    torch.manual_seed(8)
    x = torch.randn(4000).abs()
    step = float(activation_step(x, 0, 15))
    error = lambda s: float(((x / s).round().clamp(0, 15) * s - x).square().mean())  # noqa: E731
    best = min(error(s) for s in np.linspace(0.02, 0.4, 2000))
    assert error(step) <= 1.05 * best


def test_activation_gradients_follow_finite_differences_outside_rounding() -> None:
    # LSQ: d out / d step is high where x is clipped, and (round(x/s) - x/s) inside.
    quantizer = ActivationQuantizer(2)
    with torch.no_grad():
        quantizer.step.fill_(0.5)
    x = torch.tensor([0.6, 9.0, -1.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 0.0]
    expected = (1.0 - 0.6 / 0.5) + 3.0 + 0.0
    assert quantizer.step.grad.item() == pytest.approx(expected / (3 * 3) ** 0.5, rel=1e-5)


def test_broken_activations_are_refused() -> None:
    with pytest.raises(InputError, match="NaN or Inf"):
        ActivationQuantizer(4)(torch.tensor([1.0, float("inf")]))


def test_the_orders_of_several_wide_designs_stay_at_hand() -> None:
    # Four designs of 50 layers with four output slabs: five orders each, forwards and back.
    orders = list(itertools.islice(itertools.permutations(range(8)), 4 * 50 * 5))
    indices = [
        [channel_index(order, torch.device("cpu"), inverse=inverse) for order in orders]
        for _ in range(2)
        for inverse in (False, True)
    ]
    assert all(a is b for a, b in zip(indices[0], indices[2], strict=True))
    assert all(a is b for a, b in zip(indices[1], indices[3], strict=True))
    for order, index, inverse in zip(orders, indices[0], indices[1], strict=True):
        assert tuple(index.tolist()) == order
        assert torch.equal(index[inverse], torch.arange(8))
