"""Data sets by name: the ``data`` section of a run file, and what loads it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from epim_nas.data.config import DataConfig, NamedArgs, root_folder
from epim_nas.errors import InputError, nearest
from epim_nas.files import user_path
from epim_nas.schema import validate

# torch is imported when data is loaded: reading a run file should not wait for it.
if TYPE_CHECKING:
    from epim_nas.data.arrays import ArrayData
    from epim_nas.data.base import Data

logger = logging.getLogger(__name__)


def data_names() -> list[str]:
    """Names of the data sets that have one."""
    return list(_LOADERS)


def load_data(config: DataConfig, seed: int = 0) -> Data:
    """The data set that a run file names.

    Args:
        config: the ``data`` section.
        seed: seed of the validation split where the data has none, and of ``train_fraction``.

    Raises:
        InputError: an unknown name, images that are missing, damaged or do not fit together, or
            fewer training images than a batch.
    """
    if ":" in config.name:
        from epim_nas.data.custom import load_custom

        data: Data = load_custom(config)
    elif config.name in _LOADERS:
        args = validate(NamedArgs, config.args, "data.args")
        if (args.mean is None) != (args.std is None):
            raise InputError("data.args", "only one of `mean` and `std` is given", "both or none")
        data = _LOADERS[config.name](config, args, seed)
    else:
        known = ", ".join(f"`{name}`" for name in _LOADERS)
        raise InputError(
            "data.name",
            f"`{config.name}` is not a known data set",
            f"{known}, or `package.module:function`",
            nearest(config.name, _LOADERS),
        )
    if data.num_classes < 2:
        raise InputError("data", f"`{data.name}` has {data.num_classes} class", "at least 2")
    if data.sizes["train"] < config.batch_size:
        raise InputError(
            "data.batch_size",
            f"got {config.batch_size}, but there are only {data.sizes['train']} training images",
            f"1 to {data.sizes['train']}",
            "Use a smaller batch, more images or a larger data.train_fraction.",
        )
    return data


def _fashion_mnist_subset(config: DataConfig, args: NamedArgs, seed: int) -> Data:
    from epim_nas.data.fashion_mnist import fashion_mnist_subset

    return _finished(fashion_mnist_subset(config.augment), config, args, seed)


def _fashion_mnist(config: DataConfig, args: NamedArgs, seed: int) -> Data:
    from epim_nas.data.fashion_mnist import fashion_mnist

    root = None if config.root is None else user_path(config.root, "data.root")
    return _finished(fashion_mnist(root, config.augment), config, args, seed)


def _cifar(config: DataConfig, args: NamedArgs, seed: int) -> Data:
    from epim_nas.data.cifar import load_cifar

    root = root_folder(config)
    if (root / "train").is_dir():
        return _image_folder(config, args, seed)
    return _finished(load_cifar(config, root, seed), config, args, seed)


def _image_folder(config: DataConfig, args: NamedArgs, seed: int) -> Data:
    from epim_nas.data.torchvision_data import load_image_folder

    return load_image_folder(config, args, root_folder(config), seed)


def _finished(data: ArrayData, config: DataConfig, args: NamedArgs, seed: int) -> ArrayData:
    """Apply what a run file may ask of any data set in memory."""
    if args.mean is not None and args.std is not None:
        data = data.normalised_by(args.mean, args.std)
    if config.train_fraction < 1:
        data = data.with_train_fraction(config.train_fraction, seed)
    if config.image_size is not None:
        data = data.resized(config.image_size)
    return data


_LOADERS: dict[str, Callable[[DataConfig, NamedArgs, int], Data]] = {
    "fashion_mnist_subset": _fashion_mnist_subset,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "imagefolder": _image_folder,
}
