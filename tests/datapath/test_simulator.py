"""The simulated crossbars: exact where they can be, and clipping as loops over cells clip."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from epim_nas import CostModel, EpitomeShape, apply_design
from epim_nas.datapath.cells import SliceRule, program
from epim_nas.datapath.simulator import arrays
from epim_nas.datapath.simulator.cells import conductances
from epim_nas.datapath.simulator.converter import ColumnConverter
from epim_nas.datapath.simulator.counts import count_network
from epim_nas.datapath.simulator.layers import SimulatedLayer
from epim_nas.datapath.simulator.network import simulate
from epim_nas.datapath.simulator.options import Converter, Devices
from epim_nas.datapath.simulator.packing import PackedSlices
from epim_nas.datapath.stored import stored_layer
from epim_nas.datapath.tables import NOTHING
from epim_nas.epitome.design import Choice, Design
from epim_nas.epitome.functional import explicit_padding
from epim_nas.epitome.layers import EpitomeConv2d
from epim_nas.epitome.quantization import Quantization
from epim_nas.errors import InputError
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.components import Components
from epim_nas.hardware.load import load_chip
from epim_nas.hardware.mapping import quantized_by_crossbar
from epim_nas.models.registry import build_model
from epim_nas.models.weights import load_weights
from epim_nas.network.trace import trace
from tests.datapath.simulated import Case, layer_cases, linear


def integer_inputs(layer: SimulatedLayer, images: Tensor) -> Tensor:
    """(N, C, H, W) what the layer's input quantizer makes of images."""
    step = layer.source.activation.step.detach().abs()
    low, high = layer.source.activation.range(bool(layer.source.activation.signed))
    integers = torch.clamp(torch.round(images / step), low, high)
    return integers if images.dim() == 4 else integers[..., None, None]


def padded(layer: SimulatedLayer, x: Tensor) -> Tensor:
    """The inputs with the layer's padding."""
    if not isinstance(layer.source, EpitomeConv2d):
        return x
    mode = layer.source.padding_mode
    mode = "constant" if mode == "zeros" else mode
    return F.pad(x, explicit_padding(layer.source), mode=mode)


def integer_convolution(layer: SimulatedLayer, x: Tensor) -> Tensor:
    """By gathering the weight element by element, in float64."""
    stored = stored_layer(layer.source, Choice(shape=EpitomeShape(1, 1, 1, 1)))
    weight = torch.from_numpy(stored.weights.reshape(-1)[stored.plan.weight_index]).double()
    stride = dilation = (1, 1)
    if isinstance(layer.source, EpitomeConv2d):
        stride, dilation = layer.source.stride, layer.source.dilation
    x = padded(layer, x).double()
    return F.conv2d(x, weight, None, stride, 0, dilation, stored.plan.groups)


@given(layer_cases())
@settings(max_examples=60)
def test_wide_converters_compute_the_integer_convolution_exactly(case: Case) -> None:
    layer = case.simulated()
    x = integer_inputs(layer, case.images)
    expected = integer_convolution(layer, x)
    assert torch.equal(layer.integers(x), expected)
    assert torch.equal(layer.integers(x, exact=True).double(), expected)


@given(layer_cases())
@settings(max_examples=25)
def test_layers_compute_what_the_quantized_network_computes(case: Case) -> None:
    with torch.no_grad():
        expected = case.quantized()(case.images)
        for shortcut in (False, True):
            layer = case.simulated(shortcut=shortcut)
            assert layer.exact == shortcut
            torch.testing.assert_close(layer(case.images), expected, rtol=1e-4, atol=1e-4)


def converted_at_once(driven: list[tuple[int, int]], chip: Chip) -> Iterator[list[tuple[int, int]]]:
    """The (line, value) that are summed before a conversion: every subarray has its converters."""
    dacs = chip.interface.dacs_per_subarray
    for _, lines in itertools.groupby(
        sorted(driven, key=lambda pair: pair[0] // chip.crossbar.subarray_rows),
        key=lambda pair: pair[0] // chip.crossbar.subarray_rows,
    ):
        yield from (list(turn) for turn in batched(lines, dacs))


def batched(lines: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """``lines`` in tuples of ``size`` (``itertools.batched`` of Python 3.12)."""
    left = iter(lines)
    while turn := tuple(itertools.islice(left, size)):
        yield turn


def by_loops(case: Case, layer: SimulatedLayer, x: np.ndarray, adc_bits: int) -> np.ndarray:
    """The outputs of one position (C, Kh, Kw), crossbar by crossbar and cell by cell."""
    chip, tables, grid = case.chip, layer.tables.tables, layer.tables.grid
    choice = case.design["0"]
    stored = stored_layer(layer.source, choice)
    rule = SliceRule.of(choice.weight_bits, chip)
    cells = program(stored.weights, grid, layer.tables.crossbar_rows, rule).astype(int)
    parts, rows = Components.of(chip), layer.tables.crossbar_rows
    digital = chip.mapping.subtraction == "digital" and rule.polarity == 2
    signed = rule.polarity == 2 and not digital
    low, high = (
        (-(2 ** (adc_bits - 1)), 2 ** (adc_bits - 1) - 1) if signed else (0, 2**adc_bits - 1)
    )
    clip = lambda value: min(max(value, low), high)  # noqa: E731
    slabs = tables.ifat.shape[1]
    bits = layer.source.activation.bits + math.ceil(math.log2(slabs))
    offset = 2 ** (bits - 1) if bool(layer.source.activation.signed) else 0
    cycles, top = -(-bits // parts.dac.bits), 2**parts.dac.bits - 1
    per_group = -(-rule.slices // rule.groups)
    blocks = grid.column_groups // grid.layers
    kernel_h, kernel_w = stored.plan.conv_shape[2:]
    out = np.zeros(stored.plan.conv_shape[0], dtype=int)
    for turn in range(tables.rounds):
        for group in range(grid.row_groups):
            driven = []  # (line, value, channel)
            for place in range(tables.ifrt.shape[1]):
                first = tables.ifrt[turn, place]
                if first == NOTHING or first // rows != group:
                    continue
                inputs = [c for c in tables.ifat[turn, :, place] if c != NOTHING]
                for i, j in itertools.product(range(kernel_h), range(kernel_w)):
                    value = sum(int(x[c, i, j]) for c in inputs) + offset
                    driven.append((first % rows + i * stored.plan.shape.width + j, value))
            for place, output in enumerate(tables.columns[turn]):
                if output == NOTHING:
                    continue
                total = 0
                for s in range(rule.slices):
                    q, k = divmod(s, per_group)
                    if grid.layers == 1 and grid.columns_per_output == per_group:
                        block, column = divmod(output * per_group + k, grid.columns)
                    else:
                        block, column = divmod(output, grid.columns)
                        block += k * blocks
                    sides = cells[block * grid.row_groups + group, q, :, :, column]
                    for at_once in converted_at_once(driven, chip):
                        for cycle in range(cycles):
                            sums = [
                                sum(
                                    int(side[line]) * (value >> (cycle * parts.dac.bits) & top)
                                    for line, value in at_once
                                )
                                for side in sides
                            ]
                            if digital:
                                code = clip(sums[0]) - clip(sums[1])
                            else:
                                code = clip(sums[0] - (sums[1] if signed else 0))
                            total += code << (cycle * parts.dac.bits + s * rule.cell_bits)
                weights = stored.weights[output].reshape(-1)
                lines_of = grid.channels_per_row_group * stored.plan.shape.height
                base = group * lines_of * stored.plan.shape.width
                total -= offset * sum(int(weights[base + line]) for line, _ in driven)
                total -= rule.offset * sum(value for _, value in driven)
                for target in tables.ofat[turn, :, place]:
                    if target != NOTHING:
                        out[target] += total
    return out


@given(layer_cases(largest_bits=4), st.integers(2, 5))
@settings(max_examples=25)
def test_clipping_is_that_of_loops_over_cells(case: Case, adc_bits: int) -> None:
    layer = case.simulated(Converter(adc_bits))
    x = integer_inputs(layer, case.images)[:1]
    outputs = layer.integers(x)[0, :, 0, 0].numpy()
    source = layer.source
    window = padded(layer, x)[0].numpy()
    if isinstance(source, EpitomeConv2d):
        (kernel_h, kernel_w), (down, right) = source.kernel_size, source.dilation
        window = window[:, : kernel_h * down : down, : kernel_w * right : right]
        window = window[:, :kernel_h, :kernel_w]
    np.testing.assert_array_equal(outputs, by_loops(case, layer, window, adc_bits))


def a_layer(chip_changes: tuple[str, ...] = (), weight_bits: int = 4) -> Case:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1, bias=False)).eval()
    choice = Choice(shape=EpitomeShape(8, 12, 3, 3), weight_bits=weight_bits, activation_bits=6)
    return Case(
        dense,
        trace(dense, (12, 8, 8), "one"),
        Design("one", {"0": choice}),
        load_chip("xbar_64", list(chip_changes)),
        torch.rand(4, 12, 8, 8),
    )


def test_the_shortcut_is_taken_only_where_no_column_can_clip() -> None:
    case = a_layer()
    shares = {bits: case.simulated(Converter(bits)).arrays.clipping_share() for bits in range(2, 8)}
    assert shares[2] > 0.3
    assert shares[7] == 0
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    for bits, share in shares.items():
        assert case.simulated(Converter(bits), shortcut=True).exact == (share == 0)
    noisy = case.simulated(Converter(7), Devices(read_noise=0.1), shortcut=True)
    assert not noisy.exact


def test_codes_over_the_whole_range_round_and_clip_nothing() -> None:
    spread = a_layer().simulated(Converter(4, "full"), shortcut=True)
    assert spread.converter.rounds
    assert not spread.exact
    assert spread.arrays.clipping_share() == 0


def test_digits_are_not_larger_than_the_inputs() -> None:
    case = a_layer(("interface.dac.bits=8",))
    layer = case.simulated(Converter(12), shortcut=True)
    # 32 lines of 6-bit inputs, one-bit cells: sums up to 2016.
    assert layer.arrays.clipping_share() == 0
    assert layer.exact


def test_the_range_is_calibrated_on_the_whole_first_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = a_layer()
    images = case.images.clone()
    images[:-1] *= 0.1
    results, shares = [], []
    for held in (1, 1 << 8, 1 << 20):
        monkeypatch.setattr(arrays, "_CHUNK", held)
        layer = case.simulated(Converter(4, "calibrated"))
        results.append(layer(images))
        shares.append(layer.arrays.clipping_share())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    # Other inputs could reach sums that these did not.
    assert 0 < shares[0] < 1


@given(layer_cases(largest_bits=4))
@settings(max_examples=15)
def test_outputs_can_be_computed_row_by_row(case: Case) -> None:
    layer = case.simulated(Converter(3))
    x = integer_inputs(layer, case.images)
    expected = layer.integers(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_LARGEST_CHUNK", 1)
        patch.setattr(arrays, "_CHUNK", 1)
        assert torch.equal(layer.integers(x), expected)


@pytest.mark.parametrize("polarity", [1, 2])
def test_sums_beyond_the_integers_of_float32_are_exact(polarity: int) -> None:
    changes = ("mapping.cell_bits=8", "interface.dac.bits=8", f"mapping.polarity={polarity}")
    chip = load_chip("raella_512", list(changes))
    dense = nn.Sequential(nn.Linear(512, 8)).eval()
    with torch.no_grad():
        dense[0].weight.copy_(1 - 0.1 * torch.rand(8, 512))
    design = Design("one", {"0": Choice(weight_bits=9, activation_bits=8)})
    case = Case(dense, linear(512, 8), design, chip, 1 - 0.1 * torch.rand(2, 512))
    layer = case.simulated()
    x = integer_inputs(layer, case.images)
    expected = integer_convolution(layer, x)
    assert float(expected.max()) > 1 << 24
    assert torch.equal(layer.integers(x), expected)


def test_weights_of_32_bits() -> None:
    case = a_layer()
    design = Design("one", {"0": Choice(weight_bits=32, activation_bits=8)})
    case = replace(case, design=design)
    with torch.no_grad():
        expected = case.quantized()(case.images)
        torch.testing.assert_close(case.simulated()(case.images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("bits", "wrap_in"), [(31, True), (32, False), (32, True)])
def test_inputs_of_many_bits(bits: int, wrap_in: bool) -> None:
    case = a_layer()
    choice = Choice(EpitomeShape(8, 6, 3, 3), wrap_in=wrap_in, weight_bits=4, activation_bits=bits)
    case = replace(case, design=Design("one", {"0": choice}))
    with torch.no_grad():
        expected = case.quantized()(case.images)
        torch.testing.assert_close(case.simulated()(case.images), expected, rtol=1e-4, atol=1e-4)


def test_tensors_follow_the_inputs_to_another_device() -> None:
    case = a_layer()
    for shortcut in (False, True):
        layer = case.simulated(Converter(), shortcut=shortcut)
        layer._move_to(torch.device("meta"))
        layer.arrays._move_to(torch.device("meta"))
        held = [*vars(layer).values(), *vars(layer.arrays).values()]
        held += [value for batch in layer.arrays._batches for value in vars(batch).values()]
        tensors = [value for value in held if isinstance(value, Tensor)]
        assert len(tensors) > 4
        assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_inputs_of_another_type_are_rounded_as_the_quantizer_rounds(dtype: torch.dtype) -> None:
    case = a_layer()
    case = replace(case, dense=case.dense.to(dtype), images=case.images.to(dtype))
    quantized = case.quantized()
    layer = case.simulated()
    step = layer.source.activation.step.detach().to(dtype)
    with torch.no_grad():
        integers = (quantized.get_submodule("0").activation(case.images) / step).round()
        assert torch.equal(layer._input_integers(case.images), integers.float())
        assert layer(case.images).dtype == dtype


def test_inputs_that_do_not_fit_are_refused() -> None:
    layer = a_layer().simulated()
    for images in (torch.rand(1, 11, 8, 8), torch.rand(1, 13, 8, 8), torch.rand(8)):
        with pytest.raises(InputError, match="layer 0: input: got shape"):
            layer(images)
    with pytest.raises(InputError, match="layer 0: input: has NaN"):
        layer(torch.full((1, 12, 8, 8), math.nan))


@pytest.mark.parametrize("signed", [True, False])
def test_codes_of_the_converters(signed: bool) -> None:
    sums = torch.tensor([-9.0, -8.0, -1.0, 0.0, 3.0, 7.0, 8.0, 15.0, 16.0])
    convert = ColumnConverter(Converter(4), signed, False, 16.0, True)
    bounds = (-8, 7) if signed else (0, 15)
    assert convert(sums.clone()).tolist() == [min(max(s, bounds[0]), bounds[1]) for s in sums]
    spread = ColumnConverter(Converter(4, "full"), signed, False, 28.0, True)
    step = 28 / bounds[1]
    found = spread(torch.tensor([0.0, step, 28.0, 1.4 * step]))
    torch.testing.assert_close(found, torch.tensor([0.0, step, 28.0, step]))
    fitted = ColumnConverter(Converter(4, "calibrated"), signed, False, 60.0, True)
    fitted.calibrate(30.0)
    first = fitted(torch.tensor([0.0, 30.0]))
    torch.testing.assert_close(first, torch.tensor([0.0, 30.0]))
    clipped = fitted(torch.tensor([60.0]))
    torch.testing.assert_close(clipped, torch.tensor([30.0]))


@given(st.integers(1, 10), st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**16))
def test_packed_sums_are_those_of_every_slice(slices: int, lines: int, top: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(-top, top + 1, (2, slices, 3, lines), generator=generator).float()
    windows = torch.randint(0, top + 1, (2, 2, lines, 5), generator=generator).float()
    packed = PackedSlices(cells, float(lines * top * top))
    expected = torch.einsum("usml,bulp->busmp", cells, windows)
    assert torch.equal(packed.sums(windows, slice(None)), expected)


def test_cells_vary_stick_and_drift_as_asked() -> None:
    case = a_layer(("mapping.cell_bits=1",), weight_bits=9)
    layer = case.simulated()
    stored = stored_layer(layer.source, case.design["0"])
    rule = SliceRule.of(9, case.chip)
    high, low = case.chip.crossbar.resistances_ohm
    off = 1 / (high / low - 1)

    def cells(**options: float) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return conductances(
            stored.weights, layer.tables, rule, case.chip, Devices(**options), generator
        )

    ideal = cells()
    on = ideal == 1
    assert set(ideal.unique().tolist()) == {0.0, 1.0}
    logs = torch.log((cells(variation=0.2)[on] + off) / (1 + off))
    assert abs(float(logs.mean())) < 0.01
    assert float(logs.std()) == pytest.approx(0.2, rel=0.05)
    # The lines of the array that hold no weight are on, too, when they are stuck.
    assert float((cells(stuck_on=0.1) > 0.5)[~on].float().mean()) == pytest.approx(0.1, abs=0.02)
    assert float((cells(stuck_off=0.1) < 0.5)[on].float().mean()) == pytest.approx(0.1, abs=0.02)
    drifted = cells(drift_exponent=0.05, drift_time=100.0)
    expected = (1 + off) * 100**-0.05 - off
    torch.testing.assert_close(drifted[on], torch.full_like(drifted[on], expected))
    spread = cells(drift_exponent=0.5, drift_spread=0.02, drift_time=math.e)[on]
    exponents = -torch.log((spread + off) / (1 + off))
    assert float(exponents.std()) == pytest.approx(0.02, rel=0.05)


def test_read_noise_adds_up_in_squares() -> None:
    case = a_layer()
    noisy = case.simulated(Converter(), Devices(read_noise=0.5, seed=3))
    quiet = case.simulated()
    x = integer_inputs(quiet, case.images)
    difference = (noisy.integers(x) - quiet.integers(x)).flatten()
    # By hand: every cell of both sides has noise of half its current, independent in every cycle.
    stored = stored_layer(quiet.source, case.design["0"])
    weight = torch.from_numpy(stored.weights.reshape(-1)[stored.plan.weight_index])
    shifts = torch.arange(3)
    power = (((weight.abs()[..., None] >> shifts) & 1) * 4.0**shifts).sum(-1).double()
    digits = (x.long()[..., None] >> torch.arange(6)) & 1
    bits = (digits * 4.0 ** torch.arange(6)).sum(-1).double()
    variance = 0.25 * F.conv2d(bits, power, padding=1)
    # Rounding to integer codes adds 1/12 of every column's weight.
    ratio = difference / variance.flatten().sqrt()
    assert 0.97 < float(ratio.std()) < 1.2
    assert abs(float(ratio.mean())) < 0.05


def test_the_seed_decides_the_cells() -> None:
    case = a_layer()
    images = case.images
    results = [
        case.simulated(Converter(6), Devices(variation=0.3, read_noise=0.1, seed=seed))(images)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_every_crossbar_has_its_scale() -> None:
    case = a_layer()
    rule = quantized_by_crossbar(Quantization(), case.chip)
    model = apply_design(case.dense, case.design, quantization=rule).eval()
    with torch.no_grad():
        expected = model(case.images)
        for shortcut in (True, False):
            chip = simulate(model, case.design, case.chip, Converter(), shortcut=shortcut)
            torch.testing.assert_close(chip(case.images), expected, rtol=1e-4, atol=1e-4)


def test_scales_of_another_chip_are_refused() -> None:
    case = a_layer()
    # Five input channels a crossbar, where the chip's hold seven.
    other = load_chip("xbar_64", ["crossbar.rows=48", "crossbar.subarray_rows=48"])
    rule = quantized_by_crossbar(Quantization(), other)
    model = apply_design(case.dense, case.design, quantization=rule).eval()
    model(case.images)
    with pytest.raises(InputError, match="layer 0: scales of the weights: differ within"):
        simulate(model, case.design, case.chip)


@pytest.mark.parametrize("shape", [None, EpitomeShape(16, 20, 3, 3), EpitomeShape(32, 20, 3, 3)])
def test_grouped_layers_with_a_scale_a_crossbar(shape: EpitomeShape | None) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(40, 32, 3, groups=2)).eval()
    design = Design("one", {"0": Choice(shape, weight_bits=4, activation_bits=5)})
    chip, images = load_chip("xbar_64"), torch.rand(2, 40, 6, 6)
    rule = quantized_by_crossbar(Quantization(), chip)
    model = apply_design(dense, design, quantization=rule).eval()
    with torch.no_grad():
        expected = model(images)
        for shortcut in (True, False):
            found = simulate(model, design, chip, Converter(), shortcut=shortcut)(images)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    stored = stored_layer(model.get_submodule("0"), design["0"])
    np.broadcast_to(stored.scales, stored.weights.shape)


@given(layer_cases())
@settings(max_examples=60)
def test_counts_are_those_that_the_cost_model_charges(case: Case) -> None:
    charged = CostModel(case.network, case.chip).evaluate(case.design).layers[0].counts
    counted = count_network(case.network, case.design, case.chip)["0"]
    assert counted == {name: count for name, count in charged.items() if count or name in counted}


RESNET_CHOICES = (
    Choice(weight_bits=9, activation_bits=9),
    Choice(weight_bits=3, activation_bits=6),
    Choice(EpitomeShape(8, 8, 3, 3), weight_bits=4, activation_bits=8),
    Choice(EpitomeShape(8, 8, 3, 3), wrap=True, weight_bits=3, activation_bits=9),
    Choice(EpitomeShape(16, 8, 4, 4), weight_bits=2, activation_bits=5),
    Choice(EpitomeShape(8, 8, 3, 3), wrap_in=True, weight_bits=5, activation_bits=4),
    Choice(EpitomeShape(16, 16, 3, 3), patch=(8, 8), weight_bits=3, activation_bits=7),
)


def mixed_design() -> tuple[nn.Module, Design]:
    """The shipped ResNet-20 with epitomes of all kinds."""
    model = build_model("resnet20", in_channels=1, num_classes=10)
    load_weights(model, "fashion_mnist_resnet20")
    network = trace(model, (1, 28, 28), "resnet20")
    choices = {}
    for index, spec in enumerate(network.weighted):
        choice = RESNET_CHOICES[index % len(RESNET_CHOICES)]
        if choice.shape is not None and (spec.type == "fc" or spec.in_channels < 16):
            choice = RESNET_CHOICES[0]
        choices[spec.name] = choice
    return model, Design("resnet20", choices)


def test_counts_of_a_whole_network() -> None:
    model, design = mixed_design()
    network, chip = trace(model, (1, 28, 28), "resnet20"), load_chip("xbar_64")
    cost = CostModel(network, chip).evaluate(design)
    counted = count_network(network, design, chip)
    charged = {layer.name: layer.counts for layer in cost.layers if layer.name in counted}
    assert len(charged) == 20
    for name, counts in charged.items():
        assert counted[name] == {key: value for key, value in counts.items() if value}


def test_top_1_on_real_images_is_that_of_the_quantized_network() -> None:
    from epim_nas.data.config import DataConfig
    from epim_nas.data.registry import load_data

    model, design = mixed_design()
    data = load_data(DataConfig(name="fashion_mnist_subset"))
    images, _ = next(iter(data.batches("test", 96)))
    quantized = apply_design(model, design).eval()
    with torch.no_grad():
        expected = quantized(images)
        for shortcut in (False, True):
            chip = simulate(quantized, design, load_chip("xbar_64"), Converter(), shortcut=shortcut)
            found = chip(images)
            assert torch.equal(found.argmax(1), expected.argmax(1))
        clipped = simulate(quantized, design, load_chip("xbar_64"), Converter(3))(images)
    assert not torch.equal(clipped.argmax(1), expected.argmax(1))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(weight_bits=4), "activation_bits"),
        (Choice(activation_bits=4), "weight_bits"),
        (Choice(), "layer 0: is in floating point"),
    ],
)
def test_layers_in_floating_point_are_refused(choice: Choice, message: str) -> None:
    case = a_layer()
    design = Design("one", {"0": choice})
    model = apply_design(case.dense, design).eval()
    model(case.images)
    with pytest.raises(InputError, match=message):
        simulate(model, design, case.chip)
    with pytest.raises(InputError, match="floating point"):
        count_network(case.network, design, case.chip)


def test_layers_that_the_design_lacks_are_refused() -> None:
    case = a_layer()
    model, design = nn.Sequential(case.quantized()[0], nn.Conv2d(16, 4, 1)), case.design
    with pytest.raises(InputError, match="layer 1: is not in the design"):
        simulate(model, design, case.chip)
    network = trace(nn.Sequential(case.dense[0], nn.Conv2d(16, 4, 1)), (12, 8, 8), "one")
    with pytest.raises(InputError, match="layers"):
        count_network(network, design, case.chip)


def test_weights_and_ranges_must_be_there() -> None:
    case = a_layer()
    model = apply_design(case.dense, case.design).eval()
    with pytest.raises(InputError, match=r"layer 0: activation\.step"):
        simulate(model, case.design, case.chip)
    model(case.images)
    with torch.no_grad():
        model.get_submodule("0").epitome[0, 0] = math.nan
    with pytest.raises(InputError, match="NaN"):
        simulate(model, case.design, case.chip)
    with pytest.raises(InputError, match="layer nothing"):
        simulate(model, Design("one", {"nothing": Choice()}), case.chip)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Converter(0), "adc_bits"),
        (lambda: Converter(6, "ful"), "full"),  # type: ignore[arg-type]
        (lambda: Devices(variation=-0.1), "variation"),
        (lambda: Devices(stuck_on=0.7, stuck_off=0.7), "stuck_on"),
        (lambda: Devices(read_noise=math.nan), "read_noise"),
        (lambda: Devices(drift_time=0.5), "drift_time"),
    ],
)
def test_options_out_of_range(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
