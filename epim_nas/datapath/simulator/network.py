"""A quantized network on simulated crossbars."""

from __future__ import annotations

import torch
from torch import nn

from epim_nas.datapath.simulator.layers import SimulatedLayer
from epim_nas.datapath.simulator.options import Converter, Devices
from epim_nas.datapath.stored import stored_layer
from epim_nas.epitome.design import Design
from epim_nas.epitome.layers import EpitomeConv2d, EpitomeLinear
from epim_nas.errors import InputError
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.converters import adc_spec
from epim_nas.network.modules import clone


def simulate(
    model: nn.Module,
    design: Design,
    chip: Chip,
    converter: Converter | None = None,
    devices: Devices | None = None,
    *,
    shortcut: bool = True,
) -> nn.Module:
    """The network of a design with its layers computed by simulated crossbars.

    Args:
        model: the quantized network (:func:`~epim_nas.epitome.apply_design`), trained and with
            calibrated activations; it is left as it is.
        design: its design.
        chip: the chip; it gives crossbars, converters, cells and mapping.
        converter: the ADCs, by default the chip's with the range ``unit``.
        devices: imperfections of the cells, by default none.
        shortcut: whether layers that cannot clip may be computed by the integer convolution.

    Returns:
        A copy of ``model`` in evaluation mode.

    Raises:
        InputError: a layer of the design is in floating point or is not in the model, or a layer
            of the model is not in the design.
    """
    if converter is None:
        converter = Converter(adc_spec(chip.interface.adc).bits)
    devices = devices or Devices()
    generator = torch.Generator().manual_seed(devices.seed)
    result = clone(model).eval()
    modules = dict(result.named_modules())
    for name, choice in design.choices.items():
        module = modules.get(name)
        if not isinstance(module, (EpitomeConv2d, EpitomeLinear)):
            raise InputError(
                f"layer {name}",
                "is not in the model" if module is None else "is in floating point",
                "weight and activation bits for every layer of the design",
                "Crossbars compute with integers: choose bits for it in the design.",
            )
        stored = stored_layer(module, choice)
        layer = SimulatedLayer(name, module, stored, chip, converter, devices, generator, shortcut)
        parent, _, last = name.rpartition(".")
        setattr(result.get_submodule(parent), last, layer)
    kinds = (nn.Conv2d, nn.Linear, EpitomeConv2d, EpitomeLinear)
    for name, module in modules.items():
        if isinstance(module, kinds) and name not in design.choices:
            raise InputError(
                f"layer {name}",
                "is not in the design",
                "weight and activation bits for every layer of the model",
            )
    return result
