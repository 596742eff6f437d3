"""Images that fit into memory, augmented a whole batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from epim_nas.data.base import (
    SPLITS,
    WHOLE,
    Batch,
    Data,
    Part,
    Split,
    check_split,
    generator,
    shuffled_indices,
)
from epim_nas.errors import InputError


@dataclass(frozen=True)
class Images:
    """The images of one split.

    Attributes:
        images: uint8 ``(N, C, H, W)``.
        labels: int64 ``(N,)``.
    """

    images: np.ndarray[Any, np.dtype[np.uint8]]
    labels: np.ndarray[Any, np.dtype[np.int64]]

    def take(self, indices: np.ndarray[Any, Any]) -> Images:
        """The images at ``indices``, in that order."""
        return Images(self.images[indices], self.labels[indices])


class ArrayData(Data):
    """A data set held in memory as uint8.

    Training images are padded with black, cropped back at a random place and flipped at random:
    the standard augmentation for small images. Padding happens before normalisation, so that the
    border is black and not the mean colour.

    Args:
        name: name of the data set.
        splits: the images of ``train``, ``validation`` and ``test``.
        num_classes: number of classes.
        mean: mean of each channel, on the scale 0..1.
        std: standard deviation of each channel, on the scale 0..1.
        augment: whether to crop and flip training images.
        crop_padding: black pixels added to each side before the crop; by default an eighth of the
            height (4 for 32x32, 3 for 28x28).
        description: one line about the images.

    Raises:
        InputError: arrays of the wrong shape or type, an empty split, a label out of range, fewer
            than two classes, or channels that do not match ``mean`` and ``std``.
    """

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Images],
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: bool = True,
        crop_padding: int | None = None,
        description: str = "",
    ) -> None:
        check_images(name, splits, num_classes)
        channels, height, width = splits["train"].images.shape[1:]
        check_normalisation(name, mean, std, channels)
        self.name = name
        self.num_classes = num_classes
        self.input_shape = (channels, height, width)
        self.sizes = {split: len(splits[split].labels) for split in SPLITS}
        self.description = description
        self.splits = splits
        self.mean, self.std = tuple(mean), tuple(std)
        self.augment = augment
        self.crop_padding = max(1, height // 8) if crop_padding is None else crop_padding
        self._normalise = Normalisation(mean, std)
        self._images = {split: _tensor(splits[split].images) for split in SPLITS}
        self._labels = {split: _tensor(splits[split].labels) for split in SPLITS}

    def normalised_by(self, mean: Sequence[float], std: Sequence[float]) -> ArrayData:
        """The same images, normalised by another mean and standard deviation."""
        return self._changed(self.splits, mean, std)

    def resized(self, size: int) -> ArrayData:
        """The same images at ``(C, size, size)``."""
        splits = {
            name: Images(resize(part.images, size), part.labels)
            for name, part in self.splits.items()
        }
        return self._changed(splits, self.mean, self.std)

    def with_train_fraction(self, fraction: float, seed: int) -> ArrayData:
        """The same data with a seeded, class-balanced part of the training images."""
        train = self.splits["train"]
        n_images = max(1, round(fraction * len(train.labels)))
        chosen = balanced_indices(train.labels, n_images, seed, "data.train_fraction")
        return self._changed({**self.splits, "train": train.take(chosen)}, self.mean, self.std)

    def _changed(
        self, splits: Mapping[str, Images], mean: Sequence[float], std: Sequence[float]
    ) -> ArrayData:
        same_size = splits["train"].images.shape[2:] == self.input_shape[1:]
        return ArrayData(
            self.name,
            splits,
            num_classes=self.num_classes,
            mean=mean,
            std=std,
            augment=self.augment,
            crop_padding=self.crop_padding if same_size else None,
            description=self.description,
        )

    def train_batches(
        self, batch_size: int, seed: int, start_step: int = 0, part: Part = WHOLE
    ) -> Iterator[Batch]:
        """See :meth:`Data.train_batches`."""
        indices = shuffled_indices(self.sizes["train"], batch_size, seed, start_step)
        for step, chosen in enumerate(indices, start_step):
            images = self._images["train"][chosen]
            if self.augment:
                images = crop_and_flip(images, self.crop_padding, generator("augment", seed, step))
            first, every = part
            labels = self._labels["train"][chosen]
            yield self._normalise(images[first::every]), labels[first::every]

    def batches(self, split: Split, batch_size: int, limit: int | None = None) -> Iterable[Batch]:
        """See :meth:`Data.batches`."""
        check_split(split)
        images, labels = self._images[split], self._labels[split]
        if limit is not None and limit < len(labels):
            chosen = torch.from_numpy(limited(labels.numpy(), limit))
            images, labels = images[chosen], labels[chosen]
        for start in range(0, len(labels), batch_size):
            part = slice(start, start + batch_size)
            yield self._normalise(images[part]), labels[part]


class Normalisation:
    """(x / 255 - mean) / std of uint8 images (N, C, H, W), as one multiplication and one addition.

    Args:
        mean: of each channel, on the scale 0..1.
        std: likewise.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._scale = torch.tensor([1 / (255 * s) for s in std]).view(-1, 1, 1)
        self._offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised float32 images."""
        return images.to(torch.float32).mul_(self._scale).add_(self._offset)


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    # torch warns of memory that it must not write to, e.g. that of a file's bytes: copy that.
    return torch.from_numpy(np.require(array, requirements="W"))


def crop_and_flip(images: Tensor, padding: int, random: torch.Generator) -> Tensor:
    """Pad with zeros, crop each image back at its own random place, flip half of them.

    Args:
        images: ``(N, C, H, W)``.
        padding: pixels added to each side; 0 only flips.
        random: source of the randomness.

    Returns:
        A tensor like ``images``.
    """
    n, _, height, width = images.shape
    flip = torch.rand(n, generator=random) < 0.5
    top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=random)
    padded = functional.pad(images, (padding,) * 4)
    # All windows as a view; indexing copies one window an image.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    cropped = windows[torch.arange(n), :, top, left]
    return torch.where(flip.view(-1, 1, 1, 1), cropped.flip(3), cropped)


def check_images(name: str, splits: Mapping[str, Images], num_classes: int) -> None:
    """Refuse splits that no training could use.

    Raises:
        InputError: see :class:`ArrayData`.
    """
    if num_classes < 2:
        raise InputError(f"data `{name}`", f"it has {num_classes} class", "at least 2 classes")
    shape = splits["train"].images.shape[1:]
    for split in SPLITS:
        images, labels = splits[split].images, splits[split].labels
        field = f"data `{name}`: {split}"
        if images.dtype != np.uint8 or images.ndim != 4:
            raise InputError(
                field, f"images are {images.dtype} of shape {images.shape}", "uint8 (N, C, H, W)"
            )
        if len(images) == 0:
            raise InputError(field, "has no images", "at least one image")
        if len(images) != len(labels):
            raise InputError(field, f"{len(images)} images but {len(labels)} labels", "as many")
        if images.shape[1:] != shape:
            raise InputError(
                field,
                f"images of shape {images.shape[1:]}",
                f"{shape}, the shape of the training images",
                "Set data.image_size to resize them.",
            )
        if labels.min() < 0 or labels.max() >= num_classes:
            raise InputError(
                field,
                f"labels from {labels.min()} to {labels.max()}",
                f"0 to {num_classes - 1} ({num_classes} classes)",
            )


def check_normalisation(
    name: str, mean: Sequence[float], std: Sequence[float], channels: int
) -> None:
    """Refuse a mean and standard deviation that do not fit the images.

    Raises:
        InputError: another number of values than channels, or a standard deviation <= 0.
    """
    for field, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise InputError(
                f"data `{name}`: {field}",
                f"{len(values)} values for images with {channels} channels",
                f"{channels} values",
            )
    if min(std) <= 0:
        raise InputError(f"data `{name}`: std", f"got {min(std)}", "greater than 0")


def balanced_indices(
    labels: np.ndarray[Any, Any], n: int, seed: int, purpose: str
) -> np.ndarray[Any, Any]:
    """A seeded choice of ``n`` images with as even a number of each class as there are.

    Args:
        labels: ``(N,)`` class indices.
        n: how many to choose.
        seed: seed of the choice.
        purpose: a word that keeps choices for different purposes independent.

    Returns:
        int64 ``(n,)`` indices in rising order.

    Raises:
        InputError: ``n`` is less than 1 or more than there are.
    """
    if not 1 <= n <= len(labels):
        raise InputError(purpose, f"got {n} images", f"1 to {len(labels)}")
    order = torch.randperm(len(labels), generator=generator(purpose, seed)).numpy()
    # An image's rank within its class: taking by rank takes the classes in turn.
    shuffled = labels[order]
    by_class = np.argsort(shuffled, kind="stable")
    _, counts = np.unique(shuffled, return_counts=True)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[np.argsort(rank, kind="stable")[:n]])


def limited(labels: np.ndarray[Any, Any], limit: int) -> np.ndarray[Any, Any]:
    """The images of a split that a limit leaves: as even a number of each class as there are.

    Splits are often in the order of their classes, so that the first images are all of one. The
    choice depends on labels and limit alone.

    Args:
        labels: ``(N,)`` class indices of the split.
        limit: how many are wanted.

    Returns:
        int64 ``(min(limit, N),)`` indices in rising order.
    """
    if limit >= len(labels):
        return np.arange(len(labels))
    return balanced_indices(labels, limit, 0, "limit")


def resize(images: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """uint8 ``(N, C, H, W)`` images resized to ``(N, C, size, size)`` (bilinear, antialiased)."""
    if images.shape[2:] == (size, size):
        return images
    parts = [
        functional.interpolate(
            torch.from_numpy(images[start : start + 1024]).float(),
            (size, size),
            mode="bilinear",
            antialias=True,
        )
        .round_()
        .clamp_(0, 255)
        .to(torch.uint8)
        for start in range(0, len(images), 1024)
    ]
    return torch.cat(parts).numpy()
