"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from their standard archives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epim_nas.data.arrays import ArrayData, Images
from epim_nas.data.splits import split_off_validation
from epim_nas.errors import InputError

if TYPE_CHECKING:
    from epim_nas.data.config import DataConfig

# name -> (torchvision's class, folder of the archive)
_SETS = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
}
# Of the training images
_MEAN = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4865, 0.4409)}
_STD = {"cifar10": (0.2470, 0.2435, 0.2616), "cifar100": (0.2673, 0.2564, 0.2762)}


def load_cifar(config: DataConfig, root: Path, seed: int) -> ArrayData:
    """CIFAR-10 or CIFAR-100; validation images are taken from the test set.

    They come from the test set because networks that users bring have been trained on the whole
    training set.

    Args:
        config: the ``data`` section.
        root: folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``.
        seed: seed of the validation split.

    Raises:
        InputError: the files are missing or damaged.
    """
    from epim_nas.models._torchvision import import_torchvision

    class_name, folder = _SETS[config.name]
    datasets = import_torchvision(f"the data set `{config.name}`").datasets
    kind = getattr(datasets, class_name)
    # torchvision looks below its root; people also name the folder itself.
    base = root.parent if root.name == folder else root
    try:
        train, test = (_images(kind(str(base), train=train)) for train in (True, False))
    except (RuntimeError, OSError, EOFError, KeyError, ValueError):
        raise InputError(
            "data.root",
            f"`{root}` does not hold {class_name}, or its files are damaged",
            f"a folder with `{folder}` (as torchvision's {class_name} has it), or with one folder "
            "a class in `train` and `test`",
            "Fetch the archive from https://www.cs.toronto.edu/~kriz/cifar.html and unpack it.",
        ) from None
    validation, rest = split_off_validation(
        config.name, "test", test.labels, config.validation_size, seed
    )
    return ArrayData(
        config.name,
        {"train": train, "validation": test.take(validation), "test": test.take(rest)},
        num_classes=int(train.labels.max()) + 1,
        mean=_MEAN[config.name],
        std=_STD[config.name],
        augment=config.augment,
        description=f"{class_name} from {root}",
    )


def _images(dataset: Any) -> Images:
    # torchvision holds them as (N, H, W, C).
    return Images(
        np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2)),
        np.asarray(dataset.targets, dtype=np.int64),
    )
