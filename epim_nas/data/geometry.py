"""Shape and classes of a run file's data, without reading its images."""

from __future__ import annotations

from dataclasses import dataclass

from epim_nas.data.config import DataConfig, NamedArgs, root_folder
from epim_nas.data.registry import load_data
from epim_nas.files import user_path
from epim_nas.schema import validate

_KNOWN = {
    "fashion_mnist_subset": ((1, 28, 28), 10),
    "fashion_mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
}


@dataclass(frozen=True)
class DataGeometry:
    """What a network has to know of its data.

    Attributes:
        input_shape: (C, H, W) of an image.
        num_classes: classes.
    """

    input_shape: tuple[int, int, int]
    num_classes: int


def data_geometry(config: DataConfig, seed: int = 0) -> DataGeometry | None:
    """What :func:`~epim_nas.data.registry.load_data` would find.

    Of an image folder, file names are listed and a few images looked at, for their size and
    colours. A function of the user's is called, as there is no other way to know.

    Args:
        config: the ``data`` section.
        seed: seed of the splits.

    Returns:
        None where the data has no ``root`` yet, so that nobody knows.

    Raises:
        InputError: an unknown data set, or a folder that is wrong.
    """
    if _is_folder(config):
        args = validate(NamedArgs, config.args, "data.args")
        if config.root is None:
            return None
        from epim_nas.data.folders import find_samples
        from epim_nas.data.torchvision_data import folder_layout

        root = root_folder(config)
        splits, classes = find_samples(root, config.name, config.validation_size, seed)
        return DataGeometry(folder_layout(config, args, splits)[2], len(classes))
    if config.name in _KNOWN:
        shape, num_classes = _KNOWN[config.name]
        side = config.image_size
        return DataGeometry(shape if side is None else (shape[0], side, side), num_classes)
    data = load_data(config, seed)
    return DataGeometry(data.input_shape, data.num_classes)


def _is_folder(config: DataConfig) -> bool:
    """Whether images lie in folders; the CIFAR sets may too."""
    if config.name == "imagefolder":
        return True
    if not config.name.startswith("cifar") or config.root is None or ":" in config.name:
        return False
    return (user_path(config.root, "data.root") / "train").is_dir()
