"""Image folders: small images into memory, large ones streamed through a torch DataLoader.

The images of a search are evaluated hundreds of times: they are decoded once and kept, as far as
memory is allowed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epim_nas.data.arrays import (
    ArrayData,
    Images,
    Normalisation,
    balanced_indices,
    check_normalisation,
    limited,
)
from epim_nas.data.base import (
    WHOLE,
    Batch,
    Data,
    Part,
    Split,
    check_split,
    seed_of,
    shuffled_indices,
)
from epim_nas.data.decoding import (
    Cache,
    Files,
    Key,
    Loading,
    Mode,
    Restartable,
    is_grey,
    pillow,
    read_image,
)
from epim_nas.data.folders import Samples, find_samples
from epim_nas.errors import InputError

if TYPE_CHECKING:
    from epim_nas.data.config import DataConfig, NamedArgs

logger = logging.getLogger(__name__)

# Of the ImageNet training images: what networks trained on colour photographs expect
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Images up to this size, and at most so many bytes of them, are held in memory.
SMALL_PIXELS = 64
_MEMORY_BYTES = 4 << 30


def load_image_folder(config: DataConfig, args: NamedArgs, root: Path, seed: int) -> Data:
    """The images below ``ROOT/train``, ``ROOT/val`` and ``ROOT/test``, one folder a class.

    Images are held in memory (:class:`ArrayData`) where they all have the same size, at most
    64x64 (or ``data.image_size`` is at most 64); others are streamed (:class:`FolderData`).
    They are grey if a sample of them all is, else colour.

    Args:
        config: the ``data`` section.
        args: its ``args``.
        root: the folder.
        seed: seed of the validation split where there is none, and of ``train_fraction``.

    Raises:
        InputError: see :func:`~epim_nas.data.folders.find_samples`; an image that cannot be read;
            images in memory that differ in size.
    """
    splits, classes = find_samples(root, config.name, config.validation_size, seed)
    if config.train_fraction < 1:
        train = splits["train"]
        n_images = max(1, round(config.train_fraction * len(train.paths)))
        chosen = balanced_indices(train.labels, n_images, seed, "data.train_fraction")
        splits["train"] = train.take(chosen)
    mode, in_memory, _ = folder_layout(config, args, splits)
    mean, std = (args.mean, args.std) if args.mean and args.std else default_normalisation(mode)
    n_images = sum(len(part.paths) for part in splits.values())
    description = f"{n_images:,} images in {len(classes)} classes from {root}"
    logger.info("Data: %s, %s", description, "held in memory" if in_memory else "streamed")
    if in_memory:
        return ArrayData(
            config.name,
            {name: _read_all(part, mode, config.image_size) for name, part in splits.items()},
            num_classes=len(classes),
            mean=mean,
            std=std,
            augment=config.augment,
            description=description,
        )
    loading = Loading(mode, config.image_size or 224, config.augment)
    return FolderData(
        config.name,
        splits,
        len(classes),
        loading,
        mean,
        std,
        workers=config.workers,
        cache_bytes=args.cache_mb << 20,
        description=description,
    )


def folder_layout(
    config: DataConfig, args: NamedArgs, splits: Mapping[str, Samples]
) -> tuple[Mode, bool, tuple[int, int, int]]:
    """Colour mode, whether the images are held in memory, and (C, H, W) of one.

    Only a few images are opened.
    """
    size, found_mode = _look_at(splits["train"])
    mode: Mode = found_mode if args.mode is None else args.mode
    side = config.image_size or (size[0] if size and size[0] == size[1] else None)
    in_memory = args.in_memory
    if in_memory is None:
        n_images = sum(len(part.paths) for part in splits.values())
        fits = side is not None and n_images * len(mode) * side**2 <= _MEMORY_BYTES
        in_memory = fits and side is not None and side <= SMALL_PIXELS
    if config.image_size is not None:
        width, height = config.image_size, config.image_size
    else:
        width, height = size if in_memory and size else (224, 224)
    return mode, in_memory, (len(mode), height, width)


class FolderData(Data):
    """Images that are read from files while they are needed.

    Training images get the augmentation usual for ImageNet: a random crop of 8 to 100 % of the
    area, resized, and a random flip. Each image's random numbers come from the seed, the step and
    its place in the batch, so batches do not depend on the number of worker processes.

    Args:
        name: name of the data set.
        splits: the files of each split.
        num_classes: number of classes.
        loading: how a file becomes pixels.
        mean: mean of each channel, on the scale 0..1.
        std: standard deviation of each channel, likewise.
        workers: processes that read and augment; 0 does it in this one.
        cache_bytes: memory for images that are not augmented; each process that measures has it.
        description: one line about the images.
    """

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Samples],
        num_classes: int,
        loading: Loading,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        workers: int = 0,
        cache_bytes: int = 0,
        description: str = "",
    ) -> None:
        channels = len(loading.mode)
        check_normalisation(name, mean, std, channels)
        self.name = name
        self.num_classes = num_classes
        self.input_shape = (channels, loading.size, loading.size)
        self.sizes = {split: len(part.paths) for split, part in splits.items()}
        self.description = description
        self._splits = splits
        self._loading = loading
        self._workers = workers
        self._normalisation = Normalisation(mean, std)
        self._cache = Cache(cache_bytes)
        self._evaluation: Restartable | None = None

    def train_batches(
        self, batch_size: int, seed: int, start_step: int = 0, part: Part = WHOLE
    ) -> Iterator[Batch]:
        """See :meth:`Data.train_batches`."""
        order = shuffled_indices(self.sizes["train"], batch_size, seed, start_step)
        first, every = part

        def keys_of(step: int, chosen: list[int]) -> list[Key]:
            keys = [
                ("train", index, seed_of("augment", seed, step, i))
                for i, index in enumerate(chosen)
            ]
            return keys[first::every]

        keys = (keys_of(step, chosen.tolist()) for step, chosen in enumerate(order, start_step))
        # An endless stream of its own, beside which others are evaluated.
        files = Files(self._splits, self._loading)
        return self._normalised(Restartable(files, self._workers, keep=False).batches(keys))

    def batches(self, split: Split, batch_size: int, limit: int | None = None) -> Iterable[Batch]:
        """See :meth:`Data.batches`."""
        check_split(split)
        size = self.sizes[split] if limit is None else limit
        chosen = limited(self._splits[split].labels, size).tolist()
        return self._normalised(self._plain(split, batch_size, chosen))

    def _plain(self, split: str, batch_size: int, chosen: list[int]) -> Iterator[Batch]:
        """Some images of a split, uint8."""
        kept, n = self._cache.get(split, chosen), len(chosen)
        if kept is None:
            keys: Iterable[list[Key]] = (
                [(split, index, 0) for index in chosen[start : start + batch_size]]
                for start in range(0, n, batch_size)
            )
            if self._evaluation is None:
                files = Files(self._splits, replace(self._loading, augment=False))
                self._evaluation = Restartable(files, self._workers, keep=True)
            yield from self._cache.filled(split, chosen, self._evaluation.batches(keys))
            return
        images, labels = kept
        for start in range(0, n, batch_size):
            end = min(start + batch_size, n)
            yield images[start:end], labels[start:end]

    def _normalised(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for images, labels in batches:
            yield self._normalisation(images), labels

    def __getstate__(self) -> dict[str, Any]:
        # Another process decodes for itself: its copy travels without images and workers.
        return {**vars(self), "_cache": Cache(self._cache.limit), "_evaluation": None}


def default_normalisation(mode: Mode) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """ImageNet's mean and standard deviation; for grey images the mean of its channels."""
    if mode == "RGB":
        return IMAGENET_MEAN, IMAGENET_STD
    return (sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)


def _look_at(samples: Samples) -> tuple[tuple[int, int] | None, Mode]:
    """The size (None where they differ) and colour mode of a few images of each class."""
    sizes, grey = set(), True
    for label in np.unique(samples.labels)[:100]:
        for index in np.flatnonzero(samples.labels == label)[:3]:
            image = read_image(samples.paths[index])
            sizes.add(image.size)
            grey = grey and is_grey(image)
    return (sizes.pop() if len(sizes) == 1 else None), ("L" if grey else "RGB")


def _read_all(samples: Samples, mode: Mode, size: int | None) -> Images:
    arrays: list[np.ndarray[Any, Any]] = []
    for path in samples.paths:
        image = read_image(path, mode)
        if size is not None and image.size != (size, size):
            image = image.resize((size, size), pillow().BILINEAR)
        array = np.asarray(image, dtype=np.uint8)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        if arrays and array.shape != arrays[0].shape:
            raise InputError(
                f"data.root: {path}",
                f"an image of {array.shape[2]}x{array.shape[1]} pixels among images of "
                f"{arrays[0].shape[2]}x{arrays[0].shape[1]}",
                "images of one size",
                "Set data.image_size to resize them all.",
            )
        arrays.append(array)
    return Images(np.stack(arrays), samples.labels)
