"""Index tables and memories: running a layer by them is the integer convolution."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from epim_nas import EpitomeShape, InputError, load_chip
from epim_nas.datapath.cells import cell_memory, program
from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.memory import Memory
from epim_nas.datapath.tables import IndexTables
from epim_nas.datapath.tiles import replica_memory, tile_memories
from epim_nas.epitome.design import Choice
from epim_nas.hardware.mapping import map_layer
from tests.datapath.cases import Case, cases
from tests.hardware.nets import conv


def drive(case: Case, tables: IndexTables, turn: int) -> np.ndarray:
    """The input of every word line of all row groups in a round."""
    lines = np.zeros(case.grid.row_groups * case.rows, dtype=int)
    for place, line in enumerate(tables.ifrt[turn]):
        for y, x in np.ndindex(*case.plan.conv_shape[2:]):
            for channels in tables.ifat[turn]:
                if line >= 0 and channels[place] >= 0:
                    lines[line + y * case.plan.shape.width + x] += case.inputs[
                        channels[place], y, x
                    ]
    return lines


def matrix(case: Case) -> np.ndarray:
    """(row groups X, Oe) the epitome as it lies on the crossbars."""
    cells = case.plan.shape.height * case.plan.shape.width
    lines = np.zeros((case.grid.row_groups * case.rows, case.plan.shape.out_channels), dtype=int)
    for channel in range(case.plan.shape.in_channels):
        group, local = divmod(channel, case.grid.channels_per_row_group)
        start = group * case.rows + local * cells
        lines[start : start + cells] = case.epitome[:, channel].reshape(-1, cells).T
    return lines


@settings(max_examples=150)
@given(cases())
def test_rounds_by_the_tables_are_the_convolution(case: Case) -> None:
    tables = IndexTables.build(case.plan, case.grid, case.rows)
    out = np.full(case.plan.conv_shape[0], -(10**9))  # what was never opened shows
    for turn in range(tables.rounds):
        sums = drive(case, tables, turn) @ matrix(case)
        for place, column in enumerate(tables.columns[turn]):
            for target in tables.ofat[turn, :, place]:
                if column >= 0 and target >= 0:
                    out[target] = sums[column] + (0 if tables.opens[turn] else out[target])
    assert out.tolist() == case.convolved.tolist()
    assert tables.closes.sum() == tables.opens.sum()


def unpack(memory: Memory, address: int) -> list[list[int]]:
    """Records of a word as the page of the formats describes them."""
    word, found = memory.words[address], []
    for _ in range(memory.count):
        record = []
        for field in memory.fields:
            record.append(word % 2**field.bits)
            word //= 2**field.bits
        found.append(record)
    assert word == 0
    return found


def run_by_memories(case: Case, layer: LayerTables, cells: list[list[list[Memory]]]) -> np.ndarray:
    """What a chip that reads the memories computes: slot by slot, tile by tile, cell by cell.

    Args:
        case: the inputs.
        layer: the tables.
        cells: per crossbar, group and polarity the memory of the cells.
    """
    grid, rule, entry = case.grid, case.rule, layer.entry
    assert entry is not None
    per_group = grid.columns_per_output * grid.layers
    blocks = grid.column_groups // grid.layers
    slabs = layer.tables.ifat.shape[1]
    total: dict[int, int] = defaultdict(int)
    for tile in tile_memories(layer):
        buffer: dict[int, int] = {}
        finished: dict[int, int] = {}
        for slot in range(layer.tables.slots):
            fetched = unpack(tile.memories["ifat"], slot)
            lines = unpack(tile.memories["ifrt"], slot)
            drivers = []
            for driver in range(entry.drivers):
                driven = np.zeros(case.rows, dtype=int)
                for lane in range(driver * entry.channels, (driver + 1) * entry.channels):
                    for valid, channel in fetched[lane * slabs : (lane + 1) * slabs]:
                        for y, x in np.ndindex(*case.plan.conv_shape[2:]):
                            line = lines[lane][0] + y * case.plan.shape.width + x
                            if valid:
                                driven[line] += case.inputs[channel, y, x]
                drivers.append(driven)
            # Sums of every PE: leader, epitome channel -> value.
            sums: dict[tuple[int, int], int] = defaultdict(int)
            for pe, (active, leader) in zip(
                tile.pes, unpack(tile.memories["control"], slot), strict=False
            ):
                driven = drivers[pe.driver]
                for group in range(rule.groups if active else 0):
                    images = cells[pe.number][group]
                    values = [
                        np.array([[c for (c,) in unpack(image, r)] for r in range(case.rows)])
                        for image in images
                    ]
                    cell_sums = driven @ (values[0] - values[1] if len(values) == 2 else values[0])
                    for column, value in enumerate(cell_sums):
                        cell = pe.column_group % blocks * grid.columns + column
                        channel, part = divmod(cell, grid.columns_per_output)
                        part += pe.column_group // blocks
                        shift = (group * per_group + part) * rule.cell_bits
                        sums[leader, channel] += int(value) << shift
                        if part == 0 and group == 0:
                            sums[leader, channel] -= rule.offset * int(driven.sum())
            for word in range(tile.words_per_slot):
                address = slot * tile.words_per_slot + word
                for valid, opens, closes, leader, column, output in unpack(
                    tile.memories["ofat"], address
                ):
                    if not valid:
                        continue
                    assert opens == (output not in buffer)
                    assert output not in finished
                    buffer[output] = buffer.get(output, 0) + sums[leader, column]
                    if closes:
                        finished[output] = buffer[output]
        assert finished == buffer
        for output, value in finished.items():
            total[output] += value
    copies = replica_memory(layer)
    for address in range(len(copies.words) if copies else 0):
        assert copies is not None
        ((source, target),) = unpack(copies, address)
        assert target not in total
        total[target] = total[source]
    return np.array([total[output] for output in range(layer.conv_shape[0])])


@settings(max_examples=150)
@given(cases())
def test_running_by_the_memories_is_the_convolution(case: Case) -> None:
    layer = LayerTables.on_grid("c", case.plan, case.grid, case.rows)
    if layer.entry is None:
        assert tile_memories(layer) == []
        return
    programmed = program(case.epitome, case.grid, case.rows, case.rule)
    cells = [
        [[cell_memory(image, case.rule.cell_bits) for image in group] for group in crossbar]
        for crossbar in programmed
    ]
    assert run_by_memories(case, layer, cells).tolist() == case.convolved.tolist()


@settings(max_examples=150)
@given(
    st.sampled_from(["xbar_64", "epim_256", "raella_512"]),
    st.sampled_from(["packed", "sliced"]),
    st.sampled_from([(64, 64, 3, 1), (128, 64, 1, 1), (96, 96, 3, 4), (512, 16, 1, 1)]),
    st.sampled_from([1, 2, 3, 4]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0, 1]),
    st.sampled_from([2, 3, 9]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 2, 3]),
)
def test_addresses_take_the_bits_that_the_cost_model_charges(
    name, packing, sizes, out_fraction, in_fraction, growth, bits, wrap, wrap_in, patch_fraction
):
    outputs, inputs, kernel, groups = sizes
    chip = load_chip(name, [f"mapping.packing={packing}"])
    layer = conv("c", "input", inputs, outputs, 8, kernel, groups=groups)
    shape = EpitomeShape(
        outputs // out_fraction, inputs // groups // in_fraction, kernel + growth, kernel + growth
    )
    patch = (
        None
        if patch_fraction is None
        else (shape.out_channels // patch_fraction, max(1, shape.in_channels // patch_fraction))
    )
    choice = Choice(shape, wrap, bits, 9, patch, wrap_in)
    try:
        mapping = map_layer(layer, choice, chip)
    except InputError:  # a grown 1x1 epitome is larger than the weight
        assume(False)
    tables = LayerTables.of(layer, choice, chip)
    tiles = tile_memories(tables)
    assert tables.tables.slots == mapping.slot_count
    assert tables.tables.rounds == mapping.rounds
    if tables.entry is None:
        assert mapping.table_bits == 0
        return
    assert len(tiles) == mapping.tiles
    copies = replica_memory(tables)
    assert (len(copies.words) if copies else 0) == mapping.replicas
    # The bits, counted field by field from the memories.
    for tile in tiles:
        more = (tile.words_per_slot - 1) * tables.entry.outputs * tables.entry.output_bits
        assert tile.address_bits == mapping.slot_count * (mapping.table_bits + more)
