"""The integers that a design's trained weights program into the crossbars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from epim_nas.datapath.tables import IntArray
from epim_nas.epitome.plan import SamplingPlan
from epim_nas.epitome.quantization.options import Quantization, QuantizationRule

if TYPE_CHECKING:
    from torch import Tensor, nn

    from epim_nas.epitome.design import Choice, Design
    from epim_nas.network.spec import LayerSpec, Network

_DEFAULT = Quantization()


@dataclass(frozen=True, eq=False)
class StoredLayer:
    """A layer as it is stored on crossbars.

    Attributes:
        plan: the plan that its tables follow.
        weights: (Oe, Ie, He, We) integers.
        scales: what an integer counts, of a shape that broadcasts to that of ``weights``.
    """

    plan: SamplingPlan
    weights: IntArray
    scales: npt.NDArray[np.float64]


def stored_layers(
    network: Network,
    design: Design,
    state: Mapping[str, Tensor],
    quantization: Quantization | QuantizationRule = _DEFAULT,
) -> dict[str, StoredLayer]:
    """The quantized layers of a trained design; those in floating point are left out.

    Args:
        network: the design's network.
        design: the design.
        state: the trained model's tensors.
        quantization: how it was quantized.

    Raises:
        InputError: the tensors are not those of the design.
    """
    from epim_nas.epitome.convert import apply_design
    from epim_nas.epitome.layers import ORDER_BUFFERS
    from epim_nas.models.weights import load_state

    # Only the layers with weights: the rest of the model is not needed to know what is stored.
    model = apply_design(
        _weighted_layers(network, state), design, inplace=True, quantization=quantization
    )
    # The model has no orders yet: a layer takes them from the tensors.
    own = {*model.state_dict(), *(f"{name}.{order}" for name in design for order in ORDER_BUFFERS)}
    known = {name: tensor for name, tensor in state.items() if name in own}
    load_state(model, known, f"weights of {design.network}")
    modules = dict(model.named_modules())
    return {
        layer.name: stored_layer(modules[layer.name], design[layer.name])
        for layer in network.weighted
        if design[layer.name].weight_bits is not None
    }


def stored_layer(module: nn.Module, choice: Choice) -> StoredLayer:
    """What a quantized layer of a design stores.

    Args:
        module: the :class:`~epim_nas.epitome.EpitomeConv2d` or ``EpitomeLinear``.
        choice: what the design says of it.
    """
    from epim_nas.epitome.layers import EpitomeConv2d, EpitomeLinear

    assert isinstance(module, (EpitomeConv2d, EpitomeLinear))
    weights = module.weight_quantizer.integers(module.epitome).cpu().numpy()
    plan, scales = module.plan, module.weight_quantizer.steps(module.epitome).double().cpu().numpy()
    if choice.shape is None and plan.groups > 1:
        # Kept dense, a grouped convolution is stored with the zeros outside of its blocks.
        weights = block_diagonal(weights, plan.groups)
        plan = SamplingPlan.identity(weights.shape)
    return StoredLayer(plan, weights, scales)


def block_diagonal(weights: IntArray, groups: int) -> IntArray:
    """(O, I, Kh, Kw) the dense weight of a grouped convolution's (O, I/groups, Kh, Kw)."""
    outputs, inputs = weights.shape[:2]
    dense = np.zeros((outputs, inputs * groups, *weights.shape[2:]), dtype=weights.dtype)
    size = outputs // groups
    for group in range(groups):
        rows = slice(group * size, (group + 1) * size)
        dense[rows, group * inputs : (group + 1) * inputs] = weights[rows]
    return dense


def _weighted_layers(network: Network, state: Mapping[str, Tensor]) -> nn.Module:
    """A module with the network's convolutions and linear layers under their names.

    Whether they have a bias is not part of the network: the tensors tell.
    """
    from torch import nn

    root = nn.Module()
    for layer in network.weighted:
        *parents, name = layer.name.split(".")
        place = root
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, nn.Module())
            place = place.get_submodule(parent)
        place.add_module(name, _module(layer, f"{layer.name}.bias" in state))
    return root


def _module(layer: LayerSpec, bias: bool) -> nn.Module:
    from torch import nn

    if layer.type == "fc":
        return nn.Linear(layer.in_channels, layer.out_channels, bias)
    return nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias,
    )
