"""Trees of image files: ROOT/SPLIT/CLASS/IMAGE."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from epim_nas.data.arrays import balanced_indices
from epim_nas.data.listing import Listing
from epim_nas.data.splits import split_off_validation
from epim_nas.errors import InputError

logger = logging.getLogger(__name__)

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
        InputError: no ``train``, fewer than two classes, a class without images, splits that have
            other classes than ``train``, a link that leads nowhere or a folder that cannot be read.
    """
    if not (root / "train").is_dir():
        names = Listing(root, SUFFIXES, "data.root").folders()
        found = ", ".join(f"`{name}`" for name in names[:5]) or "no folders"
        raise InputError(
            "data.root",
            f"`{root}` has no folder `train` (found {found})",
            "a folder with `train`, `val` and `test`, each with one folder a class",
        )
    train, classes = _read_split(root / "train")
    folders = [root / split for split in _VALIDATION_NAMES if (root / split).is_dir()]
    validation = _read_split(folders[0], classes)[0] if folders else None
    test = _read_split(root / "test", classes)[0] if (root / "test").is_dir() else None
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


def _read_split(
    folder: Path, expected: tuple[str, ...] | None = None
) -> tuple[Samples, tuple[str, ...]]:
    """The images of a split and its classes, which have to be the expected ones."""
    listing = Listing(folder, SUFFIXES, "data.root")
    classes = _classes(listing)
    if expected is not None and classes != expected:
        differing = sorted(set(classes) ^ set(expected))
        raise InputError(
            "data.root",
            f"`{folder}` and the training images have other classes: "
            + ", ".join(f"`{name}`" for name in differing[:5]),
            "the same class folders in every split",
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = listing.files(name)
        if not images:
            left_out = listing.left_out()
            raise InputError(
                "data.root",
                f"`{folder / name}` has no images"
                + (f"; left out: {left_out}" if left_out else ""),
                "at least one image file (" + ", ".join(sorted(SUFFIXES)) + ")",
            )
        paths += images
        labels += [label] * len(images)
    if listing.left_out():
        logger.warning("Data: left out below `%s`: %s", folder, listing.left_out())
    return Samples(tuple(paths), np.asarray(labels, dtype=np.int64)), classes


def _classes(listing: Listing) -> tuple[str, ...]:
    folder, classes = listing.root, listing.folders()
    loose = listing.loose()
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
