"""The cost table against the model that it summarises."""

from __future__ import annotations

import math

import numpy as np
import pytest

from epim_nas.epitome.design import Choice, Design
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError
from epim_nas.hardware import CostModel, load_chip
from tests.hardware.nets import chain, residual

ADDITIVE = ("crossbars", "tiles", "rounds", "sequential_latency_ns", "energy_nj", "area_um2")


def _choices(network):
    choices = {}
    for layer in network.weighted:
        outputs, inputs, height, width = layer.weight_shape
        options = [Choice(weight_bits=bits, activation_bits=9) for bits in (9, 3, 5)]
        if layer.type == "conv" and inputs > 3:
            shape = EpitomeShape(outputs // 2, inputs // 2, height, width)
            options += [Choice(shape, wrap, 3, 9) for wrap in (False, True)]
        choices[layer.name] = options
    return choices


@pytest.mark.parametrize("network", [chain(), residual()], ids=lambda n: n.name)
@pytest.mark.parametrize("chip", ["xbar_64", "mnsim_default"])
def test_the_table_is_exact_for_its_reference(network, chip):
    model, choices = CostModel(network, load_chip(chip)), _choices(network)
    dense = model.table(choices).totals(np.zeros(len(choices), dtype=int))
    exact = model.evaluate().totals
    for name in ADDITIVE:
        assert dense[name] == pytest.approx(getattr(exact, name), rel=1e-12)

    last = {name: options[-1] for name, options in choices.items()}
    design = Design(network.name, last)
    row = [len(options) - 1 for options in choices.values()]
    table = model.table(choices, reference=design).totals(row)
    exact = model.evaluate(design).totals
    for name in ADDITIVE:
        assert table[name] == pytest.approx(getattr(exact, name), rel=1e-12)


def test_what_is_additive_is_exact_for_every_design():
    network = chain()
    model, choices = CostModel(network, load_chip("xbar_64")), _choices(network)
    table = model.table(choices)
    generator = np.random.default_rng(0)
    rows = np.stack([generator.integers(len(choices[name]), size=20) for name in table.names], 1)
    totals = table.totals(rows)
    assert totals["crossbars"].dtype == np.int64
    for index, row in enumerate(rows):
        picked = {name: choices[name][i] for name, i in zip(table.names, row, strict=True)}
        exact = model.evaluate(Design(network.name, picked)).totals
        for name in ("crossbars", "tiles", "rounds"):
            assert totals[name][index] == getattr(exact, name)
        for name in ("sequential_latency_ns", "energy_nj"):
            assert totals[name][index] == pytest.approx(getattr(exact, name), rel=0.25)


def test_weight_bits_are_those_of_the_stored_elements():
    network = chain()
    choices = {"b": [Choice(EpitomeShape(16, 8, 3, 3), False, 3, 9), Choice()]}
    table = CostModel(network, load_chip("xbar_64")).table(choices)
    assert table["b"].weight_bits.tolist() == [16 * 8 * 9 * 3, 32 * 32 * 9 * 32]
    # All other layers keep the reference's 9 bits.
    weights = sum(math.prod(layer.weight_shape) for layer in network.weighted)
    others = weights - 32 * 32 * 9
    assert table.totals([[1], [0]])["weight_bits"].tolist() == [
        others * 9 + 32 * 32 * 9 * 32,
        others * 9 + 16 * 8 * 9 * 3,
    ]


def test_wrong_rows_and_layers_are_refused():
    network = chain()
    model = CostModel(network, load_chip("xbar_64"))
    with pytest.raises(InputError, match="no such weighted layer"):
        model.table({"bb": [Choice()]})
    with pytest.raises(InputError, match="no choice is given"):
        model.table({"b": []})
    table = model.table({"b": [Choice(), Choice(weight_bits=2)]})
    with pytest.raises(InputError, match="got shape"):
        table.totals([[0, 1]])
    with pytest.raises(InputError, match="index out of range for layer b"):
        table.totals([[2]])
