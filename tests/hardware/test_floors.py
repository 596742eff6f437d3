"""Floors of energies and hops against every design, or random ones."""

from __future__ import annotations

import itertools
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epim_nas import Choice, CostModel, EpitomeShape
from epim_nas.errors import InputError
from epim_nas.hardware import load_chip
from epim_nas.hardware.lower_bounds.floors import Floors
from epim_nas.hardware.lower_bounds.hops import hop_floors
from epim_nas.hardware.placement import Placement
from epim_nas.hardware.sram import SramTable
from epim_nas.network.spec import LayerSpec, Network
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


def random_network(rng, count):
    """Layers of all kinds, each reading some before it; only the wiring matters."""
    layers = []
    for number in range(count):
        names = [layer.name for layer in layers]
        kind = rng.choice(["conv", "conv", "pooling", "element_sum"]) if number else "conv"
        if kind == "element_sum":
            inputs = tuple(rng.choice(names, size=int(rng.integers(1, 3))))
        else:
            # Often the layer before, so that results also go to what comes next.
            inputs = (str(rng.choice(names[-2:])),) if names else ("input",)
        sizes = {} if kind == "element_sum" else {"kernel": (1, 1), "stride": (1, 1)}
        layers.append(
            LayerSpec(f"l{number}", str(kind), inputs, 4, 4, (4, 4), (4, 4), **sizes)
        )  # fmt: skip
    return Network("random", tuple(layers), (4, 4, 4))


@given(
    st.integers(0, 2**32),
    st.sampled_from(["row_major", "serpentine", "shells", "diagonal"]),
    st.sampled_from([(12, 12), (9, 16), (20, 7)]),
)
@settings(max_examples=60)
def test_no_design_has_fewer_hops_than_the_floors(seed, order, size):
    rng = np.random.default_rng(seed)
    network = random_network(rng, int(rng.integers(2, 8)))
    chip = load_chip(
        "xbar_64", [f"mesh.size=[{size[0]},{size[1]}]", f"mesh.order={order}"]
    )  # fmt: skip
    tiled = [layer.type != "element_sum" for layer in network.layers]
    tiles = []
    for layer in network.layers:
        if layer.type == "conv":
            tiles.append(rng.integers(1, 12, size=int(rng.integers(1, 5))))
        else:
            tiles.append(np.array([int(layer.type == "pooling")]))
    consumers = [
        [network.index[name] for name in network.consumers[layer.name]] for layer in network.layers
    ]
    rows = np.stack([rng.integers(len(counts), size=40) for counts in tiles], axis=1)
    taken = np.stack([counts[rows[:, i]] for i, counts in enumerate(tiles)], axis=1)
    # A limit that some of the designs are beyond: nothing is said about those.
    most = int(np.quantile(taken.sum(1), 0.7))
    kept = (taken.sum(1) <= most) & (taken.sum(1) <= min(size) ** 2)
    hops = Placement(chip, tiled, consumers).hops(taken[kept].astype(np.int64))
    floors = hop_floors(network, chip.mesh, tiles, most)
    for real, floor in zip(hops, floors, strict=True):
        for layer, column in enumerate(floor):
            assert (column[rows[kept, layer]] <= real[:, layer]).all()
