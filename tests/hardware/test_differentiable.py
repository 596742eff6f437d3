"""Gradients of the cost model: exact values, the surrogate's slopes, its distance, expectations."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epim_nas.epitome.design import Choice, Design
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError
from epim_nas.hardware import CostModel, load_chip
from epim_nas.hardware.differentiable.relaxed import RELAXED_METRICS
from epim_nas.hardware.differentiable.relaxed_design import RelaxedDesign
from epim_nas.hardware.differentiable.torch_ops import SmoothOps, TorchOps
from epim_nas.network.spec import LayerSpec, Network
from tests.hardware.nets import chain, conv, residual

CHIPS = ("xbar_64", "epim_256", "mnsim_default")
LARGEST_FACTORS = {
    "crossbars": 4,
    "tiles": 4,
    "rounds": 4,  # two ceilings of numbers above 1
    "area_um2": 4,
    "sequential_latency_ns": 8,  # rounds times bus words
    "latency_ns": 8,
    "energy_nj": 16,  # rounds times bus words times the memories' power
}
"""exact / surrogate at whole designs: bounds from how many roundings are multiplied."""

CONTINUOUS = ("out_channels", "in_channels", "height", "width", "weight_bits", "activation_bits")


def relaxed_design(network, generator, count=3, wrap=None):
    """Random sizes and bits strictly between the smallest and the layer's own."""
    shapes = np.array([layer.weight_shape for layer in network.weighted], dtype=float)
    layers = len(shapes)

    def between(low, high):
        return torch.as_tensor(generator.uniform(low, high, size=(count, layers)))

    kernel = torch.as_tensor(shapes[:, 2:].T.copy())[:, None].expand(2, count, layers)
    return RelaxedDesign(
        out_channels=between(1, shapes[:, 0]),
        in_channels=between(1, shapes[:, 1]),
        height=kernel[0] + between(0, 0.4),
        width=kernel[1] + between(0, 0.4),
        weight_bits=between(2, 9),
        activation_bits=between(2, 9),
        wrap=torch.as_tensor(generator.random((count, layers)) < 0.5)
        if wrap is None
        else torch.full((count, layers), wrap),
    )


def nearest(network, design, row):
    """The whole design next to a relaxed one, by its definition."""
    choices = {}
    for number, layer in enumerate(network.weighted):
        values = {f.name: getattr(design, f.name)[row, number].item() for f in fields(design)}
        sizes = [round(values[name]) for name in CONTINUOUS[:4]]
        dense = np.prod(sizes) >= np.prod(layer.weight_shape)
        choices[layer.name] = Choice(
            None if dense else EpitomeShape(*sizes),
            bool(values["wrap"]) and not dense,
            round(values["weight_bits"]),
            round(values["activation_bits"]),
        )
    return Design(network.name, choices)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("network", [chain(), residual()], ids=lambda n: n.name)
def test_the_value_is_the_exact_cost_of_the_nearest_design(network, chip):
    model = CostModel(network, load_chip(chip))
    design = relaxed_design(network, np.random.default_rng(1))
    cost = model.relaxed()(design)
    for row in range(3):
        exact = model.evaluate(nearest(network, design, row)).totals
        for name in RELAXED_METRICS:
            assert cost[name][row].item() == pytest.approx(getattr(exact, name), rel=1e-12)


@pytest.mark.parametrize("metric", RELAXED_METRICS)
@pytest.mark.parametrize("network", [chain(), residual()], ids=lambda n: n.name)
def test_gradients_are_the_finite_differences_of_the_surrogate(network, metric):
    # Tiles of one crossbar each, or these small layers would never fill a second one.
    relaxed = CostModel(network, load_chip("xbar_64", ["tile.pes=[1,1]"])).relaxed()
    design = relaxed_design(network, np.random.default_rng(2), count=1)
    variables = {name: getattr(design, name).clone().requires_grad_(True) for name in CONTINUOUS}
    relaxed(replace(design, **variables))[metric].sum().backward()
    moved = False
    for name, variable in variables.items():
        gradient = torch.zeros_like(variable) if variable.grad is None else variable.grad
        for layer in range(variable.shape[1]):
            step = 1e-6
            values = []
            for sign in (-1, 1):
                other = getattr(design, name).clone()
                other[0, layer] += sign * step
                values.append(relaxed.surrogate(replace(design, **{name: other}))[metric].item())
            slope = (values[1] - values[0]) / (2 * step)
            scale = max(abs(slope), abs(values[0]) * 1e-5, 1e-9)
            assert gradient[0, layer].item() == pytest.approx(slope, abs=2e-3 * scale), name
            moved |= slope != 0
    assert moved


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(CHIPS))
def test_the_surrogate_stays_within_its_factor(seed, chip):
    """Every single rounding is off by a factor below 2, in one direction; costs are products."""
    network = chain()
    relaxed = CostModel(network, load_chip(chip)).relaxed()
    design = relaxed_design(network, np.random.default_rng(seed))
    whole = replace(design, **{name: getattr(design, name).round() for name in CONTINUOUS})
    exact, smooth = relaxed(whole), relaxed.surrogate(whole)
    for name, bound in LARGEST_FACTORS.items():
        ratio = (exact[name] / smooth[name]).detach()
        assert (ratio > 0.9).all(), (name, ratio)
        assert (ratio < bound).all(), (name, ratio)


def test_the_surrogate_is_exact_where_nothing_is_rounded():
    """64 channels of 1x1 on 64 rows, 32 outputs of 2 slices on 64 columns, 8 bits on 64."""
    layer = conv("c", "input", 128, 128, 8, kernel=1)
    network = Network("one", (layer,), (128, 8, 8))
    chip = load_chip(
        "xbar_64", ["tile.pes=[1,1]", "buffer.pe_input_kb=2", "buffer.tile_output_kb=2"]
    )
    model = CostModel(network, chip)
    for wrap in (False, True):
        design = replace(
            RelaxedDesign.dense(network, 8),
            out_channels=torch.tensor([[32.0]], dtype=torch.float64),
            in_channels=torch.tensor([[64.0]], dtype=torch.float64),
            weight_bits=torch.tensor([[3.0]], dtype=torch.float64),
            wrap=torch.tensor([[wrap]]),
        )
        exact, smooth = model.relaxed()(design), model.relaxed().surrogate(design)
        for name in ("crossbars", "tiles", "rounds"):
            assert smooth[name].item() == exact[name].item()
        # Left over: address tables of 8 x 64 + ... bits are not whole bus words.
        for name in ("sequential_latency_ns", "energy_nj"):
            assert smooth[name].item() == pytest.approx(exact[name].item(), rel=0.02)


def test_smooth_operations_meet_the_exact_ones_and_stay_near():
    smooth, exact = SmoothOps(), TorchOps()
    whole = torch.arange(1, 40, dtype=torch.float64)
    assert torch.equal(smooth.ceil(whole), exact.ceil(whole))
    assert torch.equal(smooth.floor(whole), exact.floor(whole))
    powers = 2.0 ** torch.arange(0, 12, dtype=torch.float64)
    assert torch.equal(smooth.log2_ceil(powers), exact.log2_ceil(powers))
    assert torch.equal(smooth.power_of_two(powers), exact.power_of_two(powers))
    x = torch.linspace(0.001, 50, 5000, dtype=torch.float64)
    gap = exact.ceil(x) - smooth.ceil(x)
    assert gap.min() >= 0
    assert gap.max() < 1
    above = x[x >= 1]
    gap = exact.log2_ceil(above) - smooth.log2_ceil(above)
    assert gap.min() >= 0
    assert gap.max() < 1
    assert (exact.power_of_two(x) / smooth.power_of_two(x) < 2).all()
    assert (exact.power_of_two(x) >= x).all()


@pytest.mark.parametrize("bus", [64, 256, 512])
def test_smooth_memories_meet_the_table(bus):
    from epim_nas.hardware.sram import SIZES_KB, SramTable

    table = SramTable.of(90, bus)
    sizes = torch.tensor([size for size in SIZES_KB if bus <= 256 or size > 2], dtype=torch.float64)
    exact, smooth = TorchOps().lookup(table, sizes), SmoothOps().lookup(table, sizes)
    following, between = (ops.lookup(table, sizes * 1.3) for ops in (TorchOps(), SmoothOps()))
    for here, same, above, found in zip(exact, smooth, following, between, strict=True):
        assert torch.allclose(same, here, rtol=1e-12)
        low, high = torch.minimum(here, above), torch.maximum(here, above)
        assert ((found >= low) & (found <= high)).all()


@settings(max_examples=40)
@given(st.data())
def test_the_closed_form_is_the_plans_for_slabs_of_one_size(data):
    """With sizes that divide the layer's, the closed form counts what the plan does."""
    from epim_nas.hardware.differentiable.relaxed_mapping import WeightShapes, relaxed_mapping
    from epim_nas.hardware.mapping import map_layer

    chip = load_chip(data.draw(st.sampled_from(CHIPS)))
    layer = conv("c", "input", 64, 128, 8, data.draw(st.sampled_from([1, 3])))
    network = Network("one", (layer,), (64, 8, 8))
    shape = EpitomeShape(
        128 // data.draw(st.sampled_from([2, 4])),
        64 // data.draw(st.sampled_from([1, 2, 4])),
        *layer.kernel,
    )
    wrap, bits = data.draw(st.booleans()), data.draw(st.integers(2, 9))
    mapping = map_layer(layer, Choice(shape, wrap, bits, 9), chip)
    design = RelaxedDesign(
        *(torch.full((1, 1), float(value), dtype=torch.float64) for value in shape.as_tuple),
        torch.full((1, 1), float(bits), dtype=torch.float64),
        torch.full((1, 1), 9.0, dtype=torch.float64),
        torch.full((1, 1), wrap),
    )
    weights = WeightShapes.of(network, torch.device("cpu"))
    closed = relaxed_mapping(TorchOps(), chip, weights, design)
    for name in ("crossbars", "tiles", "rounds", "replicas", "groups", "table_bits"):
        assert getattr(closed, name).item() == getattr(mapping, name), name
    (slot,) = mapping.slots
    assert closed.active_rows.item() == slot.rows
    assert closed.active_columns.item() == slot.columns
    assert closed.slots.item() == slot.count
    assert closed.accumulating.item() == slot.accumulating
    assert closed.emitting.item() == slot.emitting
    assert closed.held_channels.item() >= mapping.held_channels
    assert closed.held_channels.item() <= 2 * mapping.held_channels


@pytest.mark.parametrize("chip", CHIPS)
def test_torch_computes_the_same_totals_from_choices(chip):
    network = residual()
    model = CostModel(network, load_chip(chip))
    choices = {
        layer.name: [
            Choice(weight_bits=bits, activation_bits=a) for bits in (2, 5, 9) for a in (4, 9)
        ]
        for layer in network.weighted
    }
    choices["b"] += [Choice(EpitomeShape(16, 8, 3, 3), wrap, 3, 9) for wrap in (False, True)]
    batch = model.batch(choices)
    generator = np.random.default_rng(0)
    rows = np.stack([generator.integers(len(choices[name]), size=7) for name in batch.names], 1)
    numpy_totals = batch.totals(rows)
    torch_totals = model.relaxed().totals(batch, torch.as_tensor(rows))
    for name in RELAXED_METRICS:
        assert torch_totals[name].numpy() == pytest.approx(numpy_totals[name], rel=1e-12)


def _small():
    """A network whose designs can be enumerated, and its choices."""
    network = Network(
        "small",
        (
            conv("a", "input", 3, 32, 8),
            conv("b", "a", 32, 32, 8),
            LayerSpec("s", "element_sum", ("a", "b"), 32, 32, (8, 8), (8, 8)),
            LayerSpec("f", "fc", ("s",), 2048, 10),
        ),
        (3, 8, 8),
    )
    choices = {
        "a": [Choice(weight_bits=9, activation_bits=9), Choice(weight_bits=3, activation_bits=9)],
        "b": [
            Choice(weight_bits=9, activation_bits=9),
            Choice(EpitomeShape(16, 16, 3, 3), False, 3, 9),
            Choice(EpitomeShape(16, 16, 3, 3), True, 3, 9),
        ],
        "f": [Choice(weight_bits=9, activation_bits=9), Choice(weight_bits=3, activation_bits=9)],
    }
    return network, choices


def test_expected_costs_by_enumeration():
    network, choices = _small()
    model = CostModel(network, load_chip("xbar_64"))
    table, expected = model.table(choices), model.expected(choices)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.rand(len(options), generator=generator, dtype=torch.float64)
        for name, options in choices.items()
    }
    probabilities = {name: weight / weight.sum() for name, weight in weights.items()}
    got = expected(probabilities)
    rows = list(itertools.product(*(range(len(choices[name])) for name in table.names)))
    chance = [
        np.prod([probabilities[n][i].item() for n, i in zip(table.names, row, strict=True)])
        for row in rows
    ]
    assert sum(chance) == pytest.approx(1)
    totals = table.totals(rows)
    for name in ("crossbars", "tiles", "sequential_latency_ns", "energy_nj", "area_um2"):
        assert got[name].item() == pytest.approx(np.dot(chance, totals[name]), rel=1e-12)
    # The latency of every design, at the layout of the table.
    latency = []
    for row in rows:
        one_hot = {
            name: torch.eye(len(choices[name]), dtype=torch.float64)[index]
            for name, index in zip(table.names, row, strict=True)
        }
        latency.append(expected(one_hot)["latency_ns"].item())
    mean = np.dot(chance, latency)
    assert got["latency_ns"].item() <= mean * (1 + 1e-12)
    assert got["latency_ns"].item() == pytest.approx(mean, rel=0.1)
    # Sampled, it is unbiased: within four standard errors of the mean.
    deviation = np.sqrt(np.dot(chance, (np.array(latency) - mean) ** 2))
    seed = torch.Generator().manual_seed(0)
    sampled = expected(probabilities, samples=2000, generator=seed)["latency_ns"].item()
    assert abs(sampled - mean) < 4 * deviation / np.sqrt(2000)


def test_a_choice_that_is_made_costs_what_the_table_says():
    network, choices = _small()
    model = CostModel(network, load_chip("xbar_64"))
    reference = Design(network.name, {name: options[-1] for name, options in choices.items()})
    one_hot = {
        name: torch.eye(len(options), dtype=torch.float64)[-1] for name, options in choices.items()
    }
    got = model.expected(choices, reference)(one_hot)
    exact = model.evaluate(reference).totals
    for name in ("crossbars", "latency_ns", "sequential_latency_ns", "energy_nj", "area_um2"):
        assert got[name].item() == pytest.approx(getattr(exact, name), rel=1e-12)


@pytest.mark.parametrize("samples", [0, 3])
def test_expected_costs_are_batched_and_differentiable(samples):
    network, choices = _small()
    expected = CostModel(network, load_chip("xbar_64")).expected(choices)
    logits = {
        name: torch.zeros(4, len(options), dtype=torch.float64, requires_grad=True)
        for name, options in choices.items()
    }
    cost = expected({name: logit.softmax(-1) for name, logit in logits.items()}, samples=samples)
    assert all(value.shape == (4,) for value in cost.values())
    (cost["latency_ns"].sum() + cost["energy_nj"].sum()).backward()
    for logit in logits.values():
        assert logit.grad is not None
        assert torch.isfinite(logit.grad).all()
        assert (logit.grad != 0).any()


def test_wrong_input_is_refused():
    network, choices = _small()
    model = CostModel(network, load_chip("xbar_64"))
    with pytest.raises(InputError, match=r"probabilities\.b: is missing"):
        model.expected(choices)({"a": torch.ones(2)})
    with pytest.raises(InputError, match=r"probabilities\.a: got shape \(3,\)"):
        model.expected(choices)({"a": torch.ones(3)})
    broken = RelaxedDesign.dense(network, 9)
    with pytest.raises(InputError, match=r"design\.height: has NaN"):
        model.relaxed()(replace(broken, height=broken.height * float("nan")))
