"""One forward and backward pass of the float network, with what every layer saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epim_nas.supernet.supernet import Supernet


@dataclass(frozen=True)
class Captured:
    """What a layer saw and did in the float network.

    Attributes:
        x: (N, ...) its input.
        output: (N, C, ...) its output.
        gradients: for every draw of labels the gradient of the summed loss by the output; image by
            image, since no image's loss depends on another image.
        normalised: whether batch norm follows.
    """

    x: Tensor
    output: Tensor
    gradients: tuple[Tensor, ...]
    normalised: bool


def captured_pass(
    supernet: Supernet, x: Tensor, draws: int, generator: torch.Generator
) -> dict[str, Captured]:
    """Run the float network and differentiate the loss against labels drawn from its prediction.

    Args:
        supernet: in evaluation mode.
        x: (N, C, H, W) images.
        draws: labels that are drawn for every image.
        generator: of the draws.

    Returns:
        Layer -> what it saw.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    normalised: set[str] = set()
    name_of: dict[int, str] = {}

    def layer_hook(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name], outputs[name] = given[0].detach(), output
            name_of[id(output)] = name

        return hook

    def norm_hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        name = name_of.get(id(given[0]))
        if name is not None:
            normalised.add(name)

    hooks = [
        layer.register_forward_hook(layer_hook(name)) for name, layer in supernet.layers.items()
    ]
    hooks += [
        module.register_forward_pre_hook(norm_hook)
        for module in supernet.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    try:
        with supernet.selected(None), torch.enable_grad():
            logits = supernet(x.requires_grad_())
    finally:
        for registered in hooks:
            registered.remove()
    probabilities = F.softmax(logits.detach().float().cpu(), dim=1)
    labels = torch.multinomial(probabilities, draws, replacement=True, generator=generator)
    gradients = []
    for draw in range(draws):
        loss = F.cross_entropy(logits.float(), labels[:, draw].to(x.device), reduction="sum")
        # A layer that the output does not depend on has no gradient: it costs nothing.
        gradients.append(
            torch.autograd.grad(
                loss,
                list(outputs.values()),
                retain_graph=draw < draws - 1,
                allow_unused=True,
                materialize_grads=True,
            )
        )
    return {
        name: Captured(
            inputs[name],
            output.detach(),
            tuple(drawn[number] for drawn in gradients),
            name in normalised,
        )
        for number, (name, output) in enumerate(outputs.items())
    }
