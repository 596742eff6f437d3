"""One layer's crossbars at work: from integer inputs to integer outputs, round by round.

A round drives some word lines of some row groups, in row turns of as many lines as a subarray has
DACs. The inputs arrive one digit a cycle, every column of every bit slice sums the currents of one
turn, the ADC turns the sum into an integer, and what follows is digital: turns, slices, digits, row
groups and rounds are shifted and added, and wrapped outputs are copied. See ``docs/simulator.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from epim_nas.datapath.cells import SliceRule
from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.simulator.converter import ColumnConverter
from epim_nas.datapath.simulator.input_code import InputCode
from epim_nas.datapath.simulator.options import Devices
from epim_nas.datapath.simulator.packing import PackedSlices
from epim_nas.datapath.simulator.units import Batch, batches_of, copies_of
from epim_nas.datapath.tables import IntArray

FLOAT32_INTEGERS = 1 << 24
"""Below this magnitude, sums of integers in float32 are exact in any order."""
_CHUNK = 1 << 20
"""Column sums that are held at once: few enough to stay in a cache."""
_LARGEST_CHUNK = 1 << 23
"""Column sums of one image and unit that are held at once: more are computed row by row."""


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
        subarray: (lines that are driven at once, lines) of a subarray.
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
        subarray: tuple[int, int],
        devices: Devices,
        scales: Tensor | None,
        generator: torch.Generator,
    ) -> None:
        self._layer, self._rule, self._code = layer, rule, code
        self._converter, self._devices, self._generator = converter, devices, generator
        self._kernel = layer.conv_shape[2:]
        self._batches = batches_of(layer, weights, conductance, subarray, scales)
        if devices.ideal:
            for batch in self._batches:
                for turn in batch.turns:
                    turn.packed = self._packed(turn.cells)
        self._copies: tuple[Tensor, ...] = copies_of(layer)
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

    def _column_bounds(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Smallest and largest sum of every column, by row turn and side."""
        top = self._code.top
        return [
            (top * side.clamp(max=0).sum(-1), top * side.clamp(min=0).sum(-1))
            for turn in batch.turns
            for side in self._sides(turn.cells[:, turn.active])
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
        outputs = x.new_zeros((len(x), self._layer.conv_shape[0], *size), dtype=torch.float64)
        self._move_to(x.device)
        x = F.pad(x.to(self._code.dtype), (0, 0, 0, 0, 0, 1))  # the channel that is nothing
        if len(x) and not self._converter.calibrated:
            found = [
                float(sums.abs().max())
                for batch, units, images, rows in self._parts(x, size)
                for _, sums in self._sums(
                    batch, units, self._windows(batch, units, x[images], rows, stride, dilation)
                )
            ]
            self._converter.calibrate(max(found))
        for batch, units, images, rows in self._parts(x, size):
            windows = self._windows(batch, units, x[images], rows, stride, dilation)
            result = self._add(batch, units, windows)
            outputs[images, :, rows].index_add_(
                1, batch.targets[units].flatten(), result.unflatten(2, (-1, size[1]))
            )
        sources, targets = self._copies
        outputs[:, targets] = outputs[:, sources]
        return outputs

    def _parts(self, x: Tensor, size: Sequence[int]) -> Iterator[tuple[Batch, slice, slice, slice]]:
        """(batch, units, images, rows of outputs): few enough column sums to be held at once."""
        for batch in self._batches:
            _, count, slices, columns, _ = batch.turns[0].cells.shape
            held = self._code.digits * slices * columns * size[1]
            height = min(size[0], max(1, _LARGEST_CHUNK // held))
            units = max(1, _CHUNK // (held * height))
            images = max(1, units // count)
            for image in range(0, len(x), images):
                for row in range(0, size[0], height):
                    for start in range(0, count, units):
                        yield (
                            batch,
                            slice(start, start + units),
                            slice(image, image + images),
                            slice(row, min(row + height, size[0])),
                        )

    def _windows(
        self,
        batch: Batch,
        units: slice,
        x: Tensor,
        rows: slice,
        stride: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        """(D N, U, lines, P) the digits that drive the lines of some units, for rows of outputs."""
        code, inputs = self._code, batch.inputs[units]
        reach = dilation[0] * (self._kernel[0] - 1) + 1
        x = x[:, :, rows.start * stride[0] : (rows.stop - 1) * stride[0] + reach]
        driven = x[:, inputs.transpose(0, 1)].sum(1, dtype=code.dtype) + code.offset
        driven = driven.flatten(1, 2)  # (N, U n, H, W)
        shifts = torch.arange(0, code.digits * code.dac_bits, code.dac_bits, device=x.device)
        digits = (driven >> shifts.to(code.dtype).view(-1, 1, 1, 1, 1)).bitwise_and_(code.top)
        windows = F.unfold(digits.float().flatten(0, 1), self._kernel, dilation, 0, stride)
        return windows.unflatten(1, (len(inputs), -1))

    def _add(self, batch: Batch, units: slice, windows: Tensor) -> Tensor:
        """(N, U m, P) what some units add to their outputs, for windows (D N, U, lines, P)."""
        code = self._code
        sums = self._convert(batch, units, windows)  # (D N, U, S, m, P)
        _, count, slices, columns, positions = sums.shape
        images = len(sums) // code.digits
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
        return result.flatten(1, 2)

    def _convert(self, batch: Batch, units: slice, windows: Tensor) -> Tensor:
        """(D N, U, S, m, P) the ADCs' integers for windows (D N, U, lines, P)."""
        # Sums of many turns may be too large for float32.
        wide = self._converter.top * len(batch.turns) >= FLOAT32_INTEGERS
        total: Tensor | None = None
        for sign, sums in self._sums(batch, units, windows):
            converted = self._converter(sums)
            if total is None:
                total = converted.double() if wide else converted
            else:
                total.add_(converted, alpha=sign)
        assert total is not None
        return total

    def _sums(self, batch: Batch, units: slice, windows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(sign, (D N, U, S, m, P)) what the ADCs convert, turn by turn and side by side."""
        for turn in batch.turns:
            driven = windows[:, :, turn.lines]
            if turn.packed is not None:
                sums = (side.sums(driven, units) for side in turn.packed)
            else:
                cells = turn.cells[:, units]
                sides = cells[:, None] if self._converter.each_side else [cells]
                sums = (self._currents(side, driven) for side in sides)
            yield from zip((1, -1), sums, strict=False)

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
            batch.to(device)
        self._copies = tuple(index.to(device) for index in self._copies)
        self._slice_weights = self._slice_weights.to(device)
        self._digit_weights = self._digit_weights.to(device)

    def _packed(self, cells: Tensor) -> list[PackedSlices]:
        largest = float(cells.sum(-1).max()) * self._code.top
        return [PackedSlices(side, largest) for side in self._sides(cells)]


def _weighted_sum(weights: Tensor, values: Tensor, top: float) -> Tensor:
    """The sum over the middle dimension of (B, S, M) with weights (S,), exact for integers."""
    exact = top * float(weights.sum()) < FLOAT32_INTEGERS
    values = values if exact else values.double()
    return torch.matmul(weights.to(values.dtype)[None], values)
