"""Sensitivity: the expected loss that each choice of each layer adds, on its own.

One backward pass of the float network gives the gradient g of the loss with respect to every
layer's output; a choice that changes the output by d adds about half of E[(g d)^2] (the diagonal
of the Fisher information on layer outputs, as in ModelOpt's auto-quantize score). Batch
normalisation behind a layer is recalibrated for every design, so d is taken after matching the
mean and deviation of every channel. The sum over layers is an additive score: it ranks designs
and is what the exact solver minimises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epim_nas.errors import EpimError
from epim_nas.files import atomic_path
from epim_nas.supernet.supernet import SuperLayer, Supernet

Table = dict[str, npt.NDArray[np.float64]]
"""Layer -> expected loss (nats per image) of each of its choices."""


class _Capture:
    """Records input, output and output gradient of every layer in one pass."""

    def __init__(self, supernet: Supernet) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.normalised: set[str] = set()
        self._by_output: dict[int, str] = {}
        self._hooks = [
            layer.register_forward_hook(self._layer_hook(name))
            for name, layer in supernet.layers.items()
        ]
        self._hooks += [
            module.register_forward_pre_hook(self._norm_hook)
            for module in supernet.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]

    def _layer_hook(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            self.inputs[name] = inputs[0].detach()
            self.outputs[name] = output
            self._by_output[id(output)] = name

        return hook

    def _norm_hook(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        name = self._by_output.get(id(inputs[0]))
        if name is not None:
            self.normalised.add(name)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def output_fisher(
    supernet: Supernet,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    device: torch.device,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Table:
    """The sensitivity of every choice, from a few batches of training images.

    The loss is the cross entropy against labels drawn from the network's own prediction, which
    makes the squared gradient the Fisher information and needs no labels.

    Args:
        supernet: the supernet, calibrated.
        batches: (images, labels); the labels are not used.
        device: where to compute.
        seed: seed of the drawn labels.
        checkpoint: file in which finished batches are kept, so that an interrupted pass goes on.
        progress: called with (finished, total) layers over all batches.

    Raises:
        EpimError: a score is NaN or Inf.
    """
    was_training = supernet.training
    supernet.eval()
    sums, done, images = _resume(supernet, checkpoint)
    total = len(batches) * len(supernet.layers)
    try:
        for number, (x, _) in enumerate(batches):
            if number < done:
                continue
            finished = number * len(supernet.layers)
            generator = torch.Generator().manual_seed(seed + number)
            scores = _batch_scores(
                supernet, x.to(device), generator, partial(_shifted, progress, finished, total)
            )
            for name, score in scores.items():
                sums[name] += score
            images += len(x)
            if checkpoint is not None:
                _store(checkpoint, sums, number + 1, images)
    finally:
        supernet.train(was_training)
    table = {name: score / (2 * images) for name, score in sums.items()}
    for name, score in table.items():
        if not np.isfinite(score).all():
            raise EpimError(f"sensitivity of layer {name} is not finite; check the weights")
    return table


def _shifted(progress: Callable[[int, int], None], finished: int, total: int, layer: int) -> None:
    progress(finished + layer, total)


def _batch_scores(
    supernet: Supernet, x: Tensor, generator: torch.Generator, progress: Callable[[int], None]
) -> Table:
    capture = _Capture(supernet)
    try:
        with supernet.selected(None), torch.enable_grad():
            logits = supernet(x.requires_grad_())
            probabilities = F.softmax(logits.detach().float().cpu(), dim=1)
            labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            F.cross_entropy(logits.float(), labels.to(x.device), reduction="sum").backward()
    finally:
        capture.close()
    supernet.zero_grad(set_to_none=True)
    scores = {}
    for number, (name, layer) in enumerate(supernet.layers.items(), start=1):
        scores[name] = _layer_scores(
            layer, capture.inputs[name], capture.outputs[name], name in capture.normalised
        )
        progress(number)
    return scores


@torch.no_grad()
def _layer_scores(
    layer: SuperLayer, x: Tensor, output: Tensor, normalised: bool
) -> npt.NDArray[np.float64]:
    gradient, output = output.grad, output.detach()
    assert gradient is not None
    # Outputs are (N, C, H, W) or (N, C): the channel is dimension 1.
    axes = (0, *range(2, output.dim()))
    deviation, mean = torch.std_mean(output, axes, keepdim=True)
    quantized: dict[int | None, Tensor] = {}
    scores = np.empty(len(layer.choices))
    for index, choice in enumerate(layer.choices):
        if choice.activation_bits not in quantized:
            quantized[choice.activation_bits] = layer.quantize_input(x, index)
        changed = layer.run(quantized[choice.activation_bits], index)
        if normalised:
            own_deviation, own_mean = torch.std_mean(changed, axes, keepdim=True)
            changed = (changed - own_mean) * (deviation / (own_deviation + 1e-12)) + mean
        scores[index] = float(((changed - output) * gradient).square().sum(dtype=torch.float64))
    return scores


def _store(path: Path, sums: Table, done: int, images: int) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        arrays: dict[str, Any] = {f"sum.{name}": score for name, score in sums.items()}
        np.savez(file, done=done, images=images, **arrays)


def _resume(supernet: Supernet, path: Path | None) -> tuple[Table, int, int]:
    sums: Table = {name: np.zeros(len(layer.choices)) for name, layer in supernet.layers.items()}
    if path is None or not path.exists():
        return sums, 0, 0
    with np.load(path) as stored:
        return (
            {name: stored[f"sum.{name}"].copy() for name in sums},
            int(stored["done"]),
            int(stored["images"]),
        )
