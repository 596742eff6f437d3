"""What a layer's crossbars, converters and buffers do for one inference, counted step by step.

Nothing here uses the cost model: slots, rows and columns are read off the index tables, positions
are walked one by one. The conventions are those of ``docs/cost_model.md``: all PEs of a tile with
an active crossbar work (section 7), every PE as much as the fullest one (section 1), and accesses
are bus words of one buffer (section 4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil, log2

import numpy as np

from epim_nas.datapath.cells import SliceRule
from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.round_use import RoundUse
from epim_nas.datapath.tables import NOTHING
from epim_nas.epitome.design import Design
from epim_nas.errors import InputError
from epim_nas.hardware.bits import DataFlow
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.components import Components
from epim_nas.network.spec import LayerSpec, Network


@dataclass
class Slot:
    """One time slot of an output position.

    Attributes:
        rows: word lines that are driven in the fullest crossbar.
        features: inputs that are fetched for them; more where input slabs are summed.
        columns: columns that are converted in the fullest crossbar.
        tiles: tiles with an active crossbar.
        accumulates: whether a result is added to one of an earlier slot.
        emits: whether an output is finished.
    """

    rows: int = 0
    features: int = 0
    columns: int = 0
    tiles: set[int] = field(default_factory=set)
    accumulates: bool = False
    emits: bool = False


def count_network(network: Network, design: Design, chip: Chip) -> dict[str, dict[str, int]]:
    """The events of one inference of every layer with weights, by its name.

    Args:
        network: the network.
        design: a choice with weight and activation bits for every layer with weights.
        chip: the chip.

    Raises:
        InputError: a layer is in floating point, or its epitome does not fit.
    """
    design.check_fits(network)
    bits = []
    for spec in network.weighted:
        choice = design[spec.name]
        if choice.weight_bits is None or choice.activation_bits is None:
            raise InputError(
                f"layer {spec.name}",
                "is in floating point",
                "weight and activation bits for every layer",
            )
        bits.append(float(choice.activation_bits))
    written = DataFlow(network).output_bits(np.array(bits))
    events = {}
    for spec, output_bits in zip(network.layers, written, strict=True):
        if spec.has_weight:
            choice = design[spec.name]
            assert choice.weight_bits is not None
            assert choice.activation_bits is not None
            events[spec.name] = count_events(
                spec,
                LayerTables.of(spec, choice, chip),
                SliceRule.of(choice.weight_bits, chip),
                choice.activation_bits,
                int(output_bits),
                chip,
            )
    return events


def count_events(
    spec: LayerSpec,
    layer: LayerTables,
    rule: SliceRule,
    input_bits: int,
    output_bits: int,
    chip: Chip,
) -> dict[str, int]:
    """The events of one inference of a layer with weights.

    Args:
        spec: the layer's geometry.
        layer: its index tables.
        rule: how a weight becomes cells.
        input_bits: bits of the activations that it reads.
        output_bits: bits of the activations that it writes.
        chip: the chip.

    Returns:
        Counts by the names of :data:`~epim_nas.hardware.timing.COUNTS`.
    """
    parts, bus = Components.of(chip), chip.buffer.bus_bits
    groups = min(rule.slices, rule.groups)
    pes = min(layer.crossbars, layer.grid.pes)
    slabs = layer.tables.ifat.shape[1]
    cycles = ceil((input_bits + (slabs - 1).bit_length()) / parts.dac.bits)
    sum_bits = parts.adc.bits + ceil(log2(pes))
    use = RoundUse(layer)
    slots = list(_slots(layer, use))
    held = _held_channels(layer, use)
    computed = sum(int((row != NOTHING).sum()) for row in _opened(layer))
    replicas = layer.conv_shape[0] - computed
    events: Counter[str] = Counter()
    for kind, times in Counter(_positions(spec)).items():
        events["input_writes"] += times * ceil(
            held * _new_inputs(spec, kind, chip) * input_bits / bus
        )
        for slot in slots:
            turns = ceil(slot.rows / parts.dacs) * ceil(slot.columns / parts.adcs_per_subarray)
            reads = times * len(slot.tiles) * pes * cycles * turns
            events["activations"] += reads
            events["dac_conversions"] += reads * groups * ceil(slot.rows / parts.demux_ratio)
            events["adc_conversions"] += reads * groups * ceil(slot.columns / parts.mux_ratio)
            features = slot.features
            if len(slots) == 1 and spec.type != "fc" and kind in ("first_row", "other"):
                # The columns of the window that were read before are still in the registers.
                kernel_h, kernel_w = spec.kernel
                features = slot.features // (kernel_h * kernel_w) * kernel_h * spec.stride[1]
            events["input_reads"] += times * ceil(features * input_bits / bus)
            partial = times * ceil(slot.columns * pes * sum_bits / bus)
            events["output_writes"] += partial
            if slot.accumulates:
                events["output_reads"] += partial
            if slot.emits:
                events["output_reads"] += times * ceil(slot.columns * pes * output_bits / bus)
        events["output_writes"] += times * ceil(replicas * output_bits / layer.tiles / bus)
        if layer.entry is not None and len(slots) > 1:
            table_bus = chip.index_table.bus_bits or bus
            events["table_reads"] += times * len(slots) * ceil(layer.entry.bits / table_bus)
    return dict(events)


def _slots(layer: LayerTables, use: RoundUse) -> Iterator[Slot]:
    tables, grid = layer.tables, layer.grid
    kernel = layer.conv_shape[2] * layer.conv_shape[3]
    accumulating, emitting = _partial_sums(layer)
    for number in range(tables.slots):
        slot = Slot(accumulates=number in accumulating, emits=number in emitting)
        for turn in use.rounds(number):
            for crossbar in use.crossbars(turn):
                slot.tiles.add(crossbar // grid.pes)
                column_group, row_group = divmod(crossbar, grid.row_groups)
                channels = use.channels(turn, row_group)
                fetched = int((tables.ifat[turn][:, channels] != NOTHING).sum())
                slot.rows = max(slot.rows, len(channels) * kernel)
                slot.features = max(slot.features, fetched * kernel)
                slot.columns = max(slot.columns, use.converted(turn, column_group))
        yield slot


def _partial_sums(layer: LayerTables) -> tuple[set[int], set[int]]:
    """Slots that add to an earlier slot's results, and slots that finish outputs."""
    slots_of: dict[tuple[int, ...], set[int]] = {}
    for turn in range(layer.tables.rounds):
        outputs = tuple(layer.tables.ofat[turn, 0].tolist())
        slots_of.setdefault(outputs, set()).add(int(layer.tables.slot[turn]))
    accumulating, emitting = set(), set()
    for slots in slots_of.values():
        first, *others = sorted(slots)
        accumulating.update(others)
        emitting.add((others or [first])[-1])
    return accumulating, emitting


def _opened(layer: LayerTables) -> list[np.ndarray]:
    return [layer.tables.ofat[turn, 0] for turn in np.flatnonzero(layer.tables.opens)]


def _held_channels(layer: LayerTables, use: RoundUse) -> int:
    """Input channels that the crossbar with the most needs for all of its rounds."""
    needed: dict[int, set[int]] = {}
    for turn in range(layer.tables.rounds):
        for crossbar in use.crossbars(turn):
            channels = use.channels(turn, crossbar % layer.grid.row_groups)
            found = layer.tables.ifat[turn][:, channels]
            needed.setdefault(crossbar, set()).update(found[found != NOTHING].tolist())
    return max(len(channels) for channels in needed.values())


def _positions(spec: LayerSpec) -> Iterator[str]:
    rows, columns = spec.output_size
    for row in range(rows):
        for column in range(columns):
            if row == 0 and column == 0:
                yield "first"
            elif column == 0:
                yield "first_column"
            elif row == 0:
                yield "first_row"
            else:
                yield "other"


def _new_inputs(spec: LayerSpec, kind: str, chip: Chip) -> int:
    """Inputs of a channel that arrive for a position."""
    if spec.type == "fc":
        return 1
    extents = [(k - 1) * d + 1 for k, d in zip(spec.kernel, spec.dilation, strict=True)]
    inside = [max(extent - pad, 0) for extent, pad in zip(extents, spec.padding, strict=True)]
    (stride_h, stride_w), width = spec.stride, spec.input_size[1]
    if chip.pipeline.input_fill == "line":
        return {
            "first": width * max(inside[0] - 1, 0) + inside[1],
            "first_column": width * (stride_h - 1) + inside[1],
        }.get(kind, stride_w)
    return {
        "first": inside[0] * inside[1],
        "first_column": stride_h * inside[1],
        "first_row": extents[0] * stride_w,
        "other": stride_h * stride_w,
    }[kind]
