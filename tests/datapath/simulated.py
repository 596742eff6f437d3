"""Random layers on random chips for the tests of the simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn

from epim_nas import EpitomeShape, apply_design
from epim_nas.datapath.simulator.layers import SimulatedLayer
from epim_nas.datapath.simulator.network import simulate
from epim_nas.datapath.simulator.options import Converter, Devices
from epim_nas.epitome.design import Choice, Design
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.load import load_chip
from epim_nas.network.spec import LayerSpec, Network
from epim_nas.network.trace import trace


@dataclass(frozen=True)
class Case:
    """A network of one layer, its design and its chip.

    Attributes:
        dense: the trained network: one convolution or linear layer, named ``0``.
        network: its geometry.
        design: its design.
        chip: the chip.
        images: inputs for it.
    """

    dense: nn.Sequential
    network: Network
    design: Design
    chip: Chip
    images: Tensor

    def quantized(self) -> nn.Sequential:
        """The network of the design, its input range calibrated on the images."""
        model = apply_design(self.dense, self.design).eval()
        with torch.no_grad():
            model(self.images)
        assert isinstance(model, nn.Sequential)
        return model

    def simulated(
        self,
        converter: Converter | None = None,
        devices: Devices | None = None,
        *,
        shortcut: bool = False,
    ) -> SimulatedLayer:
        """The layer on the chip, by default with ADCs that never clip."""
        model = simulate(
            self.quantized(),
            self.design,
            self.chip,
            converter or Converter(),
            devices,
            shortcut=shortcut,
        )
        layer = model.get_submodule("0")
        assert isinstance(layer, SimulatedLayer)
        return layer

    @property
    def spec(self) -> LayerSpec:
        """The layer's geometry."""
        return self.network.layers[0]


@st.composite
def chips(draw: st.DrawFn) -> Chip:
    """Small crossbars of every kind of mapping."""
    choose = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    changes: dict[str, Any] = {
        "crossbar.rows": 32,
        "crossbar.columns": choose(16, 32),
        "crossbar.subarray_rows": 32,
        "interface.dacs_per_subarray": choose(5, 12, 32),
        "interface.dac.bits": choose(1, 2, 3),
        "mapping.packing": choose("packed", "sliced"),
        "mapping.polarity": choose(1, 2),
        "mapping.subtraction": choose("analog", "digital"),
        "mapping.cell_bits": choose(1, 2),
        "mapping.groups": choose(1, 1, 2),
        "pipeline.input_fill": choose("window", "line"),
    }
    return load_chip("xbar_64", [f"{key}={value}" for key, value in changes.items()])


@st.composite
def layer_cases(draw: st.DrawFn, largest_bits: int = 9) -> Case:
    """A convolution (or sometimes a linear layer) of any geometry, with any plan."""
    integer = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    torch.manual_seed(integer(0, 2**16))
    if integer(0, 7) == 0:
        inputs, outputs, groups, kernel = integer(1, 40), integer(1, 20), 1, (1, 1)
        layer: nn.Module = nn.Linear(inputs, outputs)
        size: tuple[int, ...] = (inputs,)
    else:
        groups = draw(st.sampled_from([1, 1, 2, 4]))
        inputs, outputs = groups * integer(1, 8), groups * integer(1, 8)
        kernel = (integer(1, 3), integer(1, 3))
        layer = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride=(integer(1, 2), integer(1, 2)),
            padding=(integer(0, 1), integer(0, 1)),
            dilation=(integer(1, 2), integer(1, 2)),
            groups=groups,
            bias=draw(st.booleans()),
            padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
        )
        size = (inputs, integer(5, 7), integer(5, 7))
    choice = Choice(weight_bits=integer(2, largest_bits), activation_bits=integer(2, 8))
    if draw(st.booleans()):
        shape = EpitomeShape(
            integer(1, outputs),
            integer(1, inputs // groups),
            kernel[0] + integer(0, 1) * (kernel[0] > 1),
            kernel[1] + integer(0, 1) * (kernel[1] > 1),
        )
        assume(shape.size <= outputs * (inputs // groups) * kernel[0] * kernel[1])
        patch = (integer(1, shape.out_channels), integer(1, shape.in_channels))
        choice = Choice(
            shape=shape,
            wrap=draw(st.booleans()),
            wrap_in=draw(st.booleans()),
            weight_bits=choice.weight_bits,
            activation_bits=choice.activation_bits,
            patch=draw(st.sampled_from([None, patch])),
        )
    images = torch.randn(2, *size)
    if draw(st.booleans()):
        images = images.relu() + 0.01  # unsigned
    dense = nn.Sequential(layer).eval()
    shape3 = (size[0], size[1] if len(size) > 1 else 1, size[2] if len(size) > 1 else 1)
    network = trace(dense, shape3, "one") if len(size) > 1 else linear(inputs, outputs)
    return Case(dense, network, Design("one", {"0": choice}), draw(chips()), images)


def linear(inputs: int, outputs: int) -> Network:
    """The geometry of one linear layer."""
    spec = LayerSpec("0", "fc", ("input",), inputs, outputs, (1, 1))
    return Network("one", (spec,), (inputs, 1, 1))
