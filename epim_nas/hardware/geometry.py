"""What the layers of a network bring to the cost equations whatever the design: geometry.

Layers of one kind share equations, so that each kind is a set of arrays with one entry per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from epim_nas.hardware.chip import Chip
from epim_nas.hardware.ops import Array
from epim_nas.network.spec import LayerSpec, Network


@dataclass(frozen=True)
class LayerArrays:
    """Layers of one kind; every array has one entry per layer (float64).

    Attributes:
        index: positions of the layers in the network.
        is_fc: whether it is fully connected: its features are single rows of one position.
        in_channels: channels of the inputs.
        out_channels: channels of the outputs.
        kernel_area: elements of a kernel or pooling window.
        kernel_height: height of the kernel.
        column_stride: stride along a row.
        inputs: how many inputs are summed.
        positions: output positions.
        line_inputs: inputs of a channel in the line buffer: the lines of a window (fc: 1).
        counts: (4, layers) positions: first, first column, first row, all others.
        new_inputs: (4, layers) inputs of a channel that such a position waits for.
    """

    index: Array
    is_fc: Array
    in_channels: Array
    out_channels: Array
    kernel_area: Array
    kernel_height: Array
    column_stride: Array
    inputs: Array
    positions: Array
    line_inputs: Array
    counts: Array
    new_inputs: Array

    @classmethod
    def of(cls, layers: Sequence[tuple[int, LayerSpec]], chip: Chip) -> LayerArrays:
        """The arrays of (position in the network, layer)."""

        def column(value: Callable[[LayerSpec], float]) -> Array:
            return np.array([value(layer) for _, layer in layers], dtype=float)

        def four(value: Callable[[LayerSpec], tuple[int, int, int, int]]) -> Array:
            rows = np.array([value(layer) for _, layer in layers], dtype=float)
            return rows.reshape(-1, 4).T

        return cls(
            index=np.array([index for index, _ in layers], dtype=np.intp),
            is_fc=np.array([layer.type == "fc" for _, layer in layers], dtype=bool),
            in_channels=column(lambda layer: layer.in_channels),
            out_channels=column(lambda layer: layer.out_channels),
            kernel_area=column(lambda layer: layer.kernel[0] * layer.kernel[1]),
            kernel_height=column(lambda layer: layer.kernel[0]),
            column_stride=column(lambda layer: layer.stride[1]),
            inputs=column(lambda layer: len(layer.inputs)),
            positions=column(lambda layer: layer.positions),
            line_inputs=column(_line_inputs),
            counts=four(position_counts),
            new_inputs=four(lambda layer: _new_inputs(layer, chip.pipeline.input_fill == "line")),
        )

    def mapped(self, function: Callable[[Array], Any]) -> LayerArrays:
        """The arrays with ``function`` applied to each (e.g. to move them to a device)."""
        return replace(self, **{f.name: function(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class Geometry:
    """The layers of a network by kind."""

    weighted: LayerArrays
    pooling: LayerArrays
    sums: LayerArrays

    @classmethod
    def of(cls, network: Network, chip: Chip) -> Geometry:
        """The layers of a network on a chip."""
        kinds: dict[str, list[tuple[int, LayerSpec]]] = {"weighted": [], "pooling": [], "sums": []}
        for index, layer in enumerate(network.layers):
            name = {"pooling": "pooling", "element_sum": "sums"}.get(layer.type, "weighted")
            kinds[name].append((index, layer))
        return cls(**{name: LayerArrays.of(layers, chip) for name, layers in kinds.items()})

    def mapped(self, function: Callable[[Array], Any]) -> Geometry:
        """See :meth:`LayerArrays.mapped`."""
        return Geometry(
            *(kind.mapped(function) for kind in (self.weighted, self.pooling, self.sums))
        )


def position_counts(layer: LayerSpec) -> tuple[int, int, int, int]:
    """Positions: first, rest of the first column, rest of the first row, all others."""
    rows, columns = layer.output_size
    return (1, rows - 1, columns - 1, (rows - 1) * (columns - 1))


def _line_inputs(layer: LayerSpec) -> int:
    if layer.type == "fc":
        return 1
    return layer.input_size[1] * ((layer.kernel[0] - 1) * layer.dilation[0] + 1)


def _new_inputs(layer: LayerSpec, line_fill: bool) -> tuple[int, int, int, int]:
    """Inputs per channel that a position waits for to be written into the input buffer."""
    if layer.type == "fc":
        return (1, 1, 1, 1)
    extent_h = (layer.kernel[0] - 1) * layer.dilation[0] + 1
    extent_w = (layer.kernel[1] - 1) * layer.dilation[1] + 1
    stride_h, stride_w = layer.stride
    first_h = max(extent_h - layer.padding[0], 0)
    first_w = max(extent_w - layer.padding[1], 0)
    if line_fill:
        line = layer.input_size[1]
        return (
            line * max(first_h - 1, 0) + first_w,
            line * (stride_h - 1) + first_w,
            stride_w,
            stride_w,
        )
    # MNSIM gives a pooling window's first row the traffic of all others.
    first_row = stride_w * (stride_h if layer.type == "pooling" else extent_h)
    return (first_h * first_w, stride_h * first_w, first_row, stride_h * stride_w)
