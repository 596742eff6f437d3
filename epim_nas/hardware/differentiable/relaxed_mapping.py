"""The mapping of continuous epitomes: the closed form of the default sampling plan.

The default plan (patches of all the epitome's channels) has ceil(O/Oe) x ceil(I/Ie) slabs of the
same size, all of which use all crossbars. Last, partial slabs count as full ones here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from epim_nas.hardware.chip import Chip
from epim_nas.hardware.differentiable.torch_ops import TorchOps
from epim_nas.hardware.mapping_arrays import MappingArrays
from epim_nas.network.spec import Network

if TYPE_CHECKING:
    from epim_nas.hardware.differentiable.relaxed_design import RelaxedDesign


@dataclass(frozen=True)
class WeightShapes:
    """Sizes of the layers' weights, (layers,) float64.

    Attributes:
        outputs: O.
        inputs: I, of all groups.
        kernel_height: Kh.
        kernel_width: Kw.
        grouped: whether the layer has several groups (bool).
        out_address_bits: bits of an output channel's address.
        in_address_bits: bits of an input channel's address.
    """

    outputs: Tensor
    inputs: Tensor
    kernel_height: Tensor
    kernel_width: Tensor
    grouped: Tensor
    out_address_bits: Tensor
    in_address_bits: Tensor

    @classmethod
    def of(cls, network: Network, device: torch.device) -> WeightShapes:
        """The sizes of a network's layers with weights."""
        rows = [
            (
                layer.out_channels,
                layer.in_channels,
                *layer.kernel,
                layer.groups > 1,
                max(1, ceil(log2(layer.out_channels))),
                max(1, ceil(log2(layer.in_channels))),
            )
            for layer in network.weighted
        ]
        columns = list(torch.as_tensor(np.array(rows, dtype=float).T, device=device))
        columns[4] = columns[4].bool()
        return cls(*columns)


def relaxed_mapping(
    ops: TorchOps, chip: Chip, weights: WeightShapes, design: RelaxedDesign
) -> MappingArrays:
    """The mapping of a relaxed design.

    Args:
        ops: smooth operations for the surrogate, exact ones for whole designs.
        chip: the chip.
        weights: the sizes of the layers' weights.
        design: (designs, layers) sizes and bits.
    """
    size, rule = chip.crossbar, chip.mapping
    kernel = weights.kernel_height * weights.kernel_width
    height = torch.maximum(design.height, weights.kernel_height)
    width = torch.maximum(design.width, weights.kernel_width)
    outputs = torch.minimum(design.out_channels.clamp(min=1), weights.outputs)
    inputs = torch.minimum(design.in_channels.clamp(min=1), weights.inputs)
    # Whole numbers decide what is dense, as they do for the exact cost.
    elements = (
        outputs.detach().round() * inputs.detach().round() * height.detach().round()
    ) * width.detach().round()
    dense = weights.grouped | (elements >= weights.outputs * weights.inputs * kernel)
    outputs = torch.where(dense, weights.outputs + 0 * outputs, outputs)
    inputs = torch.where(dense, weights.inputs + 0 * inputs, inputs)
    height = torch.where(dense, weights.kernel_height + 0 * height, height)
    width = torch.where(dense, weights.kernel_width + 0 * width, width)

    sign = 1 if rule.polarity == 2 else 0
    slices = ops.ceil((design.weight_bits.clamp(min=1) - sign).clamp(min=1) / rule.cell_bits)
    per_group = ops.ceil(slices / rule.groups)
    channels = ops.floor(size.rows / (height * width)).clamp(min=1)
    row_groups = ops.ceil(inputs / channels)
    if rule.packing == "packed":
        column_groups = ops.ceil(outputs * per_group / size.columns)
        columns = (outputs * per_group).clamp(max=size.columns)
    else:
        column_groups = per_group * ops.ceil(outputs / size.columns)
        columns = outputs.clamp(max=size.columns)
    crossbars = row_groups * column_groups
    pes = chip.tile.pes[0] * chip.tile.pes[1]
    tiles = ops.ceil(crossbars / pes)
    used_pes = crossbars.clamp(max=pes)

    out_slabs, in_slabs = ops.ceil(weights.outputs / outputs), ops.ceil(weights.inputs / inputs)
    wrapped = design.wrap & ~dense
    computed = torch.where(wrapped, torch.ones_like(out_slabs), out_slabs)
    rounds = computed * in_slabs
    round_channels = torch.minimum(channels, inputs)
    # Slab k uses offset k mod n and rotation k // n. The slabs of the same inputs are in_slabs
    # apart, so their rotations span (computed - 1) in_slabs / n channels.
    offsets = (height - weights.kernel_height + 1) * (width - weights.kernel_width + 1)
    span = (computed - 1) * in_slabs / offsets
    held = in_slabs * torch.minimum(inputs, round_channels + span)
    stored = in_slabs * torch.minimum(row_groups * inputs, inputs + row_groups * span)
    table_bits = (
        torch.minimum(used_pes, row_groups)
        * round_channels
        * (weights.in_address_bits + max(1, ceil(log2(size.rows))))
        + outputs.clamp(max=size.columns) * weights.out_address_bits
    )
    none = torch.zeros_like(rounds)
    return MappingArrays(
        crossbars=crossbars,
        tiles=tiles,
        pes=used_pes,
        groups=slices.clamp(max=rule.groups),
        held_channels=torch.minimum(held, weights.inputs + none),
        stored_channels=torch.minimum(stored, row_groups * weights.inputs),
        rounds=rounds,
        replicas=torch.where(wrapped, weights.outputs - outputs, none),
        table_bits=torch.where(dense, none, table_bits),
        utilization=none,
        input_slabs=torch.ones_like(rounds),
        active_rows=(round_channels * kernel)[None],
        active_columns=columns[None],
        active_tiles=tiles[None],
        slots=rounds[None],
        accumulating=(rounds - computed)[None],
        emitting=computed[None],
        fetched_inputs=(round_channels * kernel)[None],
    )
