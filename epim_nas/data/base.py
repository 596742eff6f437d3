"""What every data set offers: reproducible training batches, fixed evaluation batches."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Literal, get_args

import torch
from torch import Tensor

from epim_nas.errors import InputError, nearest

Batch = tuple[Tensor, Tensor]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[str, ...] = get_args(Split)


Part = tuple[int, int]
"""(r, n): every n-th image of a batch, from the r-th on."""

WHOLE: Part = (0, 1)
"""All images of a batch."""


class Data(ABC):
    """Images and labels in three splits.

    A batch is ``(images, labels)``: float32 ``(N, C, H, W)``, normalised per channel, and int64
    ``(N,)`` class indices.

    Attributes:
        name: name of the data set.
        num_classes: number of classes.
        input_shape: ``(C, H, W)`` of one image.
        sizes: number of images of each split.
        description: one line that says which images these are and where they came from.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]
    sizes: Mapping[str, int]
    description: str = ""

    @abstractmethod
    def train_batches(
        self, batch_size: int, seed: int, start_step: int = 0, part: Part = WHOLE
    ) -> Iterator[Batch]:
        """Augmented training batches without end.

        Batch number ``k`` is a function of ``seed`` and ``k`` alone, so a training that was
        interrupted after ``k`` steps goes on with ``start_step=k`` as if nothing had happened.

        Args:
            batch_size: images in a batch.
            seed: seed of the order and the augmentation.
            start_step: number of the first batch.
            part: (r, n): of every batch only the images r, r + n, r + 2n, ..., so that n processes
                share it.
        """

    @abstractmethod
    def batches(self, split: Split, batch_size: int, limit: int | None = None) -> Iterable[Batch]:
        """The images of a split in fixed order, not augmented.

        Args:
            split: ``train``, ``validation`` or ``test``.
            batch_size: images in a batch; the last one may be smaller.
            limit: use only so many images, as even a number of each class as there are, and the
                same ones every time.
        """

    def calibration_batches(self, n_images: int, batch_size: int, seed: int = 0) -> list[Batch]:
        """The first batches of the training stream, for batch-norm recalibration.

        They are augmented on purpose. A network's batch-norm statistics were collected on augmented
        images, and black crop borders shift them: recalibration on plain images costs a CIFAR-10
        ResNet-20 4.6 points of accuracy before anything else is changed.

        Args:
            n_images: at least so many images (all of them, if the split has fewer), in batches
                of equal size.
            batch_size: images in a batch.
            seed: seed of the training stream.
        """
        if n_images < 1:
            raise InputError("n_images", f"got {n_images}", "at least 1")
        batch_size = min(batch_size, self.sizes["train"], n_images)
        n_batches = -(-min(n_images, self.sizes["train"]) // batch_size)
        return list(islice(self.train_batches(batch_size, seed), n_batches))


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed derived from its parts, so that streams of different purpose do not meet."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU random generator seeded by :func:`seed_of`."""
    return torch.Generator().manual_seed(seed_of(*parts))


def shuffled_indices(n: int, batch_size: int, seed: int, start_step: int = 0) -> Iterator[Tensor]:
    """Index batches without end: a seeded permutation an epoch, incomplete batches left out.

    Args:
        n: number of images.
        batch_size: images in a batch.
        seed: seed of the permutations.
        start_step: number of the first batch to yield.

    Yields:
        int64 ``(batch_size,)`` indices.

    Raises:
        InputError: fewer images than a batch.
    """
    if batch_size < 1:
        raise InputError("data.batch_size", f"got {batch_size}", "at least 1")
    if n < batch_size:
        raise InputError(
            "data.batch_size",
            f"got {batch_size}, but there are only {n} training images",
            f"1 to {n}",
            "Use a smaller batch, more images or a larger data.train_fraction.",
        )
    steps_per_epoch = n // batch_size
    epoch, position = divmod(start_step, steps_per_epoch)
    while True:
        order = torch.randperm(n, generator=generator("order", seed, epoch))
        for start in range(position, steps_per_epoch):
            yield order[start * batch_size : (start + 1) * batch_size]
        epoch, position = epoch + 1, 0


def check_split(split: str) -> None:
    """Refuse a split that does not exist.

    Raises:
        InputError: ``split`` is not one of the three.
    """
    if split not in SPLITS:
        raise InputError("split", f"got `{split}`", ", ".join(SPLITS), nearest(split, SPLITS))
