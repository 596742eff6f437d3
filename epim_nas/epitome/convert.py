"""Turning a dense network into the network of a design."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from epim_nas.epitome.alignment import Alignment, AlignmentSearch
from epim_nas.epitome.alignment import align as find_order
from epim_nas.epitome.design import Choice, Design
from epim_nas.epitome.layers import EpitomeConv2d, EpitomeLinear
from epim_nas.epitome.quantization import Quantization, QuantizationRule
from epim_nas.epitome.shape import EpitomeShape
from epim_nas.errors import InputError, nearest
from epim_nas.network.modules import clone

_DEFAULT_QUANTIZATION = Quantization()


def apply_design(
    model: nn.Module,
    design: Design,
    *,
    inplace: bool = False,
    quantization: Quantization | QuantizationRule = _DEFAULT_QUANTIZATION,
    align: bool | AlignmentSearch = False,
    covariances: Mapping[str, Tensor] | None = None,
    importance: Mapping[str, Tensor] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> nn.Module:
    """The model with its convolutions and linear layers replaced as the design says.

    The epitomes start as the least-squares projection of the model's weights. A layer that the
    design keeps dense and in floating point is left as it is. Batch-norm statistics are not those
    of the new weights: recalibrate them.

    Args:
        model: a dense network; layers of the design are dotted module paths in it.
        design: one choice per layer.
        inplace: change ``model`` itself instead of a copy.
        quantization: how weights and inputs are quantized, or a rule that says it of each layer.
        align: put the channels in the order in which each epitome fits best
            (:func:`.alignment.align`); how long to search for it, or True.
        covariances: layer -> covariance of its inputs (:func:`.statistics.input_covariances`);
            such a layer is projected by the error of its outputs.
        importance: layer -> importance of its weight's elements, of a shape that broadcasts to the
            weight's (O, I/groups, Kh, Kw), such as :func:`.statistics.batch_norm_importance`.
        progress: called with how many layers are done; aligning wide ones takes seconds each.

    Returns:
        The network of the design, on the device of the model.

    Raises:
        InputError: a layer of the design is not in the model, is not a convolution or linear
            layer, has NaN or Inf in its weight, or is too small for its epitome.
    """
    if not inplace:
        model = clone(model)
    weighted = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    for done, (name, choice) in enumerate(design.choices.items(), start=1):
        module = weighted.get(name)
        if module is None:
            raise InputError(
                f"design: layers.{name}",
                "the model has no convolution or linear layer of this name",
                ", ".join(f"`{known}`" for known in weighted),
                nearest(name, weighted),
            )
        if choice != Choice():
            layer = _epitome_layer(name, module, choice, quantization)
            with _named(name):
                factor = (importance or {}).get(name)
                if align:
                    search = align if isinstance(align, AlignmentSearch) else None
                    align_layer(layer, module.weight, factor, search)
                layer.project_from(module.weight, factor, (covariances or {}).get(name))
            _replace(model, name, layer)
        progress(done)
    return model


def align_layer(
    layer: EpitomeConv2d | EpitomeLinear,
    weight: Tensor,
    importance: Tensor | None = None,
    search: AlignmentSearch | None = None,
) -> Alignment:
    """Put the channels of an epitome layer in the order in which it fits a dense weight best.

    The epitome stays as it is: project from the weight afterwards.

    Args:
        layer: the layer.
        weight: the dense weight.
        importance: of its elements.
        search: how long to search.
    """
    if importance is not None and importance.dim() < 4:  # of a linear layer
        importance = importance[..., None, None]
    found = find_order(
        weight.detach().double().cpu().numpy(),
        layer.plan,
        importance=None if importance is None else importance.double().cpu().numpy(),
        search=search,
    )
    layer.reorder(found.plan.out_order, found.plan.in_order)
    return found


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors about a layer name it."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"design: layers.{name}: {error.field}", error.problem, error.allowed, error.hint
        ) from None


def _epitome_layer(
    name: str,
    module: nn.Conv2d | nn.Linear,
    choice: Choice,
    quantization: Quantization | QuantizationRule,
) -> EpitomeConv2d | EpitomeLinear:
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
    with _named(name):
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
            layer = EpitomeLinear(
                module.in_features,
                module.out_features,
                module.bias is not None,
                shape=choice.shape or EpitomeShape.dense((*weight.shape, 1, 1)),
                **options,
            )
    bias = module.bias
    if layer.bias is not None and isinstance(bias, Tensor):
        with torch.no_grad():
            layer.bias.copy_(bias)
    return layer.train(module.training)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
