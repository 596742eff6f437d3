"""Floors of the energies against every design."""

from __future__ import annotations

import itertools
from contextlib import suppress

import numpy as np
import pytest

from epim_nas import Choice, CostModel, EpitomeShape
from epim_nas.errors import InputError
from epim_nas.hardware import load_chip
from epim_nas.hardware.floors import Floors
from epim_nas.hardware.sram import SramTable
from tests.hardware.nets import chain

WIDE = ("buffer.bus_bits=512", "buffer.tile_output_kb=4", "index_table.bus_bits=64")
"""Buses for which there are no arrays of 2 KB or less."""


def batch(*overrides):
    """All designs of a chain of layers whose buffers differ with their shapes."""
    network = chain(64, 32)
    choices = {}
    for layer in network.weighted:
        outputs, inputs, height, width = layer.weight_shape
        choices[layer.name] = [Choice(weight_bits=5, activation_bits=9)]
        if layer.type == "conv" and inputs > 3:
            choices[layer.name] += [
                Choice(EpitomeShape(outputs // out, inputs // into, height, width), True, 5, 9)
                for out, into in ((4, 1), (4, 4), (16, 16))
            ]
    return CostModel(network, load_chip("xbar_64", overrides)).batch(choices)


@pytest.mark.parametrize("overrides", [(), ("buffer.technology_nm=45",), WIDE])
def test_the_least_energy_is_that_of_a_case(overrides):
    model = batch(*overrides)
    energies = []
    for row in itertools.product(*map(range, model.counts)):
        with suppress(InputError):  # arrays that are not in the tables
            energies.append(float(model.totals([row])["energy_nj"][0]))
    cases = Floors(model).cases()
    least = [sum(own.min() for own in c.energy_nj.values()) + c.other_nj for c in cases]
    assert min(least) == pytest.approx(min(energies), rel=1e-12)


def test_arrays_that_are_not_in_the_tables_are_left_out():
    model = batch(*WIDE)
    with pytest.raises(InputError):
        model.totals([[0] * len(model.names)])  # its buffers are small
    cases = Floors(model).cases()
    assert cases
    assert all(case.pe_input_kb > 2 for case in cases)
    with pytest.raises(InputError, match="bus"):
        Floors(batch("buffer.bus_bits=512")).cases()


def test_every_case_has_other_arrays():
    """Sizes that the same array holds are one case, and given sizes leave a single one."""
    cases = Floors(batch()).cases()
    energies = [tuple(np.concatenate(list(case.energy_nj.values()))) for case in cases]
    assert len(set(energies)) == len(cases)
    given_sizes = batch("buffer.pe_input_kb=2", "buffer.tile_output_kb=2")
    assert len(Floors(given_sizes).cases()) == 1


@pytest.mark.parametrize("technology_nm", [90, 65, 45])
@pytest.mark.parametrize("bus_bits", [64, 128, 256, 512])
def test_larger_arrays_take_more_energy_with_leakage(technology_nm, bus_bits):
    arrays = SramTable.of(technology_nm, bus_bits).arrays
    for power in (arrays.read_w, arrays.write_w):
        there = power[~np.isnan(power)]
        assert (np.diff(there) > 0).all()
