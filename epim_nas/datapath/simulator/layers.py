"""A quantized layer computed by the simulated crossbars, in place of the torch operator."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epim_nas.datapath.cells import SliceRule
from epim_nas.datapath.layer import LayerTables
from epim_nas.datapath.simulator.arrays import FLOAT32_INTEGERS, CrossbarArrays
from epim_nas.datapath.simulator.cells import conductances
from epim_nas.datapath.simulator.converter import ColumnConverter
from epim_nas.datapath.simulator.input_code import InputCode
from epim_nas.datapath.simulator.options import Converter, Devices
from epim_nas.datapath.stored import StoredLayer
from epim_nas.epitome.functional import epitome_conv2d, explicit_padding
from epim_nas.epitome.layers import EpitomeConv2d, EpitomeLinear
from epim_nas.epitome.sampling import expand
from epim_nas.errors import InputError
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.components import Components


class SimulatedLayer(nn.Module):
    """A convolution or linear layer as the chip computes it.

    Where cells and reads are ideal and no column's sum can leave the range of its ADC, the integer
    convolution is computed instead (``exact``): it has the same result.

    Args:
        name: the layer's name, for messages.
        source: the layer of the quantized network.
        stored: the integers that are stored.
        chip: the chip.
        converter: the ADCs.
        devices: imperfections of the cells.
        generator: of the random numbers.
        shortcut: whether the integer convolution may be used.

    Attributes:
        exact: whether the integer convolution is used.

    Raises:
        InputError: no weight or activation bits, NaN or Inf, activations that are not calibrated.
    """

    def __init__(
        self,
        name: str,
        source: EpitomeConv2d | EpitomeLinear,
        stored: StoredLayer,
        chip: Chip,
        converter: Converter,
        devices: Devices,
        generator: torch.Generator,
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        if source.weight_bits is None or source.activation is None:
            missing = "weight_bits" if source.weight_bits is None else "activation_bits"
            raise InputError(
                f"layer {name}: {missing}",
                "is none: crossbars compute with integers only",
                "bits for weights and activations of every layer",
            )
        step = float(source.activation.step.detach().abs())
        if step == 0:
            raise InputError(
                f"layer {name}: activation.step",
                "is not calibrated",
                hint="Pass a batch through the quantized network first.",
            )
        self.name, self.source, self._stored = name, source, stored
        self.input_step = step
        parts = Components.of(chip)
        rule = SliceRule.of(source.weight_bits, chip)
        tables = LayerTables.build(name, stored.plan, source.weight_bits, chip)
        signed = bool(source.activation.signed)
        self._range = source.activation.range(signed)
        slabs = tables.tables.ifat.shape[1]
        bits = source.activation.bits + (slabs - 1).bit_length()
        self._code = InputCode(bits, parts.dac.bits, 1 << (bits - 1) if signed else 0)
        scales = torch.from_numpy(stored.scales)
        self._by_row_group = scales.shape[1] > 1
        _check_scales(name, stored, tables, chip)
        ideal = devices.ideal
        pair = rule.polarity == 2
        digital = pair and chip.mapping.subtraction == "digital"
        # Every subarray has its own converters.
        subarray = chip.crossbar.subarray_rows
        lines = min(subarray, chip.interface.dacs_per_subarray)
        largest = self._code.top * ((1 << rule.cell_bits) - 1) * lines
        self.converter = ColumnConverter(
            converter, signed=pair and not digital, each_side=digital, largest=largest, whole=ideal
        )
        self.arrays = CrossbarArrays(
            tables,
            stored.weights,
            conductances(stored.weights, tables, rule, chip, devices, generator),
            rule,
            self._code,
            self.converter,
            (lines, subarray),
            devices,
            scales if self._by_row_group else None,
            generator,
        )
        self.tables = tables
        whole = ideal and not self.converter.rounds
        self.exact = shortcut and whole and self.arrays.clipping_share() == 0
        self._scale = None if self._by_row_group else self._output_scale(scales)
        self._shortcut = self._integer_epitome() if self.exact else None

    def forward(self, x: Tensor) -> Tensor:
        """``x`` as the source takes it; the output of the source's shape and type."""
        # Not buffers: a change of the model's type must not round them.
        self._move_to(x.device)
        # Sums of integers are exact in float32, not in what autocast would compute with.
        with torch.autocast(x.device.type, enabled=False):
            return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        integers = self._input_integers(x)
        linear = isinstance(self.source, EpitomeLinear)
        shape = integers.shape
        if linear:
            integers = integers.reshape(-1, shape[-1], 1, 1)
        elif x.dim() == 3:
            integers = integers[None]
        result = self._exact(integers) if self.exact else self._simulated(integers)
        result = result * self.input_step
        if self.source.bias is not None:
            result = result + self.source.bias.detach()[:, None, None]
        result = result.to(x.dtype)
        if linear:
            return result.reshape(*shape[:-1], result.shape[1])
        return result if x.dim() == 4 else result[0]

    def _input_integers(self, x: Tensor) -> Tensor:
        """The integers of the quantizer: the same division, so that ties round alike."""
        plan, linear = self.source.plan, isinstance(self.source, EpitomeLinear)
        channels, place = plan.groups * plan.conv_shape[1], -1 if linear else -3
        if x.dim() < -place or x.shape[place] != channels:
            raise InputError(
                f"layer {self.name}: input", f"got shape {tuple(x.shape)}", f"{channels} channels"
            )
        if torch.isnan(x).any():
            raise InputError(f"layer {self.name}: input", "has NaN in it", "numbers")
        assert self.source.activation is not None
        step = self.source.activation.step.detach().to(x.dtype).abs()
        rounded = torch.round(x / step)
        # Float32 has no integers next to the bounds of wide activations.
        exact = rounded.double() if self._code.bits > 24 else rounded.float()
        return exact.clamp(*self._range)

    def _move_to(self, device: torch.device) -> None:
        for name in ("_scale", "_shortcut"):
            value = getattr(self, name)
            if value is not None and value.device != device:
                setattr(self, name, value.to(device))

    def integers(self, x: Tensor, *, exact: bool = False) -> Tensor:
        """The integer results of integer inputs (N, C, H, W), before any scale.

        Args:
            x: integers, not yet padded.
            exact: by the integer convolution instead of the crossbars.
        """
        return self._exact(x, scaled=False) if exact else self._simulated(x, scaled=False)

    def _simulated(self, x: Tensor, scaled: bool = True) -> Tensor:
        stride, dilation, padding, mode = (1, 1), (1, 1), [0, 0, 0, 0], "zeros"
        if isinstance(self.source, EpitomeConv2d):
            stride, dilation = self.source.stride, self.source.dilation
            padding, mode = explicit_padding(self.source), self.source.padding_mode
        x = F.pad(x, padding, mode="constant" if mode == "zeros" else mode)
        result = self.arrays(x, stride, dilation)
        return result * self._scale if scaled and self._scale is not None else result

    def _exact(self, x: Tensor, scaled: bool = True) -> Tensor:
        assert self._shortcut is not None or not scaled
        epitome = self._integer_epitome() if self._shortcut is None else self._shortcut
        geometry: Any = SimpleNamespace(
            stride=(1, 1),
            dilation=(1, 1),
            padding=(0, 0),
            padding_mode="zeros",
            kernel_size=(1, 1),
            groups=1,
            bias=None,
        )
        plan = self._stored.plan
        if isinstance(self.source, EpitomeConv2d):
            for key in ("stride", "dilation", "padding", "padding_mode", "kernel_size"):
                setattr(geometry, key, getattr(self.source, key))
            geometry.groups = plan.groups
        result = epitome_conv2d(cast(nn.Conv2d, geometry), x.to(epitome.dtype), epitome, plan)
        return result * self._scale if scaled and self._scale is not None else result

    def _integer_epitome(self) -> Tensor:
        weights = torch.from_numpy(self._stored.weights).to(self.source.epitome.device)
        if self._by_row_group:
            return weights.double() * torch.from_numpy(self._stored.scales).to(weights.device)
        total = expand(weights.double(), self._stored.plan).abs().flatten(1).sum(1).max()
        largest = float(total) * max(abs(bound) for bound in self._range)
        # Fast convolutions on a GPU round; float64 ones are exact there.
        small = largest < FLOAT32_INTEGERS and weights.device.type == "cpu"
        return weights.float() if small else weights.double()

    def _output_scale(self, scales: Tensor) -> Tensor:
        """(O, 1, 1) what an integer result counts."""
        filled = scales.expand(self._stored.plan.shape.as_tuple)
        scale = expand(filled.contiguous(), self._stored.plan)[:, 0, 0, 0]
        return scale.to(self.source.epitome.device)[:, None, None]

    def extra_repr(self) -> str:
        """How it is computed, for ``repr``."""
        return f"{'integer convolution' if self.exact else 'crossbars'}"


def _check_scales(name: str, stored: StoredLayer, layer: LayerTables, chip: Chip) -> None:
    """Check that what a row group adds up in a column has one scale."""
    scales, own = stored.scales, layer.grid.channels_per_row_group
    if scales.shape[1] == 1:
        return
    first = np.arange(scales.shape[1]) // own * own
    if not np.array_equal(scales, scales[:, first]):
        raise InputError(
            f"layer {name}: scales of the weights",
            f"differ within a crossbar of {chip.name}, which holds {own} input channels",
            "one scale a crossbar and output",
            "Quantize with `quantized_by_crossbar` for this chip.",
        )
