"""Rounds on crossbars, against a count of every cell by loops."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epim_nas.epitome.design import Choice, Design
from epim_nas.epitome.plan import SamplingPlan
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.hardware import CostModel, load_chip
from epim_nas.hardware.schedule import CrossbarGrid, schedule
from epim_nas.network.spec import Network
from tests.epitome.test_plan import plans, reordered_plans
from tests.hardware.nets import conv


@st.composite
def grids(draw: st.DrawFn, plan: SamplingPlan) -> CrossbarGrid:
    """Crossbars that are small enough for small plans to need several."""
    channels = draw(st.integers(1, 5))
    packed = draw(st.booleans())
    per_group = draw(st.integers(1, 3))
    return CrossbarGrid(
        row_groups=-(-plan.shape.in_channels // channels),
        channels_per_row_group=channels,
        columns=draw(st.integers(2, 7)),
        columns_per_output=per_group if packed else 1,
        layers=1 if packed else per_group,
        outputs=plan.shape.out_channels,
        pes=draw(st.integers(1, 4)),
    )


def _cells(plan: SamplingPlan, grid: CrossbarGrid):
    """Per round, crossbar -> (rows, columns, input channels, its row group, inputs), by loops."""
    kernel = plan.conv_shape[2] * plan.conv_shape[3]
    blocks = -(-plan.shape.out_channels * grid.columns_per_output // grid.columns)
    for turn in plan.round_sequence:
        patch = turn.patch
        rows: dict[int, set[int]] = {}
        inputs: dict[int, list[int]] = {}
        for slab in range(plan.in_slabs if plan.wrap_in else 1):
            for j in range(plan.patch[1]):
                channel = patch.source_in + (j + patch.rotation) % plan.patch[1]
                position = patch.target_in + slab * plan.patch[1] + j
                if position >= plan.conv_shape[1]:
                    continue
                if plan.in_order is not None:
                    position = plan.in_order[patch.target_out // plan.patch[0]][position]
                source = turn.group * plan.conv_shape[1] + position
                row_group = channel // grid.channels_per_row_group
                rows.setdefault(row_group, set()).add(channel)
                inputs.setdefault(row_group, []).append(source)
        columns: dict[int, int] = {}
        for i in range(turn.out_channels):
            output = patch.source_out + (turn.first + i) % plan.patch[0]
            for part in range(grid.columns_per_output):
                group = (output * grid.columns_per_output + part) // grid.columns
                columns[group] = columns.get(group, 0) + 1
        yield {
            ((layer * blocks + group) * grid.row_groups + row_group): (
                len(channels) * kernel,
                width,
                set(inputs[row_group]),
                row_group,
                len(inputs[row_group]) * kernel,
            )
            for layer in range(grid.layers)
            for group, width in columns.items()
            for row_group, channels in rows.items()
        }


@settings(max_examples=150)
@given(st.data())
def test_slots_by_loops_over_every_cell(data):
    plan = data.draw(st.one_of(plans(), reordered_plans()))
    grid = data.draw(grids(plan))
    found = schedule(plan, grid)
    use = list(_cells(plan, grid))
    by_slot: dict[int, list[int]] = {}
    for turn, place in enumerate(found.slot_of_round):
        by_slot.setdefault(place, []).append(turn)

    # Rounds of a slot are on disjoint crossbars, and none could have been earlier.
    for place, turns in by_slot.items():
        busy = [crossbar for turn in turns for crossbar in use[turn]]
        assert len(busy) == len(set(busy))
        for turn in turns:
            for earlier in range(place):
                before = [t for t in by_slot[earlier] if t < turn]
                assert any(set(use[t]) & set(use[turn]) for t in before)
    load: dict[int, int] = {}
    for crossbars in use:
        for crossbar in crossbars:
            load[crossbar] = load.get(crossbar, 0) + 1
    slots = sum(slot.count for slot in found.slots)
    assert max(load.values()) <= slots <= len(use)
    assert found.parallel == (slots < len(use))

    # What a slot drives, converts, accumulates and emits.
    expected: dict[tuple[int, int, int, int], list[int]] = {}
    outputs = [turn // (1 if plan.wrap_in else plan.in_slabs) for turn in range(len(use))]
    for place, turns in sorted(by_slot.items()):
        cells = [cell for turn in turns for cell in use[turn].values()]
        tiles = {crossbar // grid.pes for turn in turns for crossbar in use[turn]}
        most = [max(cell[index] for cell in cells) for index in (0, 1, 4)]
        key = (most[0], most[1], len(tiles), most[2])
        places = {
            turn: [found.slot_of_round[t] for t in range(len(use)) if outputs[t] == outputs[turn]]
            for turn in turns
        }
        entry = expected.setdefault(key, [0, 0, 0])
        entry[0] += 1
        entry[1] += any(min(other) < place for other in places.values())
        entry[2] += any(max(other) == place for other in places.values())
    got = {
        (slot.rows, slot.columns, slot.tiles, slot.inputs): [
            slot.count,
            slot.accumulating,
            slot.emitting,
        ]
        for slot in found.slots
    }
    assert got == expected

    # The input channels that crossbars and row groups need.
    by_crossbar: dict[int, set[int]] = {}
    by_row_group: dict[int, set[int]] = {}
    for crossbars in use:
        for crossbar, (_, _, sources, row_group, _) in crossbars.items():
            by_crossbar.setdefault(crossbar, set()).update(sources)
            by_row_group.setdefault(row_group, set()).update(sources)
    assert found.held_channels == max(map(len, by_crossbar.values()))
    assert found.stored_channels == sum(map(len, by_row_group.values()))


def _one(layer, choice, chip):
    network = Network("one", (layer,), (layer.in_channels, *layer.input_size))
    return CostModel(network, chip).evaluate(Design("one", {layer.name: choice}))


def test_patches_on_disjoint_crossbars_are_parallel():
    """Half-width patches: with 3-bit weights 32 outputs are the 64 columns of one crossbar."""
    chip = load_chip("xbar_64")
    layer = conv("c", "input", 32, 128, 8)
    shape = EpitomeShape(64, 16, 3, 3)
    whole = _one(layer, Choice(shape, False, 3, 9), chip)
    halves = _one(layer, Choice(shape, False, 3, 9, patch=(32, 16)), chip)
    assert whole.totals.rounds == 4
    assert halves.totals.rounds == 8
    # Output slabs 0..3 start at 0, 11, 21, 32 of the epitome: the first and the last share none.
    plan = Choice(shape, patch=(32, 16)).plan(layer)
    assert sorted({patch.source_out for patch in plan.patches}) == [0, 11, 21, 32]
    assert halves.layers[0].mapping.slot_count == 6
    assert whole.layers[0].mapping.slot_count == 4


def test_a_depthwise_epitome_runs_its_column_groups_in_parallel():
    """64 channels of 3x3, one output each: 3-bit weights take 2 columns, 32 channels a crossbar."""
    chip = load_chip("xbar_64")
    layer = conv("c", "input", 64, 64, 8, groups=64)
    stored = _one(layer, Choice(EpitomeShape(64, 1, 3, 3), False, 3, 9), chip)
    mapping = stored.layers[0].mapping
    assert (mapping.crossbars, mapping.rounds, mapping.slot_count) == (2, 64, 32)
    assert [(slot.rows, slot.columns) for slot in mapping.slots] == [(9, 2)]
    assert (mapping.held_channels, mapping.stored_channels) == (32, 64)
    dense = _one(layer, Choice(None, False, 3, 9), chip)
    assert dense.layers[0].mapping.crossbars == 20


@pytest.mark.parametrize(
    ("outputs", "inputs", "slots"),
    [
        # 20 = 16 + 4 output channels: the last slab converts 8 columns instead of 32.
        (20, 16, {(63, 32): 1, (63, 8): 1}),
        # 24 = 16 + 8 input channels: the second round is rotated by one, channels 1 to 8.
        (16, 24, {(63, 32): 1, (54, 32): 1}),
        # 20 = 16 + 4: the second round drives 4 channels.
        (16, 20, {(63, 32): 1, (36, 32): 1}),
    ],
)
def test_partial_slabs_are_charged_by_what_they_activate(outputs, inputs, slots):
    layer = conv("c", "input", inputs, outputs, 8)
    cost = _one(layer, Choice(EpitomeShape(16, 16, 3, 3), False, 3, 9), load_chip("xbar_64"))
    found = {(slot.rows, slot.columns): slot.count for slot in cost.layers[0].mapping.slots}
    assert found == slots
