"""Image files: decoded, cropped and resized, in worker processes where there are some.

Images travel between processes as uint8, a quarter of the bytes, and are normalised where they
arrive.
"""

from __future__ import annotations

import struct
import zlib
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

_DAMAGED = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError,
    ArithmeticError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow's readers raise for files that are damaged."""
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
"""Tags of a TIFF file: bits of a sample, and whether 0 is white (0) or black (1)."""

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


def read_image(path: str, mode: Mode | None = None, least: int | None = None) -> Any:
    """The image in a file, 8 bits a channel.

    Of several images in a file it is the first; transparency is ignored. Grey levels of more than
    8 bits are scaled from the range of their format and floats from 0..1, never from the levels
    that an image happens to have: images stay comparable.

    Args:
        path: the file.
        mode: what it is converted to; None keeps its channels.
        least: a JPEG may be smaller, its sides this many pixels or more.

    Raises:
        InputError: not an image, a damaged one, or pixels whose range is not known.
    """
    library = pillow()
    try:
        image = library.open(path)
        if least is not None:
            image.draft(None, (least, least))
        image.load()
    except (*_DAMAGED, library.DecompressionBombError) as error:
        raise InputError(
            f"data.root: {path}", f"cannot be read as an image: {error}", hint="Remove the file."
        ) from None
    # Pillow would warn of colours that are lost.
    image.info.pop("transparency", None)
    image = _eight_bits(image, path)
    return image if mode is None else _converted(image, mode, path)


def is_grey(image: Any) -> bool:
    """Whether a Pillow image has no colours, with transparency or without."""
    return bool(pillow().getmodebase(image.mode) == "L")


def _eight_bits(image: Any, path: str) -> Any:
    """Grey levels as 8 bits; Pillow's ``convert`` would cut them off at 255 instead."""
    if not image.mode.startswith(("I", "F")):
        return image
    white = _white_level(image)
    if white is None:
        raise _unknown_range(path, f"{image.format} image, Pillow mode `{image.mode}`")
    levels = np.asarray(image, dtype=np.float32)
    low, high = levels.min(), levels.max()
    if not (low >= 0 and high <= white):  # NaN too
        raise _unknown_range(path, f"from {low:g} to {high:g}, Pillow mode `{image.mode}`")
    if image.format == "TIFF" and image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0:
        levels = white - levels
    return pillow().fromarray(np.rint(levels * (255 / white)).astype(np.uint8))


def _white_level(image: Any) -> float | None:
    """The level of white in an image of more than 8 bits, black is 0; None if nothing says it."""
    if image.mode == "F":
        return 1.0
    if image.format == "FITS":
        return None  # signed, and with a scale of its own
    if image.mode == "I":
        # Pillow scales any PGM to 16 bits, and its older versions read 16-bit PNG so.
        return 65535 if image.format in ("PNG", "PPM") else None
    bits = image.tag_v2.get(_TIFF_BITS, (16,))[0] if image.format == "TIFF" else 16
    return 2.0**bits - 1


def _unknown_range(path: str, found: str) -> InputError:
    return InputError(
        f"data.root: {path}",
        f"its pixels have no range from black to white that is known ({found})",
        "8 or 16 bits a channel without a sign, or floats from 0 to 1",
        "Convert the images, or read them in a function of your own (data.name).",
    )


def _converted(image: Any, mode: Mode, path: str) -> Any:
    try:
        if image.mode == "La":  # premultiplied
            image = image.convert("LA")
        elif image.mode == "LAB":
            image = image.convert("RGB")
        return image.convert(mode)
    except ValueError as error:
        raise InputError(
            f"data.root: {path}",
            f"Pillow mode `{image.mode}` cannot be converted to `{mode}`: {error}",
            hint="Convert the images to grey or RGB.",
        ) from None


def pillow() -> ModuleType:
    """Pillow's ``Image`` module."""
    # Pillow comes with torchvision.
    import_torchvision("reading images")
    from PIL import Image

    return Image
