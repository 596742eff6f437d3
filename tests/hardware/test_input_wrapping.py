"""What wrapped input slabs cost: an example by hand, and what must not change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epim_nas.epitome.design import Choice, Design
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.hardware import CostModel, load_chip
from epim_nas.hardware.components import adder
from epim_nas.network.spec import Network
from tests.hardware.nets import chain, conv

XBAR_64 = load_chip("xbar_64")


def one(layer, choice, chip=XBAR_64):
    network = Network("one", (layer,), (layer.in_channels, *layer.input_size))
    return CostModel(network, chip).evaluate(Design("one", {layer.name: choice}))


def test_worked_example():
    """The example of docs/cost_model.md, section 10, with its two input slabs summed."""
    layer = conv("c", "input", 32, 32, 8)
    choice = Choice(EpitomeShape(16, 16, 3, 3), False, 3, 9, wrap_in=True)
    (found,) = one(layer, choice).layers
    mapping = found.mapping
    assert (mapping.crossbars, mapping.rounds, mapping.slot_count) == (3, 2, 2)
    assert sum(slot.emitting for slot in mapping.slots) == mapping.input_slabs == 2
    assert not any(slot.accumulating for slot in mapping.slots)
    # 7 channels of 9 cells a crossbar; two features are fetched for each of its rows.
    assert [(s.rows, s.columns, s.inputs) for s in mapping.slots] == [(63, 32, 126)]
    # Rotations 0 and 1: channels 0-6 and 15, 0-5 of both slabs on the first crossbar.
    assert (mapping.held_channels, mapping.stored_channels) == (16, 38)
    # Of each of 3 x 7 channels two addresses of 5 bits and a word line's 6; 16 outputs.
    assert mapping.table_bits == 3 * 7 * (2 * 5 + 6) + 16 * 5
    latency = {name: value / 64 for name, value in found.latency_ns.items()}
    # The sum of two 9-bit inputs has 10 bits: M = 10 * 2 * 1.
    assert latency["DAC"] == pytest.approx(2 * 20 * 3)
    assert latency["xbar"] == pytest.approx(2 * 20 * 3.1600000525, rel=1e-9)
    assert latency["ADC"] == pytest.approx(2 * 20 * 8)
    # Two turns at the DACs, an addition of 2 ns each, in both slots.
    assert latency["accumulator"] == 2 * 2 * 1 * 2
    each = 44 + 40 + 2 + 20 * 0.55866 + 20 * 0.065488 + 4
    assert latency["digital"] == pytest.approx(2 * each + 8)
    assert latency["index_table"] == 2 * 140
    # 126 * 9 bits are 18 words of 64.
    assert latency["buffer_r"] == 2 * 360 + 2 * 280
    written = (180 + 7 * 100 + 7 * 140 + 49 * 60) / 64
    assert latency["buffer_w"] == pytest.approx(2 * 240 + written)
    total = 566.4000021 + 2 * each + 8 + 2 * 0.40625 + 280 + 480 + 560 + 720
    assert found.sequential_latency_ns == pytest.approx(64 * total + 4800, rel=1e-8)


def test_worked_example_of_energy_area_and_counts():
    layer = conv("c", "input", 32, 32, 8)
    plain = Choice(EpitomeShape(16, 16, 3, 3), False, 3, 9)
    (wrapped,) = one(layer, replace(plain, wrap_in=True)).layers
    (four,) = one(layer, plain).layers
    # 64 positions, 2 slots, 3 PEs, 20 reads; two rows share a DAC.
    assert wrapped.counts["activations"] == 64 * 2 * 3 * 20
    assert wrapped.counts["dac_conversions"] == 64 * 2 * 3 * 20 * 32
    assert wrapped.counts["input_reads"] == 64 * 2 * 18
    assert wrapped.counts["table_reads"] == 64 * 2 * 7
    assert four.counts["activations"] == 64 * 4 * 3 * 18
    # An adder in front of each of 32 DACs of every PE of the tile.
    pes = XBAR_64.tile.pes[0] * XBAR_64.tile.pes[1]
    more = wrapped.area_um2["adder"] - four.area_um2["adder"]
    adder_um2, adder_w = adder(45, 8)
    assert more == pytest.approx(pes * 32 * adder_um2)
    assert wrapped.area_um2["digital"] - four.area_um2["digital"] == pytest.approx(more)
    # 3 PEs x 32 adders work for 8 ns a position; those behind the ADCs have nothing to add.
    assert wrapped.power_w["accumulator"] == pytest.approx(3 * 32 * adder_w)
    assert wrapped.energy_nj["accumulator"] == pytest.approx(3 * 32 * adder_w * 64 * 8)


def test_a_single_slot_keeps_the_columns_of_its_window():
    """All outputs in one slab: one round, one slot, as in a dense layer."""
    layer = conv("c", "input", 32, 16, 8)
    choice = Choice(EpitomeShape(16, 16, 3, 3), False, 3, 9, wrap_in=True)
    (found,) = one(layer, choice).layers
    assert found.mapping.slot_count == 1
    assert found.latency_ns["index_table"] == 0
    # 14 inputs of 3 new rows of 9 bits are 6 words; whole windows are 18, in the first column.
    assert found.counts["input_reads"] == 8 * 18 + 56 * 6


@settings(max_examples=60)
@given(
    st.sampled_from([1, 2, 3, 4, 5, 8]),
    st.sampled_from([8, 16, 32]),
    st.booleans(),
    st.integers(2, 9),
    st.sampled_from([1, 2]),
)
def test_only_what_is_summed_changes(slabs, outputs, wrap, bits, groups):
    layer = conv("c", "input", 40, 32, 8, groups=groups)
    inputs = -(-layer.weight_shape[1] // slabs)
    shape = EpitomeShape(outputs, inputs, 3, 3)
    plain, wrapped = (
        one(layer, Choice(shape, wrap, bits, bits, wrap_in=wrap_in)) for wrap_in in (False, True)
    )
    count = -(-layer.weight_shape[1] // inputs)
    assert wrapped.layers[0].mapping.input_slabs == count
    assert wrapped.totals.crossbars == plain.totals.crossbars
    assert wrapped.totals.rounds * count == plain.totals.rounds
    if count == 1:
        assert wrapped == plain
        return
    driven = bits + int(np.ceil(np.log2(count)))
    assert count * (2**bits - 1) < 2**driven, "a sum has more bits than drive it"
    if groups == 1 and 40 % inputs == 0:  # all rounds are alike
        reads = wrapped.layers[0].counts["activations"] / plain.layers[0].counts["activations"]
        assert reads == pytest.approx(driven / bits / count)
    # Rounds, and with them conversions and partial sums, are saved.
    assert wrapped.totals.latency_ns < plain.totals.latency_ns


@pytest.mark.parametrize("chip", ["xbar_64", "epim_256"])
def test_batches_torch_and_expectations_agree(chip):
    network = chain()
    shape = EpitomeShape(16, 8, 3, 3)
    choices = {
        layer.name: [Choice(None, False, 3, 9)]
        + [Choice(shape, wrap, 3, 9, wrap_in=True) for wrap in (False, True)]
        * (layer.type == "conv" and layer.in_channels >= 16)
        for layer in network.weighted
    }
    model = CostModel(network, load_chip(chip))
    batch = model.batch(choices)
    generator = np.random.default_rng(0)
    rows = np.stack([generator.integers(len(choices[n]), size=12) for n in batch.names], 1)
    totals = batch.totals(rows)
    torch_totals = model.relaxed().totals(batch, torch.as_tensor(rows))
    for number, row in enumerate(rows):
        picked = {n: choices[n][i] for n, i in zip(batch.names, row, strict=True)}
        exact = model.evaluate(Design(network.name, picked)).totals
        for name, values in torch_totals.items():
            assert totals[name][number] == pytest.approx(getattr(exact, name), rel=1e-12)
            assert float(values[number]) == pytest.approx(getattr(exact, name), rel=1e-12)
    # The expectation over choices that are made is the table's cost of the design.
    row = rows[0]
    table = model.table(choices)
    chances = {
        name: torch.nn.functional.one_hot(torch.tensor(index), len(choices[name])).double()
        for name, index in zip(batch.names, row, strict=True)
    }
    expected = model.expected(choices)(chances, latency=False)
    for name, value in table.totals(row[None]).items():
        assert float(expected[name]) == pytest.approx(float(value[0]), rel=1e-12)
