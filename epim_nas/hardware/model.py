"""The cost model: what a design of a network costs on a chip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from epim_nas.epitome.design import FLOAT_BITS, Choice, Design
from epim_nas.errors import InputError
from epim_nas.hardware.accumulator import accumulator_size, shared_parts
from epim_nas.hardware.bits import check_bits, data_bits
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.mapping import LayerMapping, map_layer
from epim_nas.hardware.pipeline import Pipeline
from epim_nas.hardware.placement import Hops, Placement
from epim_nas.hardware.power import (
    BufferSizes,
    Memories,
    layer_area_um2,
    layer_buffers,
    layer_energy_nj,
    layer_power_w,
)
from epim_nas.hardware.results import CostTotals, LayerCost, NetworkCost
from epim_nas.hardware.table import CostTable, build_table
from epim_nas.hardware.timing import LayerTiming, time_conv, time_element_sum, time_pooling
from epim_nas.network.spec import LayerSpec, Network

_NO_CHOICE = Choice()

DENSE_BITS = 9
"""Bits of weights and activations where no design is given: MNSIM 2.0's setting."""


@dataclass(frozen=True)
class Layout:
    """What the layers of one design share, and one layer alone does not know.

    Attributes:
        mappings: per layer, where its weight lies.
        hops: per layer, the distances on the mesh.
        bits: per layer, bits of its inputs and its outputs.
        sizes: sizes of the buffers.
        memories: the buffers themselves.
    """

    mappings: tuple[LayerMapping, ...]
    hops: tuple[Hops, ...]
    bits: tuple[tuple[int, int], ...]
    sizes: BufferSizes
    memories: Memories


class CostModel:
    """Cost of designs of one network on one chip.

    For dense networks with ``sliced`` packing every number equals MNSIM 2.0's (commit ca39ccb).
    The equations, and what epitomes add, are in ``docs/cost_model.md``.

    Args:
        network: the network.
        chip: the chip.

    Example:
        >>> from epim_nas.hardware import CostModel, load_chip
        >>> from epim_nas.network.spec import LayerSpec, Network
        >>> conv = LayerSpec("c", "conv", ("input",), 64, 64, (8, 8), (6, 6), kernel=(3, 3))
        >>> model = CostModel(Network("one", (conv,), (64, 8, 8)), load_chip("epim_256"))
        >>> model.evaluate(weight_bits=32, activation_bits=9).totals.crossbars
        24

    Raises:
        InputError: the network has no layers.
    """

    def __init__(self, network: Network, chip: Chip) -> None:
        if not network.layers:
            raise InputError(f"network {network.name}", "it has no layers")
        self.network = network
        self.chip = chip
        self._pipeline = Pipeline(network, chip.pipeline.overlap)
        self._placement = Placement(
            chip,
            [layer.type != "element_sum" for layer in network.layers],
            [
                [network.index[name] for name in network.consumers[layer.name]]
                for layer in network.layers
            ],
        )
        self._mappings: dict[tuple[int, Choice], LayerMapping] = {}
        self._buffers: dict[tuple[int, Choice, int, int], BufferSizes] = {}

    def evaluate(
        self,
        design: Design | None = None,
        *,
        weight_bits: int | None = DENSE_BITS,
        activation_bits: int | None = DENSE_BITS,
    ) -> NetworkCost:
        """Cost of a design.

        Args:
            design: one choice per weighted layer; None keeps every layer dense.
            weight_bits: bits of the dense layers' weights where there is no design; None counts
                as 32-bit floating point, in a design as well.
            activation_bits: likewise of their inputs.

        Raises:
            InputError: the design does not fit the network, or the network not the chip.
        """
        choices = self._choices(design, weight_bits, activation_bits)
        layout = self._layout(choices)
        timings = [self.time(index, layout) for index in range(len(choices))]
        timelines, latency_ns = self._pipeline.run([timing.steps for timing in timings])
        layers = []
        for index, layer in enumerate(self.network.layers):
            mapping, timing = layout.mappings[index], timings[index]
            power = layer_power_w(layer, mapping, layout.memories, self.chip)
            layers.append(
                LayerCost(
                    name=layer.name,
                    type=layer.type,
                    crossbars=mapping.crossbars,
                    tiles=mapping.tiles,
                    rounds=mapping.rounds,
                    latency_ns=timing.busy,
                    energy_nj=layer_energy_nj(power, timing.busy),
                    power_w=power,
                    area_um2=layer_area_um2(mapping, layout.memories, self.chip),
                    utilization=mapping.utilization,
                    sequential_latency_ns=timing.sequential,
                    mapping=mapping,
                    hops=layout.hops[index],
                    timeline=timelines[index],
                )
            )
        crossbars = sum(layer.crossbars for layer in layers)
        filled = sum(layer.utilization * layer.crossbars for layer in layers)
        totals = CostTotals(
            crossbars=crossbars,
            tiles=sum(layer.tiles for layer in layers),
            latency_ns=latency_ns,
            sequential_latency_ns=sum(layer.sequential_latency_ns for layer in layers),
            energy_nj=sum(layer.energy_nj["total"] for layer in layers),
            area_um2=sum(layer.area_um2["total"] for layer in layers),
            utilization=filled / crossbars if crossbars else 0.0,
            rounds=sum(layer.rounds for layer in layers),
        )
        shared = shared_parts(
            accumulator_size(self.network, [bits[1] for bits in layout.bits]),
            layout.sizes,
            self.chip,
        )
        return NetworkCost(self.network.name, self.chip.name, totals, tuple(layers), shared)

    def table(
        self,
        choices: Mapping[str, Sequence[Choice]],
        reference: Design | None = None,
    ) -> CostTable:
        """Additive costs of every choice of every layer.

        What one layer does not know (hops, buffer sizes, the bits its consumers read) is taken
        from a reference design; for that design the table's totals are exact.

        Args:
            choices: layer name -> its choices. Weighted layers without choices, and all layers
                without weights, keep what they are in the reference.
            reference: the reference design; None is the dense network at 9-bit weights and
                activations.

        Raises:
            InputError: an unknown layer, no choices, or a choice that does not fit.
        """
        return build_table(self, choices, self._choices(reference, DENSE_BITS, DENSE_BITS))

    def reference_layout(self, choices: Sequence[Choice]) -> Layout:
        """The layout of a design, given as one choice per layer."""
        return self._layout(choices)

    def mapping(self, index: int, choice: Choice) -> LayerMapping:
        """The mapping of a layer (by its index) made of ``choice``; remembered."""
        key = (index, choice)
        found = self._mappings.get(key)
        if found is None:
            layer = self.network.layers[index]
            check_bits(f"layer {layer.name}: weight_bits", choice.weight_bits)
            check_bits(f"layer {layer.name}: activation_bits", choice.activation_bits)
            found = map_layer(layer, choice, self.chip)
            self._mappings[key] = found
        return found

    def time(
        self,
        index: int,
        layout: Layout,
        mapping: LayerMapping | None = None,
        bits: tuple[int, int] | None = None,
    ) -> LayerTiming:
        """Times of a layer (by its index) in a layout.

        Args:
            index: the layer.
            layout: the layout.
            mapping: another mapping to put in the layer's place.
            bits: other bits of its inputs and outputs.
        """
        layer, hops = self.network.layers[index], layout.hops[index]
        input_bits, output_bits = bits or layout.bits[index]
        return _time(
            layer, mapping or layout.mappings[index], hops, input_bits, output_bits, self.chip
        )

    def _choices(
        self, design: Design | None, weight_bits: int | None, activation_bits: int | None
    ) -> list[Choice]:
        if design is None:
            check_bits("--weight-bits", weight_bits)
            check_bits("--activation-bits", activation_bits)
            dense = Choice(weight_bits=weight_bits, activation_bits=activation_bits)
            return [dense if layer.has_weight else _NO_CHOICE for layer in self.network.layers]
        names = {layer.name for layer in self.network.weighted}
        if names != set(design):
            design.check_fits(self.network)
        return [
            design[layer.name] if layer.has_weight else _NO_CHOICE for layer in self.network.layers
        ]

    def _layout(self, choices: Sequence[Choice]) -> Layout:
        layers = self.network.layers
        mappings = tuple(self.mapping(index, choice) for index, choice in enumerate(choices))
        bits = tuple(
            data_bits(
                self.network,
                [
                    FLOAT_BITS if choice.activation_bits is None else choice.activation_bits
                    for choice in choices
                ],
            )
        )
        hops = self._placement.hops([mapping.tiles for mapping in mappings])
        needed = []
        for index, (layer, choice) in enumerate(zip(layers, choices, strict=True)):
            if layer.has_weight:
                key = (index, choice, *bits[index])
                if key not in self._buffers:
                    self._buffers[key] = layer_buffers(layer, mappings[index], *bits[index])
                needed.append(self._buffers[key])
        sizes = BufferSizes(
            max((size.pe_input_kb for size in needed), default=0.0),
            max((size.tile_output_kb for size in needed), default=0.0),
        )
        return Layout(mappings, tuple(hops), bits, sizes, Memories.of(sizes, self.chip))


def _time(
    layer: LayerSpec,
    mapping: LayerMapping,
    hops: Hops,
    input_bits: int,
    output_bits: int,
    chip: Chip,
) -> LayerTiming:
    if layer.type == "element_sum":
        return time_element_sum(layer, hops, output_bits, chip)
    if layer.type == "pooling":
        return time_pooling(layer, hops, output_bits, chip)
    return time_conv(layer, mapping, hops, input_bits, output_bits, chip)
