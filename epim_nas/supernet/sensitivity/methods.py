"""The methods by name, and the pass over the calibration images that they share."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from epim_nas.epitome.quantization import quantization_for
from epim_nas.errors import EpimError, find_named
from epim_nas.files import digest
from epim_nas.supernet.caches import read_cache, write_cache
from epim_nas.supernet.sensitivity.fisher import (
    Scores,
    gauss_newton,
    geometric_mean,
    output_curvature,
    output_fisher,
    weight_fisher,
)
from epim_nas.supernet.sensitivity.measured import measured
from epim_nas.supernet.supernet import Supernet

log = logging.getLogger(__name__)

Table = Scores
"""Layer -> expected loss (nats per image) of each of its choices."""


class BatchScores(Protocol):
    """Scores every choice of every layer on a batch."""

    def __call__(
        self,
        supernet: Supernet,
        x: Tensor,
        draws: int,
        generator: torch.Generator,
        progress: Callable[[int], None],
    ) -> Scores:
        """Sums over the images of a batch.

        Args:
            supernet: calibrated, in evaluation mode.
            x: (N, C, H, W) images.
            draws: labels to draw for every image, where the method draws any.
            generator: of the draws.
            progress: called with how many layers are done.
        """


@dataclass(frozen=True)
class Method:
    """A way to measure sensitivity.

    Attributes:
        name: its name in the run file.
        summary: one line for people.
        scores: what it does on a batch.
        finish: what becomes of the mean over the images.
        normalises: whether batch norm behind a layer follows the statistics of a batch.
    """

    name: str
    summary: str
    scores: BatchScores
    finish: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]] = lambda score: score
    normalises: bool = True


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("output_fisher", "change of the outputs in their diagonal Fisher", output_fisher),
        Method("gauss_newton", "change of the outputs in their Gauss-Newton matrix", gauss_newton),
        Method(
            "output_curvature",
            "geometric mean of output_fisher and gauss_newton, in one pass",
            output_curvature,
            geometric_mean,
        ),
        Method(
            "weight_fisher",
            "change of the weights in their diagonal Fisher",
            weight_fisher,
            normalises=False,
        ),
        Method("measured", "KL divergence of the network with one layer replaced", measured),
    )
}


def find_method(name: str, field: str = "sensitivity.method") -> Method:
    """The method of a name.

    Raises:
        InputError: unknown name.
    """
    return find_named(METHODS, name, field, "a method")


def measure_table(
    supernet: Supernet,
    batches: Sequence[tuple[Tensor, Tensor]],
    method: Method = METHODS["output_fisher"],
    *,
    draws: int = 1,
    device: torch.device,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Table:
    """The sensitivity of every choice, from a few batches of training images.

    Args:
        supernet: the supernet, calibrated.
        batches: (images, labels); the labels are not used.
        method: how it is measured.
        draws: labels that are drawn for every image; more draws, less noise, and a backward pass
            each. With as many as there are classes nothing is drawn: the expectation is exact.
        device: where to compute.
        seed: seed of the drawn labels.
        checkpoint: file in which finished batches are kept, so that an interrupted pass goes on
            and a finished one need not be repeated. What was measured otherwise, or on another
            network or other images, is measured again.
        progress: called with (finished, total) layers over all batches.

    Raises:
        EpimError: a score or the network's output is NaN or Inf.
        InputError: a batch of one image, where the method needs the statistics of a batch.
    """
    was_training = supernet.training
    supernet.eval()
    identity, digests = _identity(supernet, method.name, draws, seed), _image_digests(batches)
    state = _resume(supernet, checkpoint, identity, digests)
    total = len(batches) * len(supernet.layers)
    try:
        for number, (x, _) in enumerate(batches):
            if number < len(state.done):
                continue
            generator = torch.Generator().manual_seed(seed + number)
            advance = partial(_shifted, progress, number * len(supernet.layers), total)
            scores = method.scores(supernet, x.to(device), draws, generator, advance)
            for name, score in scores.items():
                state.sums[name] = state.sums[name] + score
            state.images += len(x)
            state.done.append(digests[number])
            if checkpoint is not None:
                _store(checkpoint, identity, state)
    finally:
        supernet.train(was_training)
    table = {name: method.finish(score / state.images) for name, score in state.sums.items()}
    for name, score in table.items():
        if not np.isfinite(score).all():
            raise EpimError(f"sensitivity of layer {name} is not finite; check the weights")
    return table


def _shifted(progress: Callable[[int, int], None], finished: int, total: int, layer: int) -> None:
    progress(finished + layer, total)


def _identity(supernet: Supernet, method: str, draws: int, seed: int) -> str:
    """What a table belongs to, but for the images."""
    content = hashlib.sha256()
    # Buffers that are not in the state, such as where the choices start, count as well.
    for name, tensor in [*supernet.named_parameters(), *supernet.named_buffers()]:
        content.update(name.encode())
        content.update(_bytes(tensor))
    # The orders of channels and the quantization change what a choice is, and no tensor.
    for name, layer in supernet.layers.items():
        plans = list(dict.fromkeys(layer.plans))
        content.update(repr([name, plans]).encode())
        for plan, choice in zip(layer.plans, layer.choices, strict=True):
            options = quantization_for(supernet.quantization, plan, choice.weight_bits)
            content.update(repr([plans.index(plan), options]).encode())
    return digest([method, draws, seed, supernet.space.digest, content.hexdigest()])


def _image_digests(batches: Sequence[tuple[Tensor, Tensor]]) -> list[str]:
    """SHA-256 of the images of every batch: a table goes on from the batches that it holds."""
    return [hashlib.sha256(_bytes(x)).hexdigest() for x, _ in batches]


def _bytes(tensor: Tensor) -> memoryview:
    flat: npt.NDArray[np.uint8] = (
        tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    )
    return flat.data


@dataclass
class _Partial:
    """The finished batches of a pass.

    Attributes:
        sums: scores summed over their images.
        images: how many images they have.
        done: digests of the batches.
    """

    sums: Table
    images: int = 0
    done: list[str] = field(default_factory=list)


def _store(path: Path, identity: str, partial_table: _Partial) -> None:
    arrays: dict[str, Any] = {f"sum.{name}": v for name, v in partial_table.sums.items()}
    arrays |= {"identity": np.array(identity), "done": np.array(partial_table.done)}
    write_cache(path, {**arrays, "images": partial_table.images})


def _resume(supernet: Supernet, path: Path | None, identity: str, digests: list[str]) -> _Partial:
    nothing = _Partial(
        {name: np.zeros(len(layer.choices)) for name, layer in supernet.layers.items()}
    )

    def read(stored: Mapping[str, Any]) -> _Partial | None:
        done = [str(batch) for batch in stored["done"]]
        if str(stored["identity"]) != identity or done != digests[: len(done)]:
            log.info("%s belongs to other weights, images or settings: measured again", path)
            return None
        sums = {name: stored[f"sum.{name}"].copy() for name in nothing.sums}
        return _Partial(sums, int(stored["images"]), done)

    return read_cache(path, read) or nothing
