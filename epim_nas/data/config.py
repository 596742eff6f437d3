"""The ``data`` group of a run file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from epim_nas.errors import InputError
from epim_nas.files import user_path
from epim_nas.schema import Strict


class DataConfig(Strict):
    """The ``data`` section of a run file.

    Attributes:
        name: ``fashion_mnist_subset``, ``fashion_mnist``, ``cifar10``, ``cifar100``,
            ``imagefolder``, or ``package.module:function``.
        root: folder with the images.
        batch_size: images in a training batch.
        workers: processes that read and augment images; only for images streamed from a folder.
        image_size: height and width that images are resized to; their own by default, 224 for
            images streamed from a folder.
        train_fraction: use a seeded, class-balanced part of the training images.
        augment: whether training images are cropped and flipped at random.
        validation_size: images taken for validation where the data has no validation split.
        args: more options of the data set: ``mean`` and ``std`` (one value a channel, on the scale
            0..1) for all that have a name, and the arguments of a ``package.module:function``.
    """

    name: str
    root: str | None = None
    batch_size: int = Field(128, ge=1, le=10**6)
    workers: int = Field(0, ge=0, le=10**4)
    image_size: int | None = Field(None, ge=1, le=4096)
    train_fraction: float = Field(1.0, ge=1e-9, le=1)
    augment: bool = True
    validation_size: int = Field(2000, ge=1, le=10**9)
    args: dict[str, Any] = Field(default_factory=dict)


class NamedArgs(Strict):
    """``data.args`` of a data set that has a name.

    Attributes:
        mean: mean of each channel that images are normalised by, on the scale 0..1.
        std: standard deviation of each channel, likewise.
        in_memory: whether images of a folder are held in memory; by default where they are small.
        mode: ``RGB`` or ``L`` (grey): what images of a folder are converted to; what they are by
            default.
        cache_mb: MiB for decoded validation and test images of a folder that is streamed.
    """

    mean: list[float] | None = None
    std: list[float] | None = None
    in_memory: bool | None = None
    mode: Literal["L", "RGB"] | None = None
    cache_mb: int = Field(2048, ge=0, le=10**7)


def root_folder(config: DataConfig) -> Path:
    """The folder that ``data.root`` names.

    Raises:
        InputError: it is not given, does not exist or is not a folder.
    """
    if config.root is None:
        raise InputError(
            "data.root", f"is missing; `{config.name}` needs it", "the folder with the images"
        )
    root = user_path(config.root, "data.root")
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "no such folder"
        raise InputError("data.root", f"`{root}`: {problem}", hint="Check the path.")
    return root
