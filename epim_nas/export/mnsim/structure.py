"""``NetStruct``: what MNSIM's hardware models read of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, isqrt

from epim_nas.epitome.design import FLOAT_BITS, Choice, Design
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.export.mnsim.remarks import (
    NO_WEIGHT_BITS,
    DataBits,
    Entry,
    Remarks,
    check_reads,
    check_square,
    is_depthwise,
    refuse,
)
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.mapping import LayerMapping, map_layer, mapped_plan
from epim_nas.network.spec import LayerSpec, Network


def _dense_rows(
    shape: EpitomeShape, mapping: LayerMapping, crossbar_rows: int, kernels: Sequence[int]
) -> tuple[int, int, int]:
    """Input channels and kernel size of the dense layer on the same crossbar rows.

    MNSIM puts floor(X / k^2) channels on a crossbar of X rows. Of all k, the one whose fullest
    crossbar has the most similar rows in use; for a square epitome that is the epitome's own.

    Args:
        shape: the epitome, or the dense weight.
        mapping: how it is mapped.
        crossbar_rows: rows X of a crossbar.
        kernels: the k to choose from.

    Returns:
        Input channels, kernel size, and the rows of the fullest crossbar.
    """
    found = []
    for kernel in kernels:
        area = kernel**2
        each = crossbar_rows // area
        least, most = (mapping.row_groups - 1) * each + 1, mapping.row_groups * each
        channels = min(max(round(shape.rows / area), least), most)
        rows, offset = min(each, channels) * area, abs(channels * area - shape.rows)
        rank = (abs(rows - mapping.rows), offset, abs(area - shape.height * shape.width))
        found.append((rank, (channels, kernel, rows)))
    return min(found)[1]


def _kernels(layer: LayerSpec, shape: EpitomeShape, chip: Chip) -> Sequence[int]:
    """Kernel sizes that may stand for a layer's."""
    if layer.type == "fc":
        return (1,)
    if shape.height == shape.width:
        return (shape.height,)
    # MNSIM clips at the border what a position waits for, but not of a 1x1 convolution.
    ends = (
        (count - 1) * stride < size
        for count, stride, size in zip(
            layer.output_size, layer.stride, layer.input_size, strict=True
        )
    )
    largest = isqrt(chip.crossbar.rows)
    return range(1 if all(ends) or largest < 2 else 2, largest + 1)


class Structure:
    """The dictionaries of the hardware models, by layer."""

    def __init__(
        self, design: Design, network: Network, chip: Chip, bits: DataBits, notes: Remarks
    ) -> None:
        self._network, self._chip, self._bits, self._notes = network, chip, bits, notes
        self.entries: dict[str, Entry] = {}
        self.totals = dict.fromkeys(
            ("mnsim_crossbars", "mnsim_tiles", "design_crossbars", "design_tiles"), 0
        )
        for layer in network.layers:
            inputs: Sequence[str] = layer.inputs
            if layer.type == "element_sum":
                inputs = self._sum_inputs(layer)
                entry: Entry = {"type": "element_sum"}
            elif layer.type == "pooling":
                entry = self._pooling(layer)
            else:
                entry = self._weighted(layer, design[layer.name])
            self._finish(layer, entry, inputs)
        if self.totals["mnsim_crossbars"] != self.totals["design_crossbars"]:
            notes.add(
                f"the chip packs bit slices side by side: {self.totals['design_crossbars']} "
                "crossbars; MNSIM puts each slice on a crossbar of its own: "
                f"{self.totals['mnsim_crossbars']}"
            )

    def _finish(self, layer: LayerSpec, entry: Entry, inputs: Sequence[str]) -> None:
        index = self._network.index
        here, extra = index[layer.name], entry.pop("epim_nas", {"layer": layer.name})
        readers = self._network.consumers[layer.name]
        entry.setdefault("Weightbit", NO_WEIGHT_BITS)
        entry["Inputbit"] = self._bits.read[layer.name]
        entry["outputbit"] = self._bits.written[layer.name]
        image = self._network.input_name
        entry["Inputindex"] = [-1 if n == image else index[n] - here for n in inputs]
        entry["Outputindex"] = [index[n] - here for n in dict.fromkeys(readers)]
        entry["Layerindex"] = here
        entry["epim_nas"] = extra
        self.entries[layer.name] = entry
        if here and layer.type in ("conv", "pooling"):
            check_reads(self._network, layer, entry)
        sizes = {self._network[n].output_size for n in layer.inputs if n != image}
        if layer.type != "fc" and sizes - {layer.input_size}:
            self._notes.add(
                "reads a part of a larger map; MNSIM waits for other positions", layer.name
            )
        if not readers and here + 1 < len(self._network):
            self._notes.add(
                "nobody reads its output; MNSIM sends it to the accumulator, and takes the "
                "network for finished with one such layer",
                layer.name,
            )

    def _sum_inputs(self, layer: LayerSpec) -> Sequence[str]:
        """The inputs, in an order from which MNSIM learns the right size.

        It takes size, channels and bits of a sum from its first input that is not a sum itself.
        """
        network, where = self._network, f"{layer.name}.inputs"
        if len(layer.inputs) < 2:
            refuse(network, where, "a sum of one input", "at least two inputs")
        for name in layer.inputs:
            if network[name].positions < layer.positions:
                refuse(
                    network,
                    where,
                    f"`{name}` has {network[name].positions} positions, the sum {layer.positions}",
                    "inputs of the sum's size",
                    "MNSIM has no gates and no repeated maps.",
                )
        plain = [name for name in layer.inputs if network[name].type != "element_sum"]
        fitting = [
            name
            for name in plain
            if network[name].type != "fc" and network[name].output_size == layer.output_size
        ]
        if not fitting:
            refuse(
                network, where, "no convolution or pooling of the sum's size", "at least one such"
            )
        channels = {name: self.entries[name]["Outputchannel"] for name in fitting}
        best = next((n for n in fitting if channels[n] == layer.out_channels), fitting[0])
        if channels[best] != layer.out_channels:
            self._notes.add(
                "adds fewer channels in MNSIM than in the network: those of an epitome", layer.name
            )
        if plain[0] == best:
            return layer.inputs
        others = list(layer.inputs)
        others.remove(best)
        return [best, *others]

    def _pooling(self, layer: LayerSpec) -> Entry:
        check_square(self._network, layer, ("kernel", "stride", "padding", "dilation"))
        self.totals["mnsim_tiles"] += 1
        self.totals["design_tiles"] += 1
        return self._window(layer, "pooling", layer.in_channels, layer.kernel[0])

    def _window(self, layer: LayerSpec, kind: str, channels: int, kernel: int) -> Entry:
        # Extent of the real kernel less its padding: the inputs that the first position needs.
        first = max(
            (k - 1) * d + 1 - p
            for k, d, p in zip(layer.kernel, layer.dilation, layer.padding, strict=True)
        )
        return {
            "type": kind,
            "Inputchannel": channels,
            "Inputsize": list(layer.input_size),
            "Kernelsize": kernel,
            "Stride": layer.stride[0],
            "Padding": max(kernel - first, 0),
            "Outputchannel": layer.out_channels,
            "Outputsize": list(layer.output_size),
        }

    def _weighted(self, layer: LayerSpec, choice: Choice) -> Entry:
        chip, mapping = self._chip, map_layer(layer, choice, self._chip)
        shape = mapped_plan(layer, choice, chip).shape
        channels, kernel, rows = _dense_rows(
            shape, mapping, chip.crossbar.rows, _kernels(layer, shape, chip)
        )
        if layer.type == "fc":
            entry: Entry = {
                "type": "fc",
                "Infeature": channels,
                "Outfeature": shape.out_channels,
                "Outputchannel": shape.out_channels,
                "Outputsize": [1, 1],
            }
        else:
            check_square(self._network, layer, ("stride",))
            entry = self._window(layer, "conv", channels, kernel)
            entry["Outputchannel"] = shape.out_channels
            entry["Depthwise"] = (
                "separable" if choice.shape is None and is_depthwise(layer) else "normal"
            )
        # MNSIM's cost has one bit a cell; these bits give it as many slices as the chip's cells.
        entry["Weightbit"] = mapping.slices + (1 if chip.mapping.polarity == 2 else 0)
        entry["row_split_num"] = mapping.row_groups
        # Older and newer versions call it by another name.
        entry["weight_cycle"] = entry["weight_bit_split_part"] = mapping.slices
        entry["epim_nas"] = _beyond(layer, choice, mapping)
        self._count(mapping, shape.out_channels)
        self._remark(layer, choice, mapping, rows)
        return entry

    def _count(self, mapping: LayerMapping, outputs: int) -> None:
        size, pes = self._chip.crossbar, self._chip.tile.pes[0] * self._chip.tile.pes[1]
        slices = ceil(mapping.slices / self._chip.mapping.groups)
        crossbars = mapping.row_groups * slices * ceil(outputs / size.columns)
        for name, count in (
            ("mnsim_crossbars", crossbars),
            ("mnsim_tiles", ceil(crossbars / pes)),
            ("design_crossbars", mapping.crossbars),
            ("design_tiles", mapping.tiles),
        ):
            self.totals[name] += count

    def _remark(self, layer: LayerSpec, choice: Choice, mapping: LayerMapping, rows: int) -> None:
        shape = mapped_plan(layer, choice, self._chip).shape
        facts = (
            (
                choice.shape is not None,
                "an epitome: its channels stand where MNSIM looks for those of the network, so "
                "that it moves and buffers too few values; index tables are left out",
            ),
            (
                mapping.slot_count > 1,
                "takes several activations a position (`rounds` in `slots`); MNSIM counts one",
            ),
            (choice.wrap, "output-channel wrapping: MNSIM does not write the copies (`replicas`)"),
            (choice.wrap_in, "input-channel wrapping: MNSIM does not add inputs before the rows"),
            (
                layer.groups > 1 and choice.shape is None,
                "grouped: stored as a dense convolution, with zeros outside of the groups",
            ),
            (layer.groups > 1 and choice.shape is not None, "grouped: MNSIM knows no groups"),
            (
                shape.height != shape.width and layer.type == "conv",
                "not square: a square kernel on as many crossbars stands for it",
            ),
            (
                layer.dilation != (1, 1),
                "dilated: `Padding` is chosen so that a position waits for the right inputs",
            ),
            (rows != mapping.rows, "MNSIM drives another number of rows on the same crossbars"),
            (choice.weight_bits is None, f"weights in floating point: as {FLOAT_BITS} bits"),
            (choice.activation_bits is None, f"inputs in floating point: as {FLOAT_BITS} bits"),
            (
                self._chip.mapping.cell_bits > 1,
                "`Weightbit` is not the design's: MNSIM has one bit a cell, and takes as many "
                "slices as the chip from it",
            ),
        )
        for holds, text in facts:
            if holds:
                self._notes.add(text, layer.name)


def _beyond(layer: LayerSpec, choice: Choice, mapping: LayerMapping) -> Entry:
    """What the design and the cost model know of a layer beyond MNSIM's keys."""
    shape = choice.shape
    patch = None
    if shape is not None:
        patch = list(choice.patch or shape.channels)
    return {
        "layer": layer.name,
        "weight_shape": list(layer.weight_shape),
        "padding": list(layer.padding),
        "dilation": list(layer.dilation),
        "groups": layer.groups,
        "epitome": None if shape is None else list(shape.as_tuple),
        "patch": patch,
        "wrap": choice.wrap,
        "wrap_in": choice.wrap_in,
        "weight_bits": choice.weight_bits,
        "activation_bits": choice.activation_bits,
        "rounds": mapping.rounds,
        "slots": mapping.slot_count,
        "replicas": mapping.replicas,
        "crossbars": mapping.crossbars,
        "tiles": mapping.tiles,
    }
