"""Steps and rounding of weights against brute force and the papers' equations."""

from __future__ import annotations

import copy
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epim_nas import Choice, Design, EpitomeShape, InputError, SamplingPlan, apply_design, load_chip
from epim_nas.epitome.layers import EpitomeConv2d, EpitomeLinear
from epim_nas.epitome.quantization import (
    CrossbarBlock,
    Quantization,
    WeightQuantizer,
    quantize_weight,
    weight_step,
)
from epim_nas.epitome.quantization.least_squares import clipping_step, least_squares_step
from epim_nas.epitome.sampling import expand
from epim_nas.hardware.mapping import crossbar_granularity, map_plan, quantized_by_crossbar

OVERLAPPING = SamplingPlan.build((12, 16, 3, 3), EpitomeShape(8, 8, 4, 4), patch=(6, 4))
CROSSBAR = CrossbarBlock(in_channels=3, columns=8, columns_per_output=3)
GRANULARITIES = [
    {"granularity": "tensor"},
    {"granularity": "channel"},
    {"granularity": "crossbar", "block": CROSSBAR},
]


def random_epitome(seed: int, plan: SamplingPlan = OVERLAPPING) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(plan.shape.out_channels, 1, 1, 1, generator=generator) + 0.1
    return torch.randn(plan.shape.as_tuple, generator=generator) * scale


def block_of(plan: SamplingPlan, options: Quantization) -> np.ndarray:
    """The block of every epitome element, element by element."""
    blocks = np.empty(plan.shape.as_tuple, dtype=object)
    for o, i, h, w in np.ndindex(*plan.shape.as_tuple):
        if options.granularity == "tensor":
            blocks[o, i, h, w] = 0
        elif options.granularity == "channel":
            blocks[o, i, h, w] = o
        else:
            first_column = o * options.block.columns_per_output
            blocks[o, i, h, w] = (first_column // options.block.columns, i // 3)
    return blocks


def error_of_weight(epitome: torch.Tensor, step: torch.Tensor, levels: int) -> float:
    rounded = (epitome / step).round().clamp(-levels, levels) * step
    return float((expand(rounded, OVERLAPPING) - expand(epitome, OVERLAPPING)).square().sum())


@given(
    st.lists(st.tuples(st.floats(-4, 4, width=32), st.integers(0, 4)), min_size=1, max_size=4),
    st.sampled_from([1, 2, 3]),
)
@settings(max_examples=60)
def test_least_squares_step_is_the_best_of_all_integer_assignments(
    elements: list[tuple[float, int]], levels: int
) -> None:
    x, n = (np.array(column, dtype=np.float64) for column in zip(*elements, strict=True))
    best = float((n * x**2).sum())
    for q in product(range(-levels, levels + 1), repeat=len(x)):
        square = (n * np.square(q)).sum()
        if square:
            best = min(best, float((n * x**2).sum() - (n * x * q).sum() ** 2 / square))
    step = float(least_squares_step(torch.tensor(x)[None], torch.tensor(n)[None], levels))
    rounded = np.clip(np.round(x / step), -levels, levels) * step if step else 0 * x
    assert (n * (x - rounded) ** 2).sum() == pytest.approx(best, abs=1e-9)


def test_many_blocks_give_the_steps_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([least_squares_step(row[None], None, 7) for row in values])
    monkeypatch.setattr("epim_nas.epitome.quantization.least_squares._CHUNK", 800)
    assert torch.equal(least_squares_step(values, None, 7), alone)


@pytest.mark.parametrize("levels", [31, 255])
def test_clipping_step_is_close_to_the_exact_one(levels: int) -> None:
    values = torch.randn(3, 300, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    values[0, 0] = 12.0  # an outlier that is worth clipping
    counts = torch.randint(0, 4, values.shape, generator=torch.Generator().manual_seed(2))

    def error(step: torch.Tensor) -> torch.Tensor:
        rounded = (values / step[:, None]).round().clamp(-levels, levels) * step[:, None]
        return (counts * (values - rounded).square()).sum(1)

    exact = error(least_squares_step(values, counts, levels))
    assert (error(clipping_step(values, counts, levels)) <= 1.1 * exact).all()


@pytest.mark.parametrize("kind", GRANULARITIES, ids=lambda kind: kind["granularity"])
@pytest.mark.parametrize("bits", [2, 3, 5])
def test_repeats_weighted_step_has_the_least_error_of_the_expanded_weight(
    kind: dict, bits: int
) -> None:
    epitome = random_epitome(bits)
    weighted = Quantization(**kind, weight_range="least_squares", by_repeats=True)
    step = weight_step(epitome, bits, OVERLAPPING, weighted)
    levels = 2 ** (bits - 1) - 1
    least = error_of_weight(epitome, step, levels)
    for factor in (0.7, 0.9, 0.99, 1.01, 1.1, 1.4):
        assert error_of_weight(epitome, step * factor, levels) >= least * (1 - 1e-5)
    for other in ("max", "gaussian", "least_squares"):
        options = Quantization(**kind, weight_range=other)
        found = weight_step(epitome, bits, OVERLAPPING, options)
        assert error_of_weight(epitome, found, levels) >= least * (1 - 1e-5)


@pytest.mark.parametrize("kind", GRANULARITIES, ids=lambda kind: kind["granularity"])
@pytest.mark.parametrize("weights", [None, (0.75, 0.25), (0.5, 0.0)])
@pytest.mark.parametrize("weight_range", ["max", "gaussian"])
def test_ranges_equal_those_taken_element_by_element(
    kind: dict, weights: tuple | None, weight_range: str
) -> None:
    options = Quantization(**kind, weight_range=weight_range, overlap_weights=weights)
    epitome = random_epitome(3)
    found = weight_step(epitome, 3, OVERLAPPING, options).expand_as(epitome).numpy()
    values, repeats = epitome.double().numpy(), OVERLAPPING.repeats
    blocks = block_of(OVERLAPPING, options)
    mean = repeats[repeats > 0].mean()

    def step(chosen: np.ndarray) -> float:
        if weight_range == "max":
            return float(np.abs(values[chosen]).max()) / 3
        return float(np.sqrt(np.square(values[chosen]).mean())) * 0.6508  # Max (1960), 7 values

    for block in set(blocks.ravel()):
        inside = np.array([b == block for b in blocks.ravel()]).reshape(blocks.shape)
        if weights is None:
            expected = step(inside)
        else:
            overlapped = inside & (repeats > mean)
            rest = inside & (repeats > 0) & (repeats <= mean)
            # Elements of one kind stand for both where there are no others.
            used = inside & (repeats > 0)
            kinds = [kind if kind.any() else used for kind in (overlapped, rest)]
            expected = weights[0] * step(kinds[0]) + weights[1] * step(kinds[1])
        np.testing.assert_allclose(found[inside], expected, rtol=2e-4)


def test_root_mean_square_by_repeats_is_that_of_the_expanded_weight() -> None:
    epitome = random_epitome(4)
    options = Quantization(granularity="tensor", weight_range="gaussian", by_repeats=True)
    step = float(weight_step(epitome, 3, OVERLAPPING, options))
    weight = expand(epitome, OVERLAPPING)
    assert step == pytest.approx(float(weight.square().mean().sqrt()) * 0.6508, rel=2e-4)


@pytest.mark.parametrize("packing", ["sliced", "packed"])
@pytest.mark.parametrize("bits", [2, 4, 9])
def test_blocks_are_the_crossbars_of_the_mapping(packing: str, bits: int) -> None:
    chip = load_chip("xbar_64", [f"mapping.packing={packing}"])
    plan = SamplingPlan.build((96, 40, 3, 3), EpitomeShape(80, 20, 4, 3))
    mapping = map_plan(plan, bits, plan.shape.size, chip)
    options = quantized_by_crossbar(Quantization(), chip)(plan, bits)
    assert options.block == crossbar_granularity(plan, bits, chip)
    assert options.block.in_channels == 64 // (4 * 3)
    steps = weight_step(torch.rand(plan.shape.as_tuple) + 0.1, bits, plan, options)
    different = len(steps.unique())
    # Slices on further crossbars share the step of their outputs.
    per_output = bits - 1 if packing == "sliced" else 1
    assert different * per_output == mapping.crossbars


def test_a_layer_whose_weights_repeat_alike_is_quantized_as_without_repeats() -> None:
    plan = SamplingPlan.build((16, 8, 3, 3), EpitomeShape(8, 4, 3, 3))
    epitome = random_epitome(5, plan)
    for options in (
        Quantization(weight_range="gaussian", by_repeats=True),
        Quantization(weight_range="least_squares", by_repeats=True),
        Quantization(weight_range="max", overlap_weights=(0.75, 0.25)),
    ):
        plain = Quantization(weight_range=options.weight_range)
        torch.testing.assert_close(
            quantize_weight(epitome, 3, plan, options), quantize_weight(epitome, 3, plan, plain)
        )


def test_learned_step_has_the_gradients_of_lsq() -> None:
    # Esser et al., ICLR 2020, equations 3 and 5, and the scale of section 2.2; one step a channel.
    plan = SamplingPlan.identity((1, 3, 1, 1))
    quantizer = WeightQuantizer(3, plan, Quantization(learned_weight_step=True))
    with torch.no_grad():
        quantizer.step.fill_(0.5)
    v = torch.tensor([0.6, 9.0, -0.3]).reshape(1, 3, 1, 1).requires_grad_()
    out = quantizer(v)
    assert out.flatten().tolist() == [0.5, 1.5, -0.5]
    (out * torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)).sum().backward()
    assert v.grad.flatten().tolist() == [1.0, 0.0, 4.0]
    slopes = [-0.6 / 0.5 + 1, 3.0, 0.3 / 0.5 - 1]
    expected = slopes[0] + 2 * slopes[1] + 4 * slopes[2]
    assert quantizer.step.grad.item() == pytest.approx(expected / (3 * 3) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("kind", GRANULARITIES, ids=lambda kind: kind["granularity"])
def test_gradient_of_every_step_is_the_sum_over_its_elements(kind: dict) -> None:
    options = Quantization(**kind, weight_range="least_squares", learned_weight_step=True)
    quantizer = WeightQuantizer(3, OVERLAPPING, options)
    epitome = random_epitome(6)
    quantizer.calibrate(epitome)
    factor = torch.randn(epitome.shape, generator=torch.Generator().manual_seed(7))
    (quantizer(epitome) * factor).sum().backward()
    ratio = epitome / quantizer.steps(epitome)
    slope = torch.where(ratio.abs() >= 3, 3 * ratio.sign(), ratio.round() - ratio) * factor
    blocks = block_of(OVERLAPPING, options).ravel()
    expected = []
    for block in sorted(set(blocks)):
        inside = torch.tensor([b == block for b in blocks]).reshape(epitome.shape)
        expected.append(float(slope[inside].sum()) / (3 * int(inside.sum())) ** 0.5)
    torch.testing.assert_close(quantizer.step.grad, torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("kind", GRANULARITIES, ids=lambda kind: kind["granularity"])
def test_integers_times_steps_are_the_quantized_epitome(kind: dict, learned: bool) -> None:
    options = Quantization(**kind, weight_range="least_squares", learned_weight_step=learned)
    quantizer = WeightQuantizer(4, OVERLAPPING, options)
    epitome = random_epitome(8)
    integers = quantizer.integers(epitome)
    assert integers.abs().max() <= 7
    torch.testing.assert_close(quantizer(epitome), integers * quantizer.steps(epitome))


def test_learning_lowers_the_error_from_a_bad_start() -> None:
    epitome = random_epitome(9)
    options = Quantization(granularity="tensor", weight_range="max", learned_weight_step=True)
    quantizer = WeightQuantizer(3, OVERLAPPING, options)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1e-3)
    errors = []
    for _ in range(200):
        error = (expand(quantizer(epitome), OVERLAPPING) - expand(epitome, OVERLAPPING)).square()
        optimizer.zero_grad()
        error.sum().backward()
        optimizer.step()
        errors.append(float(error.detach().sum()))
    best = Quantization(granularity="tensor", weight_range="least_squares", by_repeats=True)
    least = error_of_weight(epitome, weight_step(epitome, 3, OVERLAPPING, best), 3)
    assert errors[0] > 1.5 * least
    assert errors[-1] < 1.1 * least


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_weight_is_exactly_what_the_cells_hold(granularity: dict, learned: bool) -> None:
    options = Quantization(**granularity, learned_weight_step=learned)
    for seed in range(10):
        epitome = random_epitome(seed)
        quantizer = WeightQuantizer(5, OVERLAPPING, options)
        held = quantizer.integers(epitome) * quantizer.steps(epitome)
        assert torch.equal(quantizer(epitome), held)


def test_learned_layers_survive_state_dict_deepcopy_and_projection() -> None:
    options = Quantization(learned_weight_step=True, weight_range="least_squares")
    shape = EpitomeShape(8, 4, 4, 4)

    def make() -> EpitomeConv2d:
        return EpitomeConv2d(8, 16, 3, shape=shape, weight_bits=3, quantization=options)

    torch.manual_seed(10)
    layer, other = make(), make()
    x = torch.randn(2, 8, 6, 6)
    out = layer(x)
    assert other(x).shape == out.shape  # both have used their own step
    with torch.no_grad():
        layer.weight_quantizer.step.mul_(1.3)
    changed = layer(x)
    assert not torch.equal(changed, out)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), changed)
    assert torch.equal(copy.deepcopy(layer)(x), changed)
    dense = torch.randn(16, 8, 3, 3)
    layer.project_from(dense)
    expected = weight_step(layer.epitome, 3, layer.plan, options)
    assert torch.equal(layer.weight_quantizer.steps(layer.epitome), expected)
    loaded = make()
    loaded.load_state_dict(make().state_dict())  # a state from before the first use
    loaded(x)
    assert (loaded.weight_quantizer.step > 0).all()


def test_a_rule_without_a_learned_step_has_no_state() -> None:
    layer = EpitomeLinear(8, 16, shape=EpitomeShape(8, 4, 1, 1), weight_bits=3)
    assert set(layer.state_dict()) == {"epitome", "bias"}
    layer = EpitomeConv2d(
        8,
        16,
        3,
        shape=EpitomeShape(8, 4, 3, 3),
        quantization=Quantization(learned_weight_step=True),
    )
    assert set(layer.state_dict()) == {"epitome", "bias"}, "nothing to learn in floating point"


def test_a_design_takes_options_for_all_layers_or_a_rule() -> None:
    torch.manual_seed(11)
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3), torch.nn.Conv2d(16, 40, 3))
    design = Design(
        "two", {"0": Choice(weight_bits=3), "1": Choice(EpitomeShape(40, 8, 4, 4), weight_bits=5)}
    )
    chip = load_chip("xbar_64")
    learned = Quantization(learned_weight_step=True)
    by_channel = apply_design(model, design, quantization=learned)
    assert [len(layer.weight_quantizer.step) for layer in by_channel] == [16, 40]
    by_crossbar = apply_design(model, design, quantization=quantized_by_crossbar(learned, chip))
    # 64 rows: 7 channels of 3x3, 4 of 4x4; 64 columns: 32 outputs of 2 slices, 16 of 4.
    assert [len(layer.weight_quantizer.step) for layer in by_crossbar] == [2 * 1, 2 * 3]
    by_crossbar(torch.randn(1, 8, 9, 9)).sum().backward()
    assert all((layer.weight_quantizer.step.grad != 0).any() for layer in by_crossbar)


@pytest.mark.parametrize(
    ("arguments", "field", "allowed"),
    [
        ({"granularity": "crosbar"}, "granularity", "Did you mean `crossbar`"),
        ({"weight_range": "minmax"}, "weight_range", "least_squares"),
        ({"activation_range": "mean"}, "activation_range", "percentile"),
        ({"percentile": 0.0}, "percentile", "to 100"),
        ({"overlap_weights": (-1.0, 1.0)}, "overlap_weights", "from 0"),
        ({"overlap_weights": (float("nan"), 1.0)}, "overlap_weights", "from 0"),
        ({"overlap_weights": (0.0, 0.0)}, "overlap_weights", "positive"),
        ({"overlap_weights": (1.0, 1.0), "by_repeats": True}, "overlap_weights", "one way"),
        ({"block": CROSSBAR}, "block", "crossbar"),
    ],
)
def test_wrong_options_are_refused(arguments: dict, field: str, allowed: str) -> None:
    with pytest.raises(InputError, match=f"quantization.{field}.*{allowed}"):
        Quantization(**arguments)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(InputError, match=r"quantization\.block.*quantized_by_crossbar"):
        EpitomeConv2d(
            8, 16, 3, shape=EpitomeShape(8, 4, 3, 3), weight_bits=3,
            quantization=Quantization(granularity="crossbar"),
        )  # fmt: skip
    with pytest.raises(InputError, match="in_channels"):
        CrossbarBlock(in_channels=0, columns=64)
    for bits in (1, 33, True):
        with pytest.raises(InputError, match=r"weight_bits.*2 to 32"):
            WeightQuantizer(bits, OVERLAPPING)
    with pytest.raises(InputError, match=r"weight_bits.*none"):
        WeightQuantizer(None, OVERLAPPING).steps(random_epitome(0))
    chip = load_chip("xbar_64")
    large = SamplingPlan.build((64, 64, 3, 3), EpitomeShape(16, 2, 9, 9))
    with pytest.raises(InputError, match=r"81 rows.*at most 64"):
        crossbar_granularity(large, 3, chip)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_epitome_is_refused(value: float) -> None:
    broken = random_epitome(12)
    broken[0, 0, 0, 0] = value
    for options in (Quantization(), Quantization(learned_weight_step=True)):
        quantizer = WeightQuantizer(3, OVERLAPPING, options)
        with pytest.raises(InputError, match=r"epitome.*NaN or Inf"):
            quantizer.integers(broken)


@pytest.mark.parametrize(
    "options",
    [
        Quantization(),
        Quantization(granularity="crossbar", block=CROSSBAR, learned_weight_step=True),
        Quantization(overlap_weights=(0.7, 0.3)),
        Quantization(weight_range="least_squares", by_repeats=True),
    ],
    ids=["default", "crossbar learned", "overlap", "least squares"],
)
def test_compiled_layers_have_no_graph_breaks(options: Quantization) -> None:
    torch.manual_seed(13)
    shape = EpitomeShape(8, 4, 4, 4)
    layer = EpitomeConv2d(8, 16, 3, shape=shape, weight_bits=3, quantization=options)
    x = torch.randn(2, 8, 6, 6)
    expected = layer(x)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
