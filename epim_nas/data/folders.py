"""Trees of image files: ROOT/SPLIT/CLASS/IMAGE."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from epim_nas.data.arrays import balanced_indices
from epim_nas.data.splits import split_off_validation
from epim_nas.errors import InputError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
_VALIDATION_NAMES = ("validation", "val", "valid")


@dataclass(frozen=True)
class Samples:
    """The files of one split.

    Attributes:
        paths: image files.
        labels: int64 ``(N,)`` class indices.
    """

    paths: tuple[str, ...]
    labels: np.ndarray[Any, np.dtype[np.int64]]

    def take(self, indices: np.ndarray[Any, Any]) -> Samples:
        """The files at ``indices``, in that order."""
        return Samples(tuple(self.paths[i] for i in indices.tolist()), self.labels[indices])


def find_samples(
    root: Path, name: str, validation_size: int, seed: int
) -> tuple[dict[str, Samples], tuple[str, ...]]:
    """The three splits of an image folder.

    A missing validation split is taken from ``test``; a missing test split from the validation
    images, of which ``validation_size`` stay; both from ``train`` where there is neither. A warning
    says so.

    Args:
        root: folder with ``train``, ``val`` (or ``validation``) and ``test``; each has one folder
            a class. Of the latter two, one or both may be missing.
        name: name of the data set, for messages.
        validation_size: images to take where there is no validation split.
        seed: seed of that choice.

    Returns:
        Split -> files, and the names of the classes in order of their index.

    Raises:
        InputError: no ``train``, fewer than two classes, a class without images, or splits that
            have other classes than ``train``.
    """
    if not (root / "train").is_dir():
        found = ", ".join(f"`{path.name}`" for path in sorted(root.iterdir())[:5]) or "nothing"
        raise InputError(
            "data.root",
            f"`{root}` has no folder `train` (found {found})",
            "a folder with `train`, `val` and `test`, each with one folder a class",
        )
    classes = _classes(root / "train")
    train = _samples(root / "train", classes)
    folders = [root / split for split in _VALIDATION_NAMES if (root / split).is_dir()]
    validation = _samples(folders[0], classes) if folders else None
    test = _samples(root / "test", classes) if (root / "test").is_dir() else None
    if validation is None and test is None:
        held_out, train = _divide(name, "train", train, 2 * validation_size, seed)
        half = balanced_indices(held_out.labels, validation_size, seed, "data.validation_size")
        validation = held_out.take(half)
        test = held_out.take(np.setdiff1d(np.arange(len(held_out.labels)), half))
    elif test is None and validation is not None:
        validation, test = _divide(name, "validation", validation, validation_size, seed)
    elif validation is None and test is not None:
        validation, test = _divide(name, "test", test, validation_size, seed)
    assert validation is not None
    assert test is not None
    return {"train": train, "validation": validation, "test": test}, classes


def _divide(
    name: str, source: str, samples: Samples, size: int, seed: int
) -> tuple[Samples, Samples]:
    chosen, rest = split_off_validation(name, source, samples.labels, size, seed)
    return samples.take(chosen), samples.take(rest)


def _classes(folder: Path) -> tuple[str, ...]:
    classes = tuple(
        sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    )
    loose = [p.name for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES]
    if not classes and loose:
        raise InputError(
            "data.root",
            f"`{folder}` holds {len(loose)} images (`{loose[0]}`, ...) in no class folders: they "
            "have no labels",
            "one folder for each class",
            "Without labels accuracy cannot be measured.",
        )
    if len(classes) < 2:
        raise InputError(
            "data.root",
            f"`{folder}` has {len(classes)} class folder{'s' * (len(classes) != 1)}",
            "at least 2, one for each class",
        )
    return classes


def _images(folder: Path) -> Iterator[str]:
    """The image files in a folder and all folders below it; hidden ones are left out.

    Links are followed, as torchvision's ``ImageFolder`` does; one that leads back to a folder
    above it is not entered again.
    """
    above = {folder: {folder.resolve()}}
    for current, folders, files in os.walk(folder, followlinks=True):
        here = Path(current)
        real = above.pop(here)
        entered = []
        for name in sorted(folders):
            target = (here / name).resolve()
            if not name.startswith(".") and target not in real:
                above[here / name] = real | {target}
                entered.append(name)
        folders[:] = entered
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield str(here / name)


def _samples(folder: Path, classes: tuple[str, ...]) -> Samples:
    found = _classes(folder)
    if found != classes:
        differing = sorted(set(found) ^ set(classes))
        raise InputError(
            "data.root",
            f"`{folder}` and the training images have other classes: "
            + ", ".join(f"`{name}`" for name in differing[:5]),
            "the same class folders in every split",
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = sorted(_images(folder / name))
        if not images:
            raise InputError(
                "data.root",
                f"`{folder / name}` has no images",
                "at least one image file (" + ", ".join(sorted(SUFFIXES)) + ")",
            )
        paths += images
        labels += [label] * len(images)
    return Samples(tuple(paths), np.asarray(labels, dtype=np.int64))
