"""Elements that share a quantization step, as rows of a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from epim_nas.epitome.plan import IntArray
from epim_nas.epitome.quantization.options import CrossbarBlock, Quantization
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError


@dataclass(frozen=True)
class Blocks:
    """The blocks of an epitome, output block by output block.

    Attributes:
        shape: the epitome's size.
        out_block: (Oe,) block of every output channel, not falling; None for one block a channel.
        in_block: (Ie,) block of every input channel, not falling; None if ``out_block`` decides.
    """

    shape: EpitomeShape
    out_block: IntArray | None
    in_block: IntArray | None

    @classmethod
    def of(cls, shape: EpitomeShape, options: Quantization) -> Blocks:
        """The blocks of an epitome of ``shape``.

        Raises:
            InputError: the granularity ``crossbar`` without the channels of a crossbar.
        """
        if options.granularity == "tensor":
            return cls(shape, np.zeros(shape.out_channels, dtype=np.int64), None)
        if options.granularity == "channel":
            return cls(shape, None, None)
        block = options.block
        if block is None:
            raise InputError(
                "quantization.block",
                "granularity `crossbar` needs the channels of a crossbar",
                "a CrossbarBlock",
                "`epim_nas.hardware.mapping.quantized_by_crossbar` gives every layer its own.",
            )
        return cls(shape, _column_groups(shape.out_channels, block), _row_groups(shape, block))

    @property
    def count(self) -> int:
        """Number of blocks."""
        return self._grid[0] * self._grid[1]

    @cached_property
    def sizes(self) -> IntArray:
        """(blocks,) elements of every block."""
        cells = self.shape.height * self.shape.width
        outs = np.ones(self.shape.out_channels, dtype=np.int64)
        if self.out_block is not None:
            outs = np.bincount(self.out_block)
        ins = np.array([self.shape.in_channels])
        if self.in_block is not None:
            ins = np.bincount(self.in_block)
        return (outs[:, None] * ins * cells).ravel()

    @cached_property
    def ragged(self) -> bool:
        """Whether blocks differ in size, so that :meth:`gather` pads them with zeros."""
        return len(set(self.sizes.tolist())) > 1

    @cached_property
    def _grid(self) -> tuple[int, int]:
        """Blocks along the outputs and along the inputs."""
        rows = self.shape.out_channels if self.out_block is None else int(self.out_block[-1]) + 1
        return rows, 1 if self.in_block is None else int(self.in_block[-1]) + 1

    @cached_property
    def _channels(self) -> tuple[IntArray, IntArray] | None:
        """Output and input channels of every block; None where blocks need no gathering."""
        if self.out_block is None or self.in_block is None:
            return None
        return _members(self.out_block), _members(self.in_block)

    def gather(self, values: Tensor) -> Tensor:
        """(blocks, elements) of ``values`` (Oe, Ie, He, We); short blocks end in zeros."""
        if self._channels is None:
            return values.flatten(1) if self.out_block is None else values.flatten()[None]
        rows, columns = (torch.as_tensor(part, device=values.device) for part in self._channels)
        padded = F.pad(values.flatten(2), (0, 0, 0, 1, 0, 1))  # one zero channel on either side
        found = padded[rows.flatten()][:, columns.flatten()]
        found = found.reshape(*rows.shape, *columns.shape, -1).transpose(1, 2)
        return found.reshape(rows.shape[0] * columns.shape[0], -1)

    def spread(self, steps: Tensor) -> Tensor:
        """Steps (blocks,) in a shape that broadcasts with the epitome (Oe, Ie, He, We)."""
        columns = self._grid[1]
        grid = steps.reshape(self._grid)
        if self.out_block is not None and len(grid) > 1:
            grid = grid[torch.as_tensor(self.out_block, device=steps.device)]
        if self.in_block is not None and columns > 1:
            grid = grid[:, torch.as_tensor(self.in_block, device=steps.device)]
        return grid[:, :, None, None]


def _column_groups(out_channels: int, block: CrossbarBlock) -> IntArray:
    group = np.arange(out_channels) * block.columns_per_output // block.columns
    return np.unique(group, return_inverse=True)[1].astype(np.int64)


def _row_groups(shape: EpitomeShape, block: CrossbarBlock) -> IntArray:
    return np.arange(shape.in_channels, dtype=np.int64) // block.in_channels


def _members(block_of: IntArray) -> IntArray:
    """(blocks, largest) channels of every block; the channel behind the last fills up."""
    sizes = np.bincount(block_of)
    members = np.full((len(sizes), sizes.max()), len(block_of))
    within = np.arange(len(block_of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    members[block_of, within] = np.arange(len(block_of))
    return members
