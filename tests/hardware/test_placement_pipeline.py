"""Placement and pipeline against the plain loops that they replace."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epim_nas.hardware import load_chip
from epim_nas.hardware.dependencies import Dependencies, needed_positions
from epim_nas.hardware.layer_pipeline import Pipeline
from epim_nas.hardware.placement import Placement, mesh_order
from tests.hardware.nets import residual

ORDERS = ("row_major", "serpentine", "shells", "diagonal")


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_visits_every_tile_once(order):
    chip = load_chip("mnsim_default", ["mesh.size=[6,6]", f"mesh.order={order}"])
    spots = list(zip(*mesh_order(chip.mesh), strict=True))
    assert sorted(spots) == [(r, c) for r in range(6) for c in range(6)]
    first = {
        "row_major": [(0, 0), (0, 1), (0, 2), (0, 3)],
        "serpentine": [(0, 0), (0, 1), (0, 2), (0, 3)],
        "shells": [(0, 0), (0, 1), (1, 1), (1, 0)],
        "diagonal": [(0, 0), (0, 1), (1, 0), (2, 0)],
    }
    assert spots[:4] == first[order]


def _hops_by_loops(chip, tiles, tiled, consumers):
    """The definition, with a loop over all pairs of tiles."""
    rows, columns = mesh_order(chip.mesh)
    spots, position = [], 0
    for count in tiles:
        span = range(position, position + count)
        spots.append(sorted((int(rows[t]), int(columns[t])) for t in span))
        position += count
    middle = chip.mesh.size[0] / 2
    result = []
    for layer, own in enumerate(spots):
        readers = consumers[layer]
        targets = [spot for reader in readers if tiled[reader] for spot in spots[reader]]
        if not own:
            firsts = [spots[reader][0] for reader in readers if tiled[reader]]
            result.append((0, max((abs(r - middle) + c for r, c in firsts), default=0)))
            continue
        best = None
        for r, c in own:
            inside = max(abs(r - a) + abs(c - b) for a, b in own)
            if not readers:
                outside = 0.0
            elif targets:
                outside = max(abs(r - a) + abs(c - b) for a, b in targets)
            else:
                outside = abs(r - middle) + c
            if best is None or inside + outside < sum(best):
                best = (inside, outside)
        result.append(best)
    return result


@settings(max_examples=60)
@given(st.data(), st.sampled_from(ORDERS), st.integers(1, 3))
def test_hops_equal_the_definition(data, order, designs):
    chip = load_chip("mnsim_default", ["mesh.size=[8,8]", f"mesh.order={order}"])
    count = data.draw(st.integers(2, 6))
    tiled = [True] + [data.draw(st.booleans()) for _ in range(count - 1)]
    tiles = [
        [data.draw(st.integers(1, 9)) if there else 0 for there in tiled] for _ in range(designs)
    ]
    consumers = [
        data.draw(st.lists(st.integers(i + 1, count - 1), unique=True, max_size=3))
        if i + 1 < count
        else []
        for i in range(count)
    ]
    got = Placement(chip, tiled, consumers).hops(np.array(tiles))
    for design, own in enumerate(tiles):
        expected = _hops_by_loops(chip, own, tiled, consumers)
        pairs = zip(got.inside[design].tolist(), got.outside[design].tolist(), strict=True)
        assert list(pairs) == expected


def _finish_by_loops(network, steps):
    """The recurrence, position by position."""
    finished = {}
    for layer, (first, first_column, first_row, other) in zip(network, steps, strict=True):
        rows, columns = layer.output_size
        times, last = np.zeros((rows, columns)), 0.0
        for i in range(rows):
            for j in range(columns):
                ready = 0.0
                for name in layer.inputs:
                    if name == "input":
                        continue
                    source = network[name].output_size
                    y = needed_positions(layer, 0, source[0])[i]
                    x = needed_positions(layer, 1, source[1])[j]
                    ready = max(ready, finished[name][y, x])
                step = [[first, first_row], [first_column, other]][i > 0][j > 0]
                last = max(last, ready) + step
                times[i, j] = last
        finished[layer.name] = times
    return finished


@settings(max_examples=30)
@given(
    st.lists(
        st.lists(st.tuples(*[st.floats(0.5, 50)] * 4), min_size=6, max_size=6),
        min_size=1,
        max_size=3,
    )
)
def test_the_closed_form_equals_the_recurrence(designs):
    network = residual()
    steps = np.array(designs).transpose(2, 0, 1)
    timeline, latency = Pipeline(Dependencies(network)).run(steps)
    for design, own in enumerate(designs):
        expected = _finish_by_loops(network, own)
        for index, layer in enumerate(network):
            finish = expected[layer.name]
            assert timeline.first_finish_ns[design, index] == pytest.approx(finish[0, 0])
            assert timeline.begin_ns[design, index] == pytest.approx(finish[0, 0] - own[index][0])
            assert timeline.finish_ns[design, index] == pytest.approx(finish[-1, -1])
        assert latency[design] == pytest.approx(expected["f"][0, 0])


def test_needed_positions():
    network = residual()
    # 3x3, padding 1: the first output needs two input rows, then one more each, up to the last.
    assert needed_positions(network["b"], 0, 8).tolist() == [1, 2, 3, 4, 5, 6, 7, 7]
    assert needed_positions(network["p"], 0, 8).tolist() == [1, 3, 5, 7]
    assert needed_positions(network["c"], 0, 4).tolist() == [0, 1, 2, 3]
    assert needed_positions(network["f"], 0, 4).tolist() == [3]
