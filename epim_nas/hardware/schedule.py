"""The time slots of one output position: which rounds run at the same time.

Rounds that share a crossbar are serial; rounds on disjoint crossbars are parallel. The tables are
compiled ahead, so the schedule is free to reorder rounds: every round takes the first slot whose
crossbars are all free (first fit, in the plan's order). See ``docs/cost_model.md``, section 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from epim_nas.epitome.plan import Patch, Round, SamplingPlan

Span = tuple[int, int]
"""A range of channels: (first, count)."""


@dataclass(frozen=True)
class CrossbarGrid:
    """How an epitome's matrix is cut into crossbars.

    Crossbar number ``column_group * row_groups + row_group`` lies in tile ``number // pes``: the
    row groups whose partial sums are added are neighbours.

    Attributes:
        row_groups: crossbars along the rows.
        channels_per_row_group: epitome input channels that a crossbar holds.
        columns: columns of a crossbar.
        columns_per_output: neighbouring columns of an output channel (packed slices).
        layers: crossbars that hold the further slices of the same outputs (sliced).
        outputs: epitome output channels.
        pes: PEs of a tile.
    """

    row_groups: int
    channels_per_row_group: int
    columns: int
    columns_per_output: int
    layers: int
    outputs: int
    pes: int

    @property
    def column_groups(self) -> int:
        """Crossbars along the columns, for all slices."""
        return self.layers * -(-self.outputs * self.columns_per_output // self.columns)


@dataclass(frozen=True)
class SlotClass:
    """Slots of a position that are alike.

    Attributes:
        rows: rows that are driven in the fullest crossbar.
        columns: columns that are converted in the fullest crossbar.
        tiles: tiles that are active.
        count: slots of this class.
        accumulating: those of them that add to a partial sum of an earlier slot.
        emitting: those of them after which results are finished.
        inputs: input features that are fetched for the crossbar that needs most: one a row, or
            several where wrapped input slabs are summed.
    """

    rows: int
    columns: int
    tiles: int
    count: int
    accumulating: int
    emitting: int
    inputs: int


@dataclass(frozen=True)
class Schedule:
    """The slots of one position.

    Attributes:
        slots: classes of slots, in order of their first slot.
        slot_of_round: per round of the plan's sequence, its slot.
        parallel: whether a slot has several rounds.
        held_channels: input channels that a crossbar needs for all of its rounds, at most.
        stored_channels: input channels that the row groups need, summed over row groups.
    """

    slots: tuple[SlotClass, ...]
    slot_of_round: tuple[int, ...]
    parallel: bool
    held_channels: int
    stored_channels: int


@dataclass
class _Slot:
    crossbars: int  # bit mask
    rows: int
    columns: int
    inputs: int
    accumulating: bool = False
    emitting: bool = False


def schedule(plan: SamplingPlan, grid: CrossbarGrid) -> Schedule:
    """The slots that the rounds of ``plan`` take on the crossbars of ``grid``."""
    use = _Usage(plan, grid)
    full = (1 << (grid.row_groups * grid.column_groups)) - 1
    slots: list[_Slot] = []
    slot_of_round = []
    first_open = 0  # all slots before it are full
    for turn in plan.round_sequence:
        need = use.of(turn)
        place = first_open
        while place < len(slots) and slots[place].crossbars & need.crossbars:
            place += 1
        if place == len(slots):
            slots.append(_Slot(need.crossbars, need.rows, need.columns, need.inputs))
        else:
            slot = slots[place]
            slot.crossbars |= need.crossbars
            slot.rows = max(slot.rows, need.rows)
            slot.columns = max(slot.columns, need.columns)
            slot.inputs = max(slot.inputs, need.inputs)
        while first_open < len(slots) and slots[first_open].crossbars == full:
            first_open += 1
        slot_of_round.append(place)

    # The rounds of the same outputs follow one another in the plan.
    summands = plan.rounds_per_output
    for start in range(0, len(slot_of_round), summands):
        places = sorted(set(slot_of_round[start : start + summands]))
        for place in places[1:]:
            slots[place].accumulating = True
        slots[places[-1]].emitting = True

    kinds: dict[tuple[int, int, int, int], list[_Slot]] = {}
    for slot in slots:
        tiles = _tiles(slot.crossbars, grid.pes)
        kinds.setdefault((slot.rows, slot.columns, tiles, slot.inputs), []).append(slot)
    held, stored = use.channels()
    return Schedule(
        slots=tuple(
            SlotClass(
                rows,
                columns,
                tiles,
                count=len(alike),
                accumulating=sum(slot.accumulating for slot in alike),
                emitting=sum(slot.emitting for slot in alike),
                inputs=inputs,
            )
            for (rows, columns, tiles, inputs), alike in kinds.items()
        ),
        slot_of_round=tuple(slot_of_round),
        parallel=len(slots) < len(slot_of_round),
        held_channels=held,
        stored_channels=stored,
    )


@lru_cache(maxsize=4096)
def _tiles(crossbars: int, pes: int) -> int:
    """Tiles that hold a crossbar of a bit mask."""
    tile, count = (1 << pes) - 1, 0
    while crossbars:
        count += bool(crossbars & tile)
        crossbars >>= pes
    return count


@dataclass(frozen=True)
class _Need:
    """What a round needs: a mask of crossbars; rows, columns and inputs in the fullest one."""

    crossbars: int
    column_groups: tuple[int, ...]
    rows: int
    columns: int
    inputs: int


class _Usage:
    """What the rounds of a plan use of the crossbars, each kind of round found once."""

    def __init__(self, plan: SamplingPlan, grid: CrossbarGrid) -> None:
        self._plan = plan
        self._grid = grid
        self._blocks = grid.column_groups // grid.layers
        self._needs: dict[tuple[Span, Span], _Need] = {}

    def of(self, turn: Round) -> _Need:
        """What a round needs."""
        patch, (patch_out, patch_in) = turn.patch, self._plan.patch
        # All channels of a patch are driven whatever their rotation.
        partial = any(other.in_channels < patch_in for other in _summed(self._plan, patch))
        rotation = patch.rotation if partial else 0
        rows = (patch.source_in * patch_in + rotation, patch.in_channels)
        columns = (patch.source_out * patch_out + turn.first, turn.out_channels)
        found = self._needs.get((rows, columns))
        if found is None:
            found = self._needs[rows, columns] = self._need(turn)
        return found

    def _need(self, turn: Round) -> _Need:
        plan, grid, patch = self._plan, self._grid, turn.patch
        row_groups, channels = _blocks(
            _runs_of(patch, plan),
            1,
            grid.channels_per_row_group,
        )
        outputs, columns = _blocks(
            _runs(patch.source_out, turn.first, turn.out_channels, plan.patch[0]),
            grid.columns_per_output,
            grid.columns,
        )
        groups = tuple(
            layer * self._blocks + group for layer in range(grid.layers) for group in outputs
        )
        rows = sum(1 << group for group in row_groups)
        mask = 0
        for group in groups:
            mask |= rows << (group * grid.row_groups)
        kernel = plan.conv_shape[2] * plan.conv_shape[3]
        return _Need(mask, groups, channels * kernel, columns, self._inputs(turn) * kernel)

    def _inputs(self, turn: Round) -> int:
        """Input channels that are fetched for the row group that needs most."""
        counts: Counter[int] = Counter()
        for patch in _summed(self._plan, turn.patch):
            for _, channel, count in _runs_of(patch, self._plan):
                for group, _, found in _cut(channel, count, self._grid.channels_per_row_group):
                    counts[group] += found
        return max(counts.values())

    def channels(self) -> tuple[int, int]:
        """Input channels that the rounds of a position need.

        Returns:
            Those of the crossbar that needs most, and those of every row group, summed.
        """
        plan, grid = self._plan, self._grid
        spans = {self.of(turn).column_groups for turn in plan.round_sequence}
        if len(spans) == 1:  # every round converts the same columns
            return _row_group_channels(plan, grid.channels_per_row_group)
        by_crossbar: dict[tuple[int, int], int] = {}
        by_row_group: dict[int, int] = {}
        for turn in plan.round_sequence:
            for group, mask in _input_channels(plan, turn, grid.channels_per_row_group):
                by_row_group[group] = by_row_group.get(group, 0) | mask
                for column in self.of(turn).column_groups:
                    key = (group, column)
                    by_crossbar[key] = by_crossbar.get(key, 0) | mask
        return _most_and_sum(by_crossbar, by_row_group)


@lru_cache(maxsize=4096)
def _row_group_channels(plan: SamplingPlan, channels_per_row_group: int) -> tuple[int, int]:
    by_row_group: dict[int, int] = {}
    for turn in plan.round_sequence:
        for group, mask in _input_channels(plan, turn, channels_per_row_group):
            by_row_group[group] = by_row_group.get(group, 0) | mask
    return _most_and_sum(by_row_group, by_row_group)


def _most_and_sum(
    by_crossbar: Mapping[Any, int], by_row_group: Mapping[int, int]
) -> tuple[int, int]:
    most = max(mask.bit_count() for mask in by_crossbar.values())
    return most, sum(mask.bit_count() for mask in by_row_group.values())


def _input_channels(plan: SamplingPlan, turn: Round, size: int) -> list[tuple[int, int]]:
    """(row group, bit mask of the input channels that a round fetches for it)."""
    before = turn.group * plan.conv_shape[1]
    order = None
    if plan.in_order is not None:
        order = plan.in_order[turn.patch.target_out // plan.patch[0]]
    masks = []
    for patch in _summed(plan, turn.patch):
        for position, channel, count in _runs_of(patch, plan):
            for row_group, first, width in _cut(channel, count, size):
                start = patch.target_in + position + first - channel
                if order is None:
                    mask = ((1 << width) - 1) << (before + start)
                else:
                    inputs = order[start : start + width]
                    mask = sum(1 << (before + index) for index in inputs)
                masks.append((row_group, mask))
    return masks


def _summed(plan: SamplingPlan, patch: Patch) -> Sequence[Patch]:
    """The patches whose inputs are summed to drive those of ``patch``: itself, and its repeats."""
    if plan.summed_slabs == 1:
        return (patch,)
    first = patch.target_out // plan.patch[0] * plan.in_slabs
    return plan.patches[first : first + plan.in_slabs]


def _runs_of(patch: Patch, plan: SamplingPlan) -> list[tuple[int, int, int]]:
    """(position, channel, count) of a patch's input channels."""
    return _runs(patch.source_in, patch.rotation, patch.in_channels, plan.patch[1])


def _runs(start: int, rotation: int, count: int, period: int) -> list[tuple[int, int, int]]:
    """(position, channel, count) of neighbouring channels.

    The channels are ``start + (position + rotation) % period``: a rotation makes two runs.
    """
    straight = min(count, period - rotation)
    runs = [(0, start + rotation, straight)]
    if straight < count:
        runs.append((straight, start, count - straight))
    return runs


def _blocks(runs: list[tuple[int, int, int]], width: int, size: int) -> tuple[Sequence[int], int]:
    """Blocks of ``size`` that channels of ``width`` reach into, and the most in one block."""
    if len(runs) == 1:
        _, start, count = runs[0]
        begin, end = start * width, (start + count) * width
        first, last = begin // size, (end - 1) // size
        if first == last:
            return (first,), end - begin
        most = size if last - first > 1 else max((first + 1) * size - begin, end - last * size)
        return range(first, last + 1), most
    counts: Counter[int] = Counter()
    for _, start, count in runs:
        for block, _, found in _cut(start * width, count * width, size):
            counts[block] += found
    return sorted(counts), max(counts.values())


def _cut(start: int, count: int, size: int) -> list[tuple[int, int, int]]:
    """(block, first, count) of the range start .. start + count in blocks of ``size``."""
    pieces = []
    end = start + count
    while start < end:
        stop = min(end, (start // size + 1) * size)
        pieces.append((start // size, start, stop - start))
        start = stop
    return pieces
