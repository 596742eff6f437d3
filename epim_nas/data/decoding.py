"""Image files: decoded, cropped and resized, in worker processes where there are some.

Images travel between processes as uint8, a quarter of the bytes, and are normalised where they
arrive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from epim_nas.data.base import Batch
from epim_nas.data.folders import Samples
from epim_nas.errors import InputError
from epim_nas.models._torchvision import import_torchvision

_RESIZE_RATIO = 256 / 224
"""The usual evaluation of ImageNet networks: shorter side 256, centre 224."""
_PREFETCH = 4
"""Batches that each worker process prepares ahead."""

Mode = Literal["L", "RGB"]

Key = tuple[str, int, int]
"""Split, index of the image, seed of its augmentation."""


class Cache:
    """Decoded images, of each split those that were asked for last.

    Args:
        limit: bytes that all of them may take.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: dict[str, tuple[list[int], Batch]] = {}

    def get(self, split: str, chosen: list[int]) -> Batch | None:
        """The images of these indices, if all of them are here; indices rise."""
        known, (images, labels) = self._kept.get(split, ([], (torch.empty(0), torch.empty(0))))
        if known == chosen:
            return images, labels
        if not set(chosen) <= set(known):
            return None
        places = torch.from_numpy(np.searchsorted(known, chosen))
        return images[places], labels[places]

    def filled(self, split: str, chosen: list[int], batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches as they come; kept when all chosen images have come and fit."""
        room = self.limit - sum(
            images.nbytes for name, (_, (images, _)) in self._kept.items() if name != split
        )
        collected: list[Batch] = []
        size = count = 0
        for images, labels in batches:
            size, count = size + images.nbytes, count + len(labels)
            if size <= room:
                collected.append((images, labels))
                # Before the last batch is handed out: a reader may not ask for the end.
                if count == len(chosen):
                    whole, classes = (torch.cat(parts) for parts in zip(*collected, strict=True))
                    self._kept[split] = chosen, (whole, classes)
            else:
                collected.clear()
            yield images, labels


class Restartable:
    """A DataLoader that is given its keys anew, while its worker processes stay.

    Args:
        files: the files.
        workers: processes; 0 for this one.
        keep: whether they stay for a next time. Only one iteration at a time is possible then.
    """

    def __init__(self, files: Files, workers: int, keep: bool) -> None:
        self._keys: Iterable[list[Key]] = ()
        self._loader: Iterable[Batch | InputError] = torch.utils.data.DataLoader(
            files,
            batch_sampler=self,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=keep and workers > 0,
            prefetch_factor=_PREFETCH if workers > 0 else None,
        )

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self._keys)

    def batches(self, keys: Iterable[list[Key]]) -> Iterator[Batch]:
        """The images of the keys, a list a batch."""
        self._keys = keys
        for batch in self._loader:
            if isinstance(batch, InputError):
                raise batch
            yield batch


@dataclass(frozen=True)
class Loading:
    """How an image file becomes pixels, uint8 (C, size, size)."""

    mode: Mode
    size: int
    augment: bool

    @property
    def shorter_side(self) -> int:
        """To which an image is resized before the centre is cropped, if it is not augmented."""
        return round(self.size * _RESIZE_RATIO)

    def transform(self) -> Any:
        """The torchvision transform from a Pillow image to pixels."""
        transforms = import_torchvision("reading images").transforms
        if self.augment:
            steps = [transforms.RandomResizedCrop(self.size), transforms.RandomHorizontalFlip()]
        else:
            steps = [transforms.Resize(self.shorter_side), transforms.CenterCrop(self.size)]
        return transforms.Compose([*steps, transforms.PILToTensor()])


class Files(torch.utils.data.Dataset[tuple[Tensor, int] | InputError]):
    """Key -> image and label; picklable for worker processes.

    Args:
        splits: the files of each split.
        loading: how a file becomes pixels.
    """

    def __init__(self, splits: Mapping[str, Samples], loading: Loading) -> None:
        self.splits = splits
        self.loading = loading
        self._transform: Any = None

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | InputError:
        split, index, seed = key
        samples = self.splits[split]
        if self._transform is None:
            # Made where it is used: a worker process may have to mend torchvision's import.
            self._transform = self.loading.transform()
        # A JPEG of a large photograph is decoded at a half, a quarter or an eighth of its size
        # where that is still twice what it is resized to.
        least = None if self.loading.augment else 2 * self.loading.shorter_side
        try:
            image = read_image(samples.paths[index], self.loading.mode, least)
        except InputError as error:
            # A DataLoader would turn it into a RuntimeError with a traceback.
            return error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._transform(image), int(samples.labels[index])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_transform": None}


def _collate(items: Sequence[tuple[Tensor, int] | InputError]) -> Batch | InputError:
    images, labels = [], []
    for item in items:
        if isinstance(item, InputError):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images), torch.tensor(labels)


def open_image(path: str, least: int | None = None) -> Any:
    """The decoded image in a file; a JPEG may be smaller, its sides ``least`` pixels or more."""
    library = pillow()
    try:
        image = library.open(path)
        if least is not None:
            image.draft(None, (least, least))
        image.load()
    except (OSError, ValueError, SyntaxError, library.DecompressionBombError) as error:
        raise InputError(
            f"data.root: {path}", f"cannot be read as an image: {error}", hint="Remove the file."
        ) from None
    return image


def read_image(path: str, mode: Mode, least: int | None = None) -> Any:
    """The decoded image in a file with 8 bits a channel, as grey or colour.

    Grey levels of 16 bits are divided by 257, so that 65535 becomes 255; floating-point grey levels
    of 0 to 1 are multiplied by 255. Transparency is dropped.

    Args:
        path: the file.
        mode: ``L`` (grey) or ``RGB``.
        least: see :func:`open_image`.

    Raises:
        InputError: the file is not an image, or its grey levels have no known range.
    """
    image = open_image(path, least)
    kind = image.mode
    if is_deep(image):
        image = pillow().fromarray(_eight_bits(path, kind, np.asarray(image)))
    # Pillow takes premultiplied colours back to plain ones in a step of its own.
    image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(kind, image.mode))
    try:
        return image.convert(mode)
    except ValueError:
        raise InputError(
            f"data.root: {path}",
            f"an image of Pillow's mode `{kind}` cannot be converted to `{mode}`",
            "grey, RGB, palette, CMYK, YCbCr or HSV images, with or without transparency",
            "Convert the file to PNG or JPEG.",
        ) from None


def is_deep(image: Any) -> bool:
    """Whether an image has one channel of more than 8 bits, which Pillow would clip."""
    return str(image.mode).split(";")[0] in ("I", "F")


def is_grey(image: Any) -> bool:
    """Whether an image has grey levels only."""
    return is_deep(image) or image.mode in ("1", "L", "LA", "La")


def _eight_bits(path: str, kind: str, levels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Grey levels of 16 bits or of 0 to 1 as uint8."""
    most = 1.0 if kind == "F" else 65535
    low, high = levels.min(), levels.max()
    if not (low >= 0 and high <= most):  # NaN is refused as well
        raise InputError(
            f"data.root: {path}",
            f"grey levels of {low} to {high} in an image of Pillow's mode `{kind}`",
            "0 to 1 for floating-point images, 0 to 65535 for whole numbers",
            "Scale the image, and save it with 8 or 16 bits.",
        )
    return np.rint(levels * (255 / most)).astype(np.uint8)


def pillow() -> ModuleType:
    """Pillow's ``Image`` module."""
    # Pillow comes with torchvision.
    import_torchvision("reading images")
    from PIL import Image

    return Image
