"""Turning a dense network into the network of a design."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from epim_nas.epitome.design import Choice, Design
from epim_nas.epitome.layers import EpitomeConv2d, EpitomeLinear
from epim_nas.epitome.quantization import Quantization, QuantizationRule
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError, nearest

_DEFAULT_QUANTIZATION = Quantization()


def apply_design(
    model: nn.Module,
    design: Design,
    *,
    inplace: bool = False,
    quantization: Quantization | QuantizationRule = _DEFAULT_QUANTIZATION,
) -> nn.Module:
    """The model with its convolutions and linear layers replaced as the design says.

    The epitomes start as the least-squares projection of the model's weights. A layer that the
    design keeps dense and in floating point is left as it is.

    Args:
        model: a dense network; layers of the design are dotted module paths in it.
        design: one choice per layer.
        inplace: change ``model`` itself instead of a copy.
        quantization: how weights and inputs are quantized, or a rule that says it of each layer.

    Returns:
        The network of the design, on the device of the model.

    Raises:
        InputError: a layer of the design is not in the model, is not a convolution or linear
            layer, has NaN or Inf in its weight, or is too small for its epitome.
    """
    if not inplace:
        model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    weighted = [
        name for name, module in modules.items() if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    for name, choice in design.choices.items():
        module = modules.get(name)
        if module is None or name not in weighted:
            raise InputError(
                f"design: layers.{name}",
                "the model has no convolution or linear layer of this name",
                ", ".join(f"`{known}`" for known in weighted),
                nearest(name, weighted),
            )
        if choice != Choice():
            _replace(model, name, _epitome_layer(name, module, choice, quantization))
    return model


def _epitome_layer(
    name: str,
    module: nn.Module,
    choice: Choice,
    quantization: Quantization | QuantizationRule,
) -> nn.Module:
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise InputError(f"model: {name}", "has no weight")
    options: dict[str, Any] = {
        "wrap": choice.wrap,
        "wrap_in": choice.wrap_in,
        "weight_bits": choice.weight_bits,
        "activation_bits": choice.activation_bits,
        "patch": choice.patch,
        "quantization": quantization,
        "device": weight.device,
        "dtype": weight.dtype,
    }
    layer: EpitomeConv2d | EpitomeLinear
    try:
        if isinstance(module, nn.Conv2d):
            layer = EpitomeConv2d(
                module.in_channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                module.stride,  # type: ignore[arg-type]
                module.padding,  # type: ignore[arg-type]
                module.dilation,  # type: ignore[arg-type]
                module.groups,
                module.bias is not None,
                module.padding_mode,
                shape=choice.shape or EpitomeShape.dense((*weight.shape,)),
                **options,
            )
        else:
            assert isinstance(module, nn.Linear)
            layer = EpitomeLinear(
                module.in_features,
                module.out_features,
                module.bias is not None,
                shape=choice.shape or EpitomeShape.dense((*weight.shape, 1, 1)),
                **options,
            )
        layer.project_from(weight)
    except InputError as error:
        raise InputError(
            f"design: layers.{name}: {error.field}", error.problem, error.allowed, error.hint
        ) from None
    bias = module.bias
    if layer.bias is not None and isinstance(bias, Tensor):
        with torch.no_grad():
            layer.bias.copy_(bias)
    return layer.train(module.training)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
