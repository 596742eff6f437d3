"""What MNSIM is not told, what it cannot express, and the bits of all data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from epim_nas.epitome.design import FLOAT_BITS, Design
from epim_nas.errors import Inexpressible
from epim_nas.hardware.bits import DataFlow
from epim_nas.network.spec import LayerSpec, Network

NO_WEIGHT_BITS = 9
"""``Weightbit`` of layers without weights: MNSIM reads the key and does nothing with it."""

POINT_SHIFT = -2
ACTIVATION_SCALE = 1 / 255

Entry = dict[str, Any]


class Remarks:
    """Sentences, each with the layers that it is about."""

    def __init__(self) -> None:
        self._layers: dict[str, list[str]] = {}

    def add(self, text: str, layer: str = "") -> None:
        """Say something of a layer, or of the network."""
        self._layers.setdefault(text, []).append(layer)

    def texts(self) -> list[str]:
        """The sentences, after the names of their layers."""
        named = ((", ".join(filter(None, layers)), text) for text, layers in self._layers.items())
        return [f"{layers}: {text}" if layers else text for layers, text in named]


@dataclass(frozen=True)
class DataBits:
    """Bits of the inputs that every layer reads, and of the outputs that it writes."""

    read: Mapping[str, int]
    written: Mapping[str, int]

    @classmethod
    def of(cls, design: Design, network: Network) -> DataBits:
        """The bits in a design."""
        inputs = {
            layer.name: design[layer.name].activation_bits or FLOAT_BITS
            for layer in network.weighted
        }
        outputs = DataFlow(network).output_bits(np.array(list(inputs.values()), dtype=float))
        written = {
            layer.name: int(bits) for layer, bits in zip(network.layers, outputs, strict=True)
        }
        return cls(written | inputs, written)


def refuse(network: Network, field: str, problem: str, allowed: str, hint: str = "") -> NoReturn:
    """Refuse a network that MNSIM cannot express."""
    hint = hint or "MNSIM 2.0 cannot express it"
    raise Inexpressible(f"network {network.name}: {field}", problem, allowed, hint)


def check_input(network: Network) -> None:
    """MNSIM takes the first layer for a convolution, and for the only reader of the images."""
    if not network.layers or network.layers[0].type != "conv":
        what = f"the first layer is `{network.layers[0].type}`" if network.layers else "no layers"
        refuse(network, "layers.0", what, "a convolution as the first layer")
    for layer in network.layers[1:]:
        if network.input_name in layer.inputs:
            refuse(
                network,
                f"{layer.name}.inputs",
                f"`{network.input_name}` is read by a second layer",
                "one layer, the first, that reads the network's input",
            )


def check_square(network: Network, layer: LayerSpec, names: Sequence[str]) -> None:
    """Check that sizes of a layer are the same in both directions."""
    for name in names:
        height, width = getattr(layer, name)
        if height != width:
            refuse(network, f"{layer.name}.{name}", f"got [{height}, {width}]", "a single number")


def check_reads(network: Network, layer: LayerSpec, entry: Entry) -> None:
    """Every input position that MNSIM looks up has to be one that the input layer computes."""
    kernel, stride, width = entry["Kernelsize"], entry["Stride"], entry["Inputsize"][1]
    if layer.type == "conv" and kernel == 1:
        row, column = ((count - 1) * stride for count in layer.output_size)
    else:
        first = max(kernel - entry["Padding"], 1)
        row, column = (
            min(first + stride * (count - 1), size) - 1
            for count, size in zip(layer.output_size, layer.input_size, strict=True)
        )
    for source in (network[name] for name in layer.inputs):
        if row * width + column >= source.positions:
            refuse(
                network,
                f"{layer.name}.input_size",
                f"waits for positions of `{source.name}`, whose output is "
                f"{list(source.output_size)}, that do not exist",
                f"inputs of {list(layer.input_size)}",
                "Pad in the layer (`padding`), not before it.",
            )


def is_depthwise(layer: LayerSpec) -> bool:
    """Whether every channel is convolved by itself."""
    return 1 < layer.groups == layer.in_channels == layer.out_channels
