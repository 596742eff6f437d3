"""Fashion-MNIST: the subset that ships with the package, and the full set.

Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv 1708.07747) has 60,000 training and 10,000 test
images, grey, 28x28, in 10 classes. It is under the MIT licence, copyright 2017 Zalando SE; the
licence text lies beside the shipped file.
"""

from __future__ import annotations

import hashlib
import io
import logging
import lzma
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from epim_nas.data.arrays import ArrayData, Images
from epim_nas.data.idx import read_idx
from epim_nas.errors import InputError
from epim_nas.files import atomic_path

logger = logging.getLogger(__name__)

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# Of the 60,000 training images
MEAN, STD = (0.2860,), (0.3530,)

SUBSET_FILE = "fashion_mnist_subset.npz.xz"
SUBSET_SHA256 = "0b0945134e2bab5b42327e8efdaafbe8f07d898c6c6dee94d67fd3d35a7781b6"

# The address and MD5 checksums that the data set's README states
DOWNLOAD_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
IDX_FILES: Mapping[str, str] = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
# Where Debian's package dataset-fashion-mnist puts the idx files
SYSTEM_FOLDERS = (
    Path("/usr/share/datasets/fashion-mnist"),
    Path("/usr/local/share/datasets/fashion-mnist"),
)


def fashion_mnist_subset(augment: bool = True) -> ArrayData:
    """The images that ship with the package: 10,000 training, 2,000 validation, 2,000 test.

    Each split has the same number of images of each class. Training and validation images come
    from the original training set, test images from its test set.

    Raises:
        InputError: the shipped file is missing or damaged.
    """
    arrays = load_subset(str(subset_path()))
    splits = {
        split: Images(arrays[f"{split}_images"][:, None], arrays[f"{split}_labels"].astype(int))
        for split in ("train", "validation", "test")
    }
    sizes = ", ".join(f"{len(part.labels):,} {split}" for split, part in splits.items())
    description = f"the Fashion-MNIST subset that ships with epim_nas ({sizes} images)"
    logger.info("Data: %s", description)
    return _data("fashion_mnist_subset", splits, augment, description)


def fashion_mnist(root: Path | None = None, augment: bool = True) -> ArrayData:
    """The full set: 58,000 training, 2,000 validation and 10,000 test images.

    The validation images are those of the shipped subset, so that results of both can be compared
    and a network trained on one may be judged on the other.

    Args:
        root: folder with the four idx files (plain or ``.gz``), or where to download them to.
            By default the system's share folder, then a cache in the home folder.
        augment: whether to crop and flip training images.

    Raises:
        InputError: the files are neither there nor can be downloaded, or are another data set's.
    """
    folder = find_idx_files(root) or download(root or _cache_folder())
    description = f"the full Fashion-MNIST from {folder}"
    logger.info("Data: %s", description)
    parts = {name: read_idx(_idx_path(folder, name)) for name in IDX_FILES}
    train = Images(
        parts["train-images-idx3-ubyte"][:, None], parts["train-labels-idx1-ubyte"].astype(int)
    )
    test = Images(
        parts["t10k-images-idx3-ubyte"][:, None], parts["t10k-labels-idx1-ubyte"].astype(int)
    )
    subset = load_subset(str(subset_path()))
    chosen = subset["validation_indices"]
    if len(train.labels) != 60_000 or not np.array_equal(
        train.images[chosen, 0], subset["validation_images"]
    ):
        raise InputError(
            str(folder),
            "the idx files are not those of Fashion-MNIST",
            "the original 60,000 training images in their original order",
            "Remove the files to have them downloaded, or name another data.root.",
        )
    rest = np.setdiff1d(np.arange(len(train.labels)), chosen)
    splits = {"train": train.take(rest), "validation": train.take(chosen), "test": test}
    return _data("fashion_mnist", splits, augment, description)


def subset_path() -> Path:
    """The shipped file."""
    return Path(str(resources.files("epim_nas.data") / "files" / SUBSET_FILE))


@lru_cache(maxsize=2)
def load_subset(path: str) -> Mapping[str, np.ndarray[Any, Any]]:
    """The arrays in the shipped file.

    Returns:
        For each split S: ``S_images`` uint8 (N, 28, 28), ``S_labels`` uint8 (N,) and ``S_indices``
        (N,), the images' places in the original training or test set. Read-only by agreement.

    Raises:
        InputError: the file is missing or is not the one that was shipped.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            path, f"cannot be read: {error.strerror}", hint="Install epim_nas again."
        ) from None
    found = hashlib.sha256(raw).hexdigest()
    if found != SUBSET_SHA256:
        raise InputError(
            path,
            f"is damaged: its SHA-256 is {found}",
            SUBSET_SHA256,
            "Install epim_nas again.",
        )
    with np.load(io.BytesIO(lzma.decompress(raw)), allow_pickle=False) as arrays:
        return dict(arrays)


def find_idx_files(root: Path | None) -> Path | None:
    """The folder that holds all four idx files, or None.

    Args:
        root: where to look; torchvision's ``FashionMNIST/raw`` below it counts too. None: the
            system's share folders and the download cache.

    Raises:
        InputError: ``root`` is not a folder.
    """
    if root is None:
        folders = [*SYSTEM_FOLDERS, _cache_folder()]
    elif root.exists() and not root.is_dir():
        raise InputError("data.root", f"`{root}` is not a folder")
    else:
        folders = [root, root / "raw", root / "FashionMNIST" / "raw", root / "fashion-mnist"]
    for folder in folders:
        if all(_idx_path(folder, name).is_file() for name in IDX_FILES):
            return folder
    return None


def download(folder: Path) -> Path:
    """Download the four idx files into ``folder``, each checked against its MD5 checksum.

    Raises:
        InputError: there is no network, or what came is not the file.
    """
    for name, md5 in IDX_FILES.items():
        path = folder / f"{name}.gz"
        if path.is_file() and hashlib.md5(path.read_bytes()).hexdigest() == md5:
            continue
        url = f"{DOWNLOAD_URL}/{name}.gz"
        logger.info("Downloading %s", url)
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                content = response.read()
        except (urllib.error.URLError, OSError) as error:
            raise InputError(
                "data.root",
                f"Fashion-MNIST is not in {folder} and cannot be downloaded ({error})",
                f"a folder with {', '.join(f'{file}.gz' for file in IDX_FILES)}",
                "Fetch them elsewhere, install Debian's dataset-fashion-mnist, or use the shipped "
                "data set `fashion_mnist_subset`.",
            ) from None
        found = hashlib.md5(content).hexdigest()
        if found != md5:
            raise InputError(url, f"what came has the MD5 {found}", md5, "Try again later.")
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    return folder


def _idx_path(folder: Path, name: str) -> Path:
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "epim_nas" / "fashion-mnist"


def _data(name: str, splits: Mapping[str, Images], augment: bool, description: str) -> ArrayData:
    return ArrayData(
        name,
        splits,
        num_classes=len(CLASSES),
        mean=MEAN,
        std=STD,
        augment=augment,
        description=description,
    )
