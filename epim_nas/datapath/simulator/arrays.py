"""One layer's crossbars at work: from integer inputs to integer outputs, round by round.

A round drives some word lines of some row groups, in row turns of as many lines as a crossbar has
DACs. The inputs arrive one digit a cycle, every column of every bit slice sums the currents of one
turn, the ADC turns the sum into an integer, and what follows is digital: turns, slices, digits, row
groups and rounds are shifted and added, and wrapped outputs are copied. See ``docs/simulator.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from epim_nas.datapath.cells import SliceRule
from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.simulator.converter import ColumnConverter
from epim_nas.datapath.simulator.options import Devices
from epim_nas.datapath.simulator.packing import PackedSlices
from epim_nas.datapath.tables import NOTHING, IntArray

FLOAT32_INTEGERS = 1 << 24
"""Below this magnitude, sums of integers in float32 are exact in any order."""
_CHUNK = 1 << 20
"""Column sums that are held at once: few enough to stay in a cache."""


@dataclass(frozen=True)
class InputCode:
    """How inputs are driven: ``digits`` digits of ``dac_bits`` bits, lowest first.

    Signed inputs are driven as x + ``offset``; the offset times the weights' sum is subtracted
    digitally.

    Attributes:
        bits: bits of a driven input.
        dac_bits: bits of a digit.
        offset: 0 for unsigned inputs, else 2^(bits - 1).
    """

    bits: int
    dac_bits: int
    offset: int

    @property
    def digits(self) -> int:
        """Input cycles."""
        return -(-self.bits // self.dac_bits)

    @property
    def top(self) -> int:
        """Largest digit."""
        return (1 << self.dac_bits) - 1


@dataclass
class _Batch:
    """(Round, row group) units of one size: U units of n channels and m outputs.

    Attributes:
        inputs: (U, T, n) input channels; T are summed. The channel after the last is zero.
        cells: (polarity, U, S, m, n Kh Kw) conductances.
        turns: the lines of every row turn.
        packed: per row turn, the sides that are converted, packed; None where cells or reads are
            not exact.
        targets: (U, m) output channels.
        weight_sums: (U, m) sums of the ideal integers.
        scales: (U, m) what a unit of the result counts; None where it is the same in all units.
    """

    inputs: Tensor
    cells: Tensor
    turns: list[slice]
    packed: list[list[PackedSlices]] | None
    targets: Tensor
    weight_sums: Tensor
    scales: Tensor | None


class CrossbarArrays:
    """The crossbars of one layer, programmed.

    Args:
        layer: the layer's index tables; everything is addressed through them.
        weights: (Oe, Ie, He, We) the integers that are stored.
        conductance: (polarity, lines, Oe, slices) of the cells
            (:func:`~epim_nas.datapath.simulator.cells.conductances`).
        rule: how a weight becomes cells.
        code: how inputs are driven.
        converter: the ADCs.
        lines_at_once: DACs of a crossbar.
        devices: imperfections of reads.
        scales: (Oe, Ie or 1, 1, 1) what an integer counts where this differs between the row
            groups of an output; None where results are left as integers.
        generator: of the random numbers.
    """

    def __init__(
        self,
        layer: LayerTables,
        weights: IntArray,
        conductance: Tensor,
        rule: SliceRule,
        code: InputCode,
        converter: ColumnConverter,
        lines_at_once: int,
        devices: Devices,
        scales: Tensor | None,
        generator: torch.Generator,
    ) -> None:
        self._layer, self._rule, self._code = layer, rule, code
        self._converter, self._devices, self._generator = converter, devices, generator
        self._kernel = layer.conv_shape[2:]
        self._lines_at_once = lines_at_once
        ideal = _lines(weights, layer)
        self._batches = [
            self._batch(units, ideal, conductance, scales) for units in _units(layer).values()
        ]
        self._copies: tuple[Tensor, ...] = _copies(layer)
        self._slice_weights = torch.tensor(
            [1 << (k * rule.cell_bits) for k in range(rule.slices)], dtype=torch.float64
        )
        self._digit_weights = torch.tensor(
            [1 << (k * code.dac_bits) for k in range(code.digits)], dtype=torch.float64
        )

    def clipping_share(self) -> float:
        """Share of columns (of all rounds) whose sum can exceed what the ADC has codes for."""
        clipping = total = 0
        for batch in self._batches:
            for low, high in self._column_bounds(batch):
                can = self._converter.clips(low, high)
                clipping, total = clipping + int(can.sum()), total + can.numel()
        return clipping / total

    def _column_bounds(self, batch: _Batch) -> list[tuple[Tensor, Tensor]]:
        """Smallest and largest sum of every column, by row turn and side."""
        top = self._code.top
        return [
            (top * side.clamp(max=0).sum(-1), top * side.clamp(min=0).sum(-1))
            for turn in batch.turns
            for side in self._sides(batch.cells[..., turn])
        ]

    def _sides(self, cells: Tensor) -> list[Tensor]:
        """What is converted of (1 or 2, ...) cells: single crossbars, both sides of a pair, or
        the difference of a pair."""
        if len(cells) == 1 or self._converter.each_side:
            return list(cells)
        return [cells[0] - cells[1]]

    def __call__(self, x: Tensor, stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
        """The outputs of integer inputs.

        Args:
            x: (N, C, H, W) integers (of any type), already padded.
            stride: of the convolution.
            dilation: of the convolution.

        Returns:
            (N, O, H', W') float64: integers where cells and reads are ideal and there are no
            ``scales``.
        """
        size = [
            (length - step * (kernel - 1) - 1) // jump + 1
            for length, kernel, jump, step in zip(
                x.shape[2:], self._kernel, stride, dilation, strict=True
            )
        ]
        positions = size[0] * size[1]
        outputs = x.new_zeros((len(x), self._layer.conv_shape[0], positions), dtype=torch.float64)
        self._move_to(x.device)
        x = F.pad(x.to(torch.int32), (0, 0, 0, 0, 0, 1))  # the channel that is nothing
        for batch in self._batches:
            held = self._code.digits * batch.cells[0, 0].numel() // batch.cells.shape[-1]
            units = max(1, _CHUNK // (held * positions))
            images = max(1, units // len(batch.inputs))
            for first in range(0, len(x), images):
                part = slice(first, first + images)
                for start in range(0, len(batch.inputs), units):
                    self._add(
                        batch, slice(start, start + units), x[part], stride, dilation, outputs[part]
                    )
        sources, targets = self._copies
        outputs[:, targets] = outputs[:, sources]
        return outputs.unflatten(2, size)

    def _add(
        self,
        batch: _Batch,
        units: slice,
        x: Tensor,
        stride: tuple[int, int],
        dilation: tuple[int, int],
        outputs: Tensor,
    ) -> None:
        """Add the results of some units to ``outputs`` (N, O, P)."""
        code, images = self._code, len(x)
        inputs, cells = batch.inputs[units], batch.cells[:, units]
        _, count, slices, columns, lines = cells.shape
        driven = x[:, inputs.transpose(0, 1)].sum(1, dtype=torch.int32) + code.offset
        driven = driven.flatten(1, 2)  # (N, U n, H, W)
        shifts = torch.arange(0, code.digits * code.dac_bits, code.dac_bits, device=x.device)
        digits = (driven >> shifts.int().view(-1, 1, 1, 1, 1)).bitwise_and_(code.top).float()
        windows = F.unfold(digits.flatten(0, 1), self._kernel, dilation, 0, stride)
        windows = windows.unflatten(1, (count, lines))  # (D N, U, lines, P)
        sums = self._convert(batch, units, windows)  # (D N, U, S, m, P)
        positions = sums.shape[-1]
        sums = _weighted_sum(
            self._slice_weights,
            sums.view(-1, slices, columns * positions),
            self._converter.top * len(batch.turns),
        )
        result = torch.matmul(self._digit_weights, sums.double().view(code.digits, -1)).view(
            images, count, columns, positions
        )
        if self._rule.offset:
            driven_sums = windows.sum(2, dtype=torch.float64).view(code.digits, -1)
            total = torch.matmul(self._digit_weights, driven_sums)
            result -= self._rule.offset * total.view(images, count, 1, positions)
        if code.offset:
            result -= code.offset * batch.weight_sums[units, :, None]
        if batch.scales is not None:
            result *= batch.scales[units, :, None]
        outputs.index_add_(1, batch.targets[units].flatten(), result.flatten(1, 2))

    def _convert(self, batch: _Batch, units: slice, windows: Tensor) -> Tensor:
        """(D N, U, S, m, P) the ADCs' integers for windows (D N, U, lines, P)."""
        total: Tensor | None = None
        for index, turn in enumerate(batch.turns):
            driven = windows[:, :, turn]
            if batch.packed is not None:
                sums = [side.sums(driven, units) for side in batch.packed[index]]
            else:
                cells = batch.cells[:, units, ..., turn]
                sides = cells[:, None] if self._converter.each_side else [cells]
                sums = [self._currents(side, driven) for side in sides]
            for sign, values in zip((1, -1), sums, strict=False):
                converted = self._converter(values)
                total = converted if total is None else total.add_(converted, alpha=sign)
        assert total is not None
        return total

    def _currents(self, cells: Tensor, windows: Tensor) -> Tensor:
        """(D N, U, S, m, P) the currents of columns with cells (polarity, U, S, m, lines)."""
        signed = cells[0] if len(cells) == 1 else cells[0] - cells[1]
        sums = torch.matmul(signed.flatten(1, 2), windows)
        if self._devices.read_noise:
            # Independent noise of every cell adds up in its squares.
            power = torch.matmul(cells.square().sum(0).flatten(1, 2), windows.square())
            noise = torch.randn(
                sums.shape, generator=self._generator, device=self._generator.device
            )
            sums += self._devices.read_noise * power.sqrt() * noise.to(sums.device)
        return sums.unflatten(2, cells.shape[2:4])

    def _move_to(self, device: torch.device) -> None:
        if self._slice_weights.device == device:
            return
        for batch in self._batches:
            for sides in batch.packed or []:
                for side in sides:
                    side.to(device)
            for name in ("inputs", "cells", "targets", "weight_sums", "scales"):
                value = getattr(batch, name)
                setattr(batch, name, None if value is None else value.to(device))
        self._copies = tuple(index.to(device) for index in self._copies)
        self._slice_weights = self._slice_weights.to(device)
        self._digit_weights = self._digit_weights.to(device)

    def _batch(
        self,
        units: list[tuple[int, int]],
        ideal: Tensor,
        conductance: Tensor,
        scales: Tensor | None,
    ) -> _Batch:
        layer, tables = self._layer, self._layer.tables
        kernel_h, kernel_w = self._kernel
        steps = (np.arange(kernel_h)[:, None] * layer.epitome[3] + np.arange(kernel_w)).ravel()
        inputs, lines, columns, targets, first = [], [], [], [], []
        for turn, group in units:
            places = np.flatnonzero(_row_group(layer, turn) == group)
            chosen = np.flatnonzero(tables.columns[turn] != NOTHING)
            inputs.append(tables.ifat[turn][:, places])
            lines.append((tables.ifrt[turn, places][:, None] + steps).ravel())
            columns.append(tables.columns[turn, chosen])
            targets.append(tables.ofat[turn, 0, chosen])
            first.append(group * layer.grid.channels_per_row_group)
        line, column = (torch.from_numpy(np.array(part)) for part in (lines, columns))
        nothing = layer.conv_shape[1] * layer.groups
        channels = np.array(inputs)
        cells = conductance[:, line[:, None, :], column[:, :, None]]  # (.., U, m, lines, S)
        cells = cells.permute(0, 1, 4, 2, 3).contiguous()
        count, exact = cells.shape[-1], self._devices.ideal
        turns = [
            slice(start, min(start + self._lines_at_once, count))
            for start in range(0, count, self._lines_at_once)
        ]
        result = _Batch(
            inputs=torch.from_numpy(np.where(channels == NOTHING, nothing, channels)),
            cells=cells,
            turns=turns,
            packed=[self._packed(cells[..., turn]) for turn in turns] if exact else None,
            targets=torch.from_numpy(np.array(targets)),
            weight_sums=ideal[line[:, None, :], column[:, :, None]].sum(-1),
            scales=None,
        )
        if scales is not None:
            spread = scales.expand(layer.epitome[0], layer.epitome[1], 1, 1)[:, :, 0, 0]
            result.scales = spread[column, torch.tensor(first)[:, None]].double()
        return result

    def _packed(self, cells: Tensor) -> list[PackedSlices]:
        largest = float(cells.sum(-1).max()) * self._code.top
        return [PackedSlices(side, largest) for side in self._sides(cells)]


def _row_group(layer: LayerTables, turn: int) -> IntArray:
    lines = layer.tables.ifrt[turn]
    return np.where(lines == NOTHING, NOTHING, lines // layer.crossbar_rows)


def _units(layer: LayerTables) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """(Round, row group) by (channels, outputs)."""
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for turn in range(layer.tables.rounds):
        outputs = int((layer.tables.columns[turn] != NOTHING).sum())
        groups, counts = np.unique(_row_group(layer, turn), return_counts=True)
        for group, count in zip(groups.tolist(), counts.tolist(), strict=True):
            if group != NOTHING:
                found.setdefault((count, outputs), []).append((turn, group))
    return found


def _copies(layer: LayerTables) -> tuple[Tensor, Tensor]:
    """Output channels that are copied, and where to (the OFAT's replicas)."""
    ofat = layer.tables.ofat[layer.tables.closes]
    sources = np.broadcast_to(ofat[:, :1], ofat[:, 1:].shape)
    there = ofat[:, 1:] != NOTHING
    return torch.from_numpy(sources[there]), torch.from_numpy(ofat[:, 1:][there])


def _lines(weights: IntArray, layer: LayerTables) -> Tensor:
    """(lines, Oe) the ideal integers, by word line."""
    outputs, channels, height, width = weights.shape
    own, cells = layer.grid.channels_per_row_group, height * width
    lines = np.zeros((layer.grid.row_groups, layer.crossbar_rows, outputs), dtype=np.float64)
    by_line = weights.reshape(outputs, channels * cells).T
    for group in range(layer.grid.row_groups):
        part = by_line[group * own * cells : (group + 1) * own * cells]
        lines[group, : len(part)] = part
    return torch.from_numpy(lines.reshape(-1, outputs))


def _weighted_sum(weights: Tensor, values: Tensor, top: float) -> Tensor:
    """The sum over the middle dimension of (B, S, M) with weights (S,), exact for integers."""
    exact = top * float(weights.sum()) < FLOAT32_INTEGERS
    values = values if exact else values.double()
    return torch.matmul(weights.to(values.dtype)[None], values)
