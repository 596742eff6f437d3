"""What epitomes cost: a worked example by hand, and properties."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epim_nas.epitome.design import Choice, Design
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError
from epim_nas.hardware import CostModel, load_chip
from epim_nas.network.spec import Network
from tests.hardware.nets import chain, conv, residual

XBAR_64 = load_chip("xbar_64")


def one(layer, choice, chip=XBAR_64):
    """The cost of a network of one layer: no hops, so that only the layer itself counts."""
    network = Network("one", (layer,), (layer.in_channels, *layer.input_size))
    return CostModel(network, chip).evaluate(Design("one", {layer.name: choice}))


def test_worked_example():
    """The example of docs/cost_model.md, with every number written out by hand."""
    layer = conv("c", "input", 32, 32, 8)
    cost = one(layer, Choice(EpitomeShape(16, 16, 3, 3), False, 3, 9))
    (found,) = cost.layers
    mapping = found.mapping
    assert (mapping.row_groups, mapping.column_groups, mapping.crossbars) == (3, 1, 3)
    assert (mapping.rounds, mapping.slot_count) == (4, 4)
    assert sum(slot.emitting for slot in mapping.slots) == 2
    assert sum(slot.accumulating for slot in mapping.slots) == 2
    assert [(slot.rows, slot.columns, slot.tiles) for slot in mapping.slots] == [(63, 32, 1)]
    assert (mapping.held_channels, mapping.stored_channels, mapping.table_bits) == (18, 44, 311)
    assert mapping.utilization == pytest.approx(16 * 144 * 2 / (3 * 4096))
    latency = {name: value / 64 for name, value in found.latency_ns.items()}
    assert latency["DAC"] == pytest.approx(4 * 18 * 3)
    assert latency["xbar"] == pytest.approx(4 * 18 * 3.1600000525, rel=1e-9)
    assert latency["ADC"] == pytest.approx(4 * 18 * 8)
    assert latency["digital"] == pytest.approx(4 * 93.234664 + 4)
    assert latency["accumulator"] == 4
    assert latency["intra_tile"] == pytest.approx(4 * 13 * 32 / 1024)
    assert latency["index_table"] == 4 * 100
    assert latency["buffer_r"] == 4 * 180 + 2 * 240 + 2 * 280
    assert latency["buffer_w"] == pytest.approx(4 * 240 + 5120 / 64)
    assert latency["tile_merge"] == 2 * 280
    assert found.sequential_latency_ns == pytest.approx(294277.3545, rel=1e-8)
    assert cost.totals.latency_ns == pytest.approx(found.sequential_latency_ns)


def test_worked_example_energy():
    layer = conv("c", "input", 32, 32, 8)
    cost = one(layer, Choice(EpitomeShape(16, 16, 3, 3), False, 3, 9))
    power, energy = cost.layers[0].power_w, cost.layers[0].energy_nj
    # 1 tile of 3 PEs; two columns share an ADC: 16 conversions at 1.26 mW.
    assert power["ADC"] == pytest.approx(3 * 16 * 1.26e-3)
    assert energy["ADC"] == pytest.approx(3 * 16 * 1.26e-3 * 64 * 4 * 18 * 8)
    # A pair of crossbars, 63 x 32 cells of 75 nW, every fourth at a time.
    cell_w = 0.1 * 0.15**2 / (1e10 / (0.67e4 + 0.33e6))
    assert power["xbar"] == pytest.approx(3 * 2 * 63 * 32 * cell_w / 4)
    # The smallest SRAM of the tables: 7.5695 pJ a read of 20 ns, and 1.006428 mW leakage.
    read_w = 7.5695e-12 / 20e-9 + 1.006428e-3
    assert power["index_table"] == pytest.approx(read_w)
    assert energy["index_table"] == pytest.approx(read_w * 64 * 400)
    assert power["buf_r"] == pytest.approx(3 * read_w + read_w)
    parts = ("xbar", "ADC", "DAC", "digital", "buf", "pooling", "index_table")
    assert energy["total"] == pytest.approx(sum(energy[name] for name in parts))


@pytest.mark.parametrize("chip", ["mnsim_default", "epim_256", "xbar_64"])
@pytest.mark.parametrize("network", [chain(), residual()], ids=lambda n: n.name)
def test_dense_equals_the_identity_epitome(network, chip):
    model = CostModel(network, load_chip(chip))
    dense = Design.uniform(network, 5, 7)
    identity = {
        layer.name: replace(dense[layer.name], shape=EpitomeShape.dense(layer.weight_shape))
        for layer in network.weighted
    }
    expected = model.evaluate(dense)
    for cost in (
        model.evaluate(Design(network.name, identity)),
        model.evaluate(weight_bits=5, activation_bits=7),
    ):
        assert cost == expected
        assert cost.layers == expected.layers


def _numbers(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield value


@settings(max_examples=40)
@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([3, 4]),
    st.booleans(),
    st.integers(2, 9),
)
def test_costs_are_positive_and_finite(ro, ri, height, wrap, bits):
    if ro * ri * 9 < height * 3:  # larger than the convolution
        return
    network = chain()
    choices = dict(Design.uniform(network, bits, bits).choices)
    choices["b"] = Choice(EpitomeShape(32 // ro, 32 // ri, height, 3), wrap, bits, bits)
    cost = CostModel(network, XBAR_64).evaluate(Design("chain", choices))
    assert all(value > 0 for value in asdict(cost.totals).values())
    assert all(value >= 0 and value < 1e18 for value in _numbers(cost.to_dict()))
    for layer in cost.layers:
        assert layer.energy_nj["total"] > 0
        assert layer.sequential_latency_ns > 0
    # Layers overlap, but none is faster than alone.
    slowest = max(layer.sequential_latency_ns for layer in cost.layers)
    assert slowest <= cost.totals.latency_ns * (1 + 1e-12)
    assert cost.totals.latency_ns <= cost.totals.sequential_latency_ns * (1 + 1e-12)


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("channels", [32, 16])
def test_wrapping_by_r_divides_the_rounds_by_r(factor, channels):
    layer = conv("c", "input", 32, 64, 8)
    shape = EpitomeShape(64 // factor, channels, 3, 3)
    plain, wrapped = (one(layer, Choice(shape, wrap, 3, 9)) for wrap in (False, True))
    assert plain.totals.rounds == wrapped.totals.rounds * factor
    assert plain.totals.crossbars == wrapped.totals.crossbars
    assert plain.totals.latency_ns > wrapped.totals.latency_ns
    assert plain.totals.energy_nj > wrapped.totals.energy_nj


@settings(max_examples=40)
@given(
    st.sampled_from([16, 32, 64, 128]),
    st.sampled_from([32, 64, 128]),
    st.sampled_from([2, 4]),
    st.integers(2, 9),
    st.sampled_from([1, 3]),
)
def test_a_wrapped_layer_with_all_inputs_takes_no_longer_than_dense_and_its_replicas(
    channels, outputs, factor, bits, kernel
):
    layer = conv("c", "input", channels, outputs, 8, kernel)
    shape = EpitomeShape(outputs // factor, channels, kernel, kernel)
    wrapped, dense = (
        one(layer, Choice(shape, True, bits, 9)),
        one(layer, Choice(None, False, bits, 9)),
    )
    copies = outputs - outputs // factor
    words = -(-copies * 9 // (64 * wrapped.totals.tiles))
    assert wrapped.layers[0].mapping.replicas == copies
    # The bound is often met exactly: room for the rounding of the sums.
    bound = dense.totals.latency_ns + 64 * words * 20
    assert wrapped.totals.latency_ns <= bound * (1 + 1e-12)
    assert wrapped.totals.crossbars <= dense.totals.crossbars


def _rising(values):
    return all(low < high for low, high in pairwise(values))


def test_cost_rises_with_rounds():
    costs = [
        one(conv("c", "input", 32, outputs, 8), Choice(EpitomeShape(16, 16, 3, 3), False, 3, 9))
        for outputs in (32, 64, 128, 256)
    ]
    assert [cost.totals.rounds for cost in costs] == [4, 8, 16, 32]
    assert len({cost.totals.crossbars for cost in costs}) == 1
    assert _rising([cost.totals.latency_ns for cost in costs])
    assert _rising([cost.totals.energy_nj for cost in costs])


def test_cost_rises_with_positions_and_activation_bits():
    choice = Choice(EpitomeShape(16, 16, 3, 3), False, 3, 9)
    by_size = [one(conv("c", "input", 32, 32, size), choice).totals for size in (4, 8, 16)]
    by_bits = [
        one(conv("c", "input", 32, 32, 8), replace(choice, activation_bits=bits)).totals
        for bits in (2, 4, 6, 9)
    ]
    for totals in (by_size, by_bits):
        assert _rising([total.latency_ns for total in totals])
        assert _rising([total.energy_nj for total in totals])


def test_cost_does_not_fall_with_weight_bits():
    chip = load_chip("xbar_64", ["buffer.pe_input_kb=2", "buffer.tile_output_kb=2"])
    layer = conv("c", "input", 32, 32, 8)
    totals = [
        one(layer, Choice(EpitomeShape(16, 16, 3, 3), False, bits, 9), chip).totals
        for bits in range(2, 17)
    ]
    for name in ("crossbars", "tiles", "energy_nj", "latency_ns", "area_um2"):
        values = [getattr(total, name) for total in totals]
        assert values == sorted(values)
        assert values[0] < values[-1]


def test_only_epitomes_pay_for_index_tables():
    network = chain()
    choices = dict(Design.uniform(network, 3, 9).choices)
    choices["b"] = Choice(EpitomeShape(16, 16, 3, 3), False, 3, 9)
    cost = CostModel(network, XBAR_64).evaluate(Design("chain", choices))
    for layer in cost.layers:
        for values in (layer.area_um2, layer.energy_nj, layer.latency_ns, layer.power_w):
            assert (values["index_table"] > 0) == (layer.name == "b")


def test_a_layer_writes_the_bits_that_its_readers_want():
    network = residual()
    design = Design.uniform(network, 9, 4)
    model = CostModel(network, XBAR_64)
    low = model.evaluate(design)
    choices = dict(design.choices)
    choices["c"] = replace(choices["c"], activation_bits=8)  # read through pooling and the sum
    high = model.evaluate(Design(network.name, choices))
    changed = {
        a.name
        for a, b in zip(low.layers, high.layers, strict=True)
        if a.latency_ns["tile_merge"] + a.latency_ns["tile_transfer"]
        != b.latency_ns["tile_merge"] + b.latency_ns["tile_transfer"]
    }
    # a and b feed the sum, the sum the pooling, the pooling c; what c and f write is as before.
    assert changed == {"a", "b", "s", "p"}


def test_rectangular_kernels_and_strides_are_generalised():
    square = conv("c", "input", 16, 16, 8)
    tall = replace(square, kernel=(5, 1), padding=(2, 0))
    wide = replace(square, kernel=(1, 5), padding=(0, 2))
    costs = [one(layer, Choice(None, False, 9, 9)) for layer in (tall, wide)]
    assert costs[0].totals.crossbars == costs[1].totals.crossbars
    # Moving right, a tall window takes 5 new inputs a channel, a wide one 1.
    assert costs[0].layers[0].latency_ns["buffer_r"] > costs[1].layers[0].latency_ns["buffer_r"]


def test_a_design_that_does_not_fit_is_refused():
    network = chain()
    model = CostModel(network, XBAR_64)
    missing = dict(Design.uniform(network, 3, 9).choices)
    del missing["b"]
    with pytest.raises(InputError, match=r"layers\.b: is missing"):
        model.evaluate(Design("chain", missing))
    with pytest.raises(InputError, match="weight_bits: got `0`"):
        model.evaluate(Design.uniform(network, 0, 9))
    with pytest.raises(InputError, match="from 1 to 64"):
        model.evaluate(weight_bits=65)
    large = dict(Design.uniform(network, 3, 9).choices)
    large["b"] = Choice(EpitomeShape(64, 16, 3, 3), False, 3, 9)
    with pytest.raises(InputError, match=r"b: epitome\.out_channels"):
        model.evaluate(Design("chain", large))


def test_none_bits_count_as_32():
    network = chain()
    model = CostModel(network, XBAR_64)
    floating = model.evaluate(Design.uniform(network, None, None))
    assert floating == model.evaluate(weight_bits=32, activation_bits=32)
