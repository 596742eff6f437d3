"""The methods by name, and the pass over the calibration images that they share."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from epim_nas.errors import EpimError, InputError, nearest
from epim_nas.files import atomic_path, digest
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
    """

    name: str
    summary: str
    scores: BatchScores
    finish: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]] = lambda score: score


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
        Method("weight_fisher", "change of the weights in their diagonal Fisher", weight_fisher),
        Method("measured", "KL divergence of the network with one layer replaced", measured),
    )
}


def find_method(name: str, field: str = "sensitivity.method") -> Method:
    """The method of a name.

    Raises:
        InputError: unknown name.
    """
    if name not in METHODS:
        known = ", ".join(f"`{known}`" for known in METHODS)
        raise InputError(field, f"`{name}` is not a method", known, nearest(name, METHODS))
    return METHODS[name]


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
            each.
        device: where to compute.
        seed: seed of the drawn labels.
        checkpoint: file in which finished batches are kept, so that an interrupted pass goes on
            and a finished one need not be repeated. What was measured otherwise, or on another
            network or other images, is measured again.
        progress: called with (finished, total) layers over all batches.

    Raises:
        EpimError: a score is NaN or Inf.
    """
    was_training = supernet.training
    supernet.eval()
    identity = _identity(supernet, batches, method.name, draws, seed)
    sums, done, images = _resume(supernet, checkpoint, identity)
    total = len(batches) * len(supernet.layers)
    try:
        for number, (x, _) in enumerate(batches):
            if number < done:
                continue
            generator = torch.Generator().manual_seed(seed + number)
            advance = partial(_shifted, progress, number * len(supernet.layers), total)
            scores = method.scores(supernet, x.to(device), draws, generator, advance)
            for name, score in scores.items():
                sums[name] = sums[name] + score
            images += len(x)
            if checkpoint is not None:
                _store(checkpoint, identity, sums, number + 1, images)
    finally:
        supernet.train(was_training)
    table = {name: method.finish(score / images) for name, score in sums.items()}
    for name, score in table.items():
        if not np.isfinite(score).all():
            raise EpimError(f"sensitivity of layer {name} is not finite; check the weights")
    return table


def _shifted(progress: Callable[[int, int], None], finished: int, total: int, layer: int) -> None:
    progress(finished + layer, total)


def _identity(
    supernet: Supernet,
    batches: Sequence[tuple[Tensor, Tensor]],
    method: str,
    draws: int,
    seed: int,
) -> str:
    """What a partial table belongs to: more batches of the same images continue it."""
    content = hashlib.sha256()
    # Buffers that are not in the state, such as where the choices start, count as well.
    for name, tensor in [*supernet.named_parameters(), *supernet.named_buffers()]:
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for x, _ in batches[:1]:
        content.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest([method, draws, seed, supernet.space.digest, content.hexdigest()])


def _store(path: Path, identity: str, sums: Table, done: int, images: int) -> None:
    arrays: dict[str, Any] = {f"sum.{name}": score for name, score in sums.items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, identity=np.array(identity), done=done, images=images, **arrays)


def _resume(supernet: Supernet, path: Path | None, identity: str) -> tuple[Table, int, int]:
    nothing: Table = {name: np.zeros(len(layer.choices)) for name, layer in supernet.layers.items()}
    if path is None or not path.exists():
        return nothing, 0, 0
    try:
        with np.load(path) as stored:
            if str(stored["identity"]) != identity:
                log.info("%s belongs to other weights, images or settings: measured again", path)
                return nothing, 0, 0
            sums = {name: stored[f"sum.{name}"].copy() for name in nothing}
            return sums, int(stored["done"]), int(stored["images"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s): measured again", path, error)
        return nothing, 0, 0
