"""Sensitivity from the Fisher information, on layer outputs or on weights.

Both start from the second-order expansion of the loss KL(float || design) around the float network.
Its gradient is zero there, and its Hessian by any quantity z of the network is the Gauss-Newton
matrix E[g g^T], g the gradient by z of the cross entropy against a label drawn from the network's
own prediction (Martens, "New insights and perspectives on the natural gradient method", JMLR 2020,
sections 5 and 9). So a change d of z adds about d^T E[g g^T] d / 2, and no labels are needed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from epim_nas.epitome.sampling import expand
from epim_nas.epitome.statistics import input_rows
from epim_nas.supernet.sensitivity.capture import Captured, captured_pass, check_batch
from epim_nas.supernet.supernet import SuperLayer, Supernet

Scores = dict[str, npt.NDArray[np.float64]]
"""Layer -> loss (nats, summed over the images of a batch) of each of its choices; where a method
puts several together, (several, choices)."""

_Form = Callable[[Tensor], float | tuple[float, float]]
"""What a change of a layer's output costs, summed over the images."""

_MOST_ELEMENTS = 2**26
"""Elements of the largest intermediate tensor of per-image weight gradients (256 MiB)."""


def output_fisher(
    supernet: Supernet,
    x: Tensor,
    draws: int,
    generator: torch.Generator,
    progress: Callable[[int], None],
) -> Scores:
    """Half of E[sum (g d)^2] over a layer's outputs: the diagonal of their Fisher information.

    Batch normalisation behind a layer is recalibrated for every design, so d is taken after
    matching the mean and deviation of every channel. The score that ModelOpt uses for
    quantization, without that matching.
    """
    return _output_scores(supernet, x, draws, generator, progress, _diagonal)


def gauss_newton(
    supernet: Supernet,
    x: Tensor,
    draws: int,
    generator: torch.Generator,
    progress: Callable[[int], None],
) -> Scores:
    """Half of E[(sum g d)^2] over a layer's outputs: the whole matrix, not its diagonal.

    Rounding errors are nearly independent of one another, and the diagonal sees them well. The
    errors of an epitome are not: weights that share an element err together, so their effects add
    up or cancel, which only the products between outputs know. d is matched as in
    :func:`output_fisher`.
    """
    return _output_scores(supernet, x, draws, generator, progress, _whole)


def output_curvature(
    supernet: Supernet,
    x: Tensor,
    draws: int,
    generator: torch.Generator,
    progress: Callable[[int], None],
) -> Scores:
    """(2, choices): :func:`output_fisher` and :func:`gauss_newton` from one pass.

    The diagonal underrates what errs together, and the whole form rests on few gradients: their
    geometric mean (:func:`geometric_mean`) is the score.
    """

    def both(gradients: tuple[Tensor, ...]) -> Callable[[Tensor], tuple[float, float]]:
        whole, diagonal = _whole(gradients), _diagonal(gradients)
        return lambda change: (diagonal(change), whole(change))

    return _output_scores(supernet, x, draws, generator, progress, both)


def geometric_mean(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(k, choices) scores -> (choices,)."""
    mean: npt.NDArray[np.float64] = np.prod(scores, axis=0) ** (1 / len(scores))
    return mean


def _output_scores(
    supernet: Supernet,
    x: Tensor,
    draws: int,
    generator: torch.Generator,
    progress: Callable[[int], None],
    curvature: Callable[[tuple[Tensor, ...]], _Form],
) -> Scores:
    captured = captured_pass(supernet, x, draws, generator)
    scores = {}
    for number, (name, layer) in enumerate(supernet.layers.items(), start=1):
        seen = captured.pop(name)
        scores[name] = _layer_scores(layer, seen, curvature(seen.gradients))
        progress(number)
    return scores


def _diagonal(gradients: tuple[Tensor, ...]) -> Callable[[Tensor], float]:
    square = gradients[0].square()
    for gradient in gradients[1:]:
        square += gradient.square()
    return lambda change: float((change.square() * square).sum(dtype=torch.float64))


def _whole(gradients: tuple[Tensor, ...]) -> Callable[[Tensor], float]:
    def form(change: Tensor) -> float:
        along = [(gradient * change).flatten(1).sum(1) for gradient in gradients]
        return float(torch.stack(along).double().square().sum())

    return form


@torch.no_grad()
def _layer_scores(layer: SuperLayer, seen: Captured, form: _Form) -> npt.NDArray[np.float64]:
    """Half of the quadratic form of what each choice changes in the output."""
    if seen.normalised:
        check_batch(len(seen.x))
    output = layer.dense(seen.x)
    # Outputs are (N, C, H, W) or (N, C): the channel is dimension 1.
    axes = (0, *range(2, output.dim()))
    deviation, mean = torch.std_mean(output, axes, correction=0)
    quantized: dict[int | None, Tensor] = {}
    scores = []
    for index, choice in enumerate(layer.choices):
        if choice.activation_bits not in quantized:
            quantized[choice.activation_bits] = layer.quantize_input(seen.x, index)
        changed = layer.run(quantized[choice.activation_bits], index)
        if seen.normalised:
            changed = _matched(changed, deviation, mean)
        scores.append(form(changed - output))
    return np.array(scores, dtype=np.float64).T / 2


def _matched(changed: Tensor, deviation: Tensor, mean: Tensor) -> Tensor:
    """``changed`` with another mean and deviation of every channel; constant ones become the mean.

    Args:
        changed: (N, C, ...).
        deviation: (C,) wanted, of the population.
        mean: (C,) wanted.
    """
    # Torch's reductions take longer than a convolution, its batch norm does not. (Not
    # `functional.batch_norm`: on a GPU cuDNN may take the variance as a difference of squares.)
    matched, own_mean, gain = torch.native_batch_norm(
        changed, deviation, mean, None, None, True, 0.0, 1e-24
    )
    # It computes x * scale + shift. Where a channel varies little about a mean far from zero, as
    # one whose filter rounded to zero beside a bias, both are huge and their rounding is all that
    # is left: take the mean off first.
    level = gain * own_mean.abs()
    for channel in torch.nonzero(~(level <= 1e3)).flatten().tolist():
        values = changed[:, channel]
        own, centre = torch.std_mean(values, correction=0)
        # A deviation of a few units in the last place is that of no signal.
        if own <= 8 * torch.finfo(values.dtype).eps * centre.abs():
            matched[:, channel] = mean[channel]
        else:
            matched[:, channel] = (values - centre) * (deviation[channel] / own) + mean[channel]
    return matched


def weight_fisher(
    supernet: Supernet,
    x: Tensor,
    draws: int,
    generator: torch.Generator,
    progress: Callable[[int], None],
) -> Scores:
    """Half of E[sum (g d)^2] over a layer's weights: the diagonal of their Fisher information.

    g is the gradient of one image. Choices are compared by their weights alone, so the bits of the
    inputs make no difference, and what batch norm corrects counts.
    """
    captured = captured_pass(supernet, x, draws, generator)
    scores = {}
    for number, (name, layer) in enumerate(supernet.layers.items(), start=1):
        scores[name] = _weight_scores(layer, captured.pop(name))
        progress(number)
    return scores


@torch.no_grad()
def _weight_scores(layer: SuperLayer, seen: Captured) -> npt.NDArray[np.float64]:
    weight = layer.dense.weight
    information = _weight_information(layer.dense, seen).double()
    scores = np.empty(len(layer.choices))
    for index, plan in enumerate(layer.plans):
        changed = expand(layer.epitome(index), plan).reshape(weight.shape)
        error = (changed - weight).double().square()
        scores[index] = float((error * information).sum()) / 2
    return scores


def _weight_information(module: nn.Conv2d | nn.Linear, seen: Captured) -> Tensor:
    """Sum over images of the expectation of the squared gradient, of the weight's shape."""
    images, groups = len(seen.x), getattr(module, "groups", 1)
    outputs = module.weight.shape[0]
    total = module.weight.new_zeros(groups, outputs // groups, module.weight[0].numel())
    # Of an image: the gradient, or the input that every output position multiplies.
    positions = seen.gradients[0][0].numel() // outputs
    largest = max(total.numel(), positions * groups * total.shape[2])
    chunk = max(1, _MOST_ELEMENTS // largest)
    for start in range(0, images, chunk):
        x = seen.x[start : start + chunk]
        # (n, positions, groups, K)
        rows = input_rows(module, x).reshape(len(x), -1, groups, total.shape[2])
        for gradient in seen.gradients:
            # (n, O, ...) -> (n, positions, groups, O / groups)
            g = gradient[start : start + chunk].reshape(len(x), outputs, -1).transpose(1, 2)
            g = g.reshape(len(x), -1, groups, total.shape[1])
            total += torch.einsum("npgo,npgk->ngok", g, rows).square().sum(0)
    return total.reshape(module.weight.shape)
