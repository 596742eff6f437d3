"""A network as hardware sees it: layers with their geometry, and which feeds which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from epim_nas.errors import InputError

LayerType = Literal["conv", "fc", "pooling", "element_sum"]

INPUT = "input"
"""The name by which layers refer to the input of the network."""
INPUT_BESIDE = ".input"
"""Likewise where a layer has the name above. No module's path begins with a dot."""


@dataclass(frozen=True)
class LayerSpec:
    """One layer: what it computes and how large its feature maps are.

    Normalisation, activations and reshaping are not layers: on a PIM chip they are fused into the
    layer before them or cost nothing.

    Attributes:
        name: unique name; for a traced module its dotted path.
        type: ``conv`` and ``fc`` occupy crossbars; ``pooling`` and ``element_sum`` do not.
        inputs: names of the producing layers, :data:`INPUT` for the network's input. Several
            inputs of an ``element_sum`` are added, of any other layer concatenated by channel.
        in_channels: input channels (features of an ``fc``).
        out_channels: output channels (features of an ``fc``).
        kernel: kernel (height, width); (1, 1) for ``fc`` and ``element_sum``.
        stride: stride (height, width).
        padding: zero padding on both sides (height, width).
        dilation: kernel dilation (height, width).
        groups: groups of a grouped convolution.
        input_size: input feature map (height, width); (1, 1) for an ``fc``.
        output_size: output feature map (height, width).
    """

    name: str
    type: LayerType
    inputs: tuple[str, ...]
    in_channels: int
    out_channels: int
    input_size: tuple[int, int] = (1, 1)
    output_size: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def has_weight(self) -> bool:
        """Whether the layer's weight lies on crossbars."""
        return self.type in ("conv", "fc")

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(O, I/groups, Kh, Kw) of the weight; a linear layer is a 1x1 convolution.

        Raises:
            ValueError: the layer has no weight.
        """
        if not self.has_weight:
            raise ValueError(f"layer `{self.name}` ({self.type}) has no weight")
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def positions(self) -> int:
        """Output positions (pixels of the output feature map)."""
        return self.output_size[0] * self.output_size[1]


def input_name(layers: Iterable[str]) -> str:
    """The name of a network's input: ``input``, or ``.input`` where a layer has that name.

    Args:
        layers: the names of the network's layers.
    """
    return INPUT_BESIDE if INPUT in layers else INPUT


@dataclass(frozen=True)
class Network:
    """Layers in topological order. Iterating yields them; ``network[name]`` finds one.

    Attributes:
        name: name of the network.
        layers: every layer after all of its inputs.
        input_shape: (channels, height, width) of the network's input.
    """

    name: str
    layers: tuple[LayerSpec, ...]
    input_shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        known = {self.input_name}
        for layer in self.layers:
            if layer.name in known:
                raise InputError(f"network {self.name}: {layer.name}", "the name is used twice")
            for name in layer.inputs:
                if name not in known:
                    raise InputError(
                        f"network {self.name}: {layer.name}.inputs",
                        f"`{name}` is not a layer before it",
                        f"`{self.input_name}` or the name of an earlier layer",
                    )
            known.add(layer.name)

    def __iter__(self) -> Iterator[LayerSpec]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerSpec:
        return self.layers[self.index[name]]

    @cached_property
    def input_name(self) -> str:
        """The name by which layers read the network's input (:func:`input_name`)."""
        return input_name(layer.name for layer in self.layers)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of every layer by its name."""
        return {layer.name: position for position, layer in enumerate(self.layers)}

    @cached_property
    def weighted(self) -> tuple[LayerSpec, ...]:
        """The layers that occupy crossbars, in order."""
        return tuple(layer for layer in self.layers if layer.has_weight)

    @cached_property
    def consumers(self) -> dict[str, tuple[str, ...]]:
        """Names of the layers that read each layer's output."""
        readers: dict[str, list[str]] = {layer.name: [] for layer in self.layers}
        for layer in self.layers:
            for name in layer.inputs:
                if name != self.input_name:
                    readers[name].append(layer.name)
        return {name: tuple(found) for name, found in readers.items()}
