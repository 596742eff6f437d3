"""One forward and backward pass of the float network, with what every layer saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from epim_nas.errors import EpimError, InputError
from epim_nas.supernet.supernet import Supernet


@dataclass(frozen=True)
class Captured:
    """What a layer saw in the float network, and how the loss depends on what it did.

    Attributes:
        x: (N, ...) its input.
        gradients: for every label the gradient of the loss by the output, (N, C, ...); image by
            image, since no image's loss depends on another image. Weighted so that the expectation
            of any square is the sum over the labels.
        normalised: whether batch norm follows.
    """

    x: Tensor
    gradients: tuple[Tensor, ...]
    normalised: bool


def check_batch(images: int) -> None:
    """Check that the statistics of a batch can stand for recalibrated ones.

    Raises:
        InputError: the batch has one image.
    """
    if images < 2:
        raise InputError(
            "sensitivity.batch_size",
            "a batch has one image, and batch norm follows its statistics",
            "at least 2 images in a batch (and in `sensitivity.images`)",
        )


def captured_pass(
    supernet: Supernet, x: Tensor, draws: int, generator: torch.Generator
) -> dict[str, Captured]:
    """Run the float network and differentiate the loss against labels of its own prediction.

    Args:
        supernet: in evaluation mode.
        x: (N, C, H, W) images.
        draws: see :func:`_labels`.
        generator: of the draws.

    Returns:
        Layer -> what it saw.

    Raises:
        EpimError: the network's output is NaN or Inf.
    """
    seen = _Seen()
    hooks = [
        layer.register_forward_hook(seen.layer_hook(name))
        for name, layer in supernet.layers.items()
    ]
    hooks += [
        module.register_forward_pre_hook(seen.norm_hook)
        for module in supernet.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    try:
        with supernet.selected(None), torch.enable_grad():
            # A copy: the caller's images stay as they are, also where the network begins in place.
            logits = supernet(x.detach().requires_grad_().clone()).float()
    finally:
        for registered in hooks:
            registered.remove()
    labels, weights = _labels(logits.detach().cpu(), draws, generator)
    gradients = []
    for number in range(labels.shape[1]):
        losses = F.cross_entropy(logits, labels[:, number].to(x.device), reduction="none")
        found = torch.autograd.grad(
            (losses * weights[:, number].sqrt().to(losses)).sum(),
            list(seen.edges.values()),
            retain_graph=number < labels.shape[1] - 1,
            allow_unused=True,
        )
        gradients.append(dict(zip(seen.edges, found, strict=True)))
    captured = {}
    for name, shape in seen.shapes.items():
        # A layer that the output does not depend on has no gradient: it costs nothing.
        given = [drawn.pop(name) for drawn in gradients]
        layer_gradients = tuple(x.new_zeros(shape) if g is None else g for g in given)
        captured[name] = Captured(seen.inputs[name], layer_gradients, name in seen.normalised)
    return captured


class _Seen:
    """What the hooks of one forward pass collect.

    Attributes:
        inputs: layer -> its input.
        edges: layer -> where its output's gradient is. The output itself would not do: an
            activation that works in place overwrites it, and is then part of its gradient.
        shapes: layer -> shape of its output.
        normalised: layers whose output goes into batch norm.
    """

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.edges: dict[str, GradientEdge] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.normalised: set[str] = set()
        # The output is held, so that no other tensor takes its id.
        self._made: dict[int, tuple[str, Tensor, int]] = {}

    def layer_hook(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            self.inputs[name] = given[0].detach()
            self.edges[name] = get_gradient_edge(output)
            self.shapes[name] = output.shape
            self._made[id(output)] = (name, output, output._version)

        return hook

    def norm_hook(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        made = self._made.get(id(given[0]))
        # Another version: something between the layer and the batch norm worked in place.
        if made is not None and given[0]._version == made[2]:
            self.normalised.add(made[0])


def _labels(logits: Tensor, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Labels of every image, from the network's own prediction, and what each counts.

    With at least as many draws as classes every class is taken once and counts by its probability:
    the expectation is then exact, for no more backward passes.

    Args:
        logits: (N, classes).
        draws: labels to draw.
        generator: of the draws.

    Returns:
        Both (N, labels); the weights of an image sum to 1.

    Raises:
        EpimError: a prediction is NaN or Inf.
    """
    if not torch.isfinite(logits).all():
        raise EpimError(
            "the float network's output is not finite on the images of the sensitivity pass; check "
            "its weights, its batch norm and the images"
        )
    probabilities = F.softmax(logits, dim=1)
    images, classes = probabilities.shape
    if draws >= classes:
        return torch.arange(classes).expand(images, classes), probabilities
    labels = torch.multinomial(probabilities, draws, replacement=True, generator=generator)
    return labels, torch.full((images, draws), 1 / draws)
