"""The user's own data loaders: ``package.module:function``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils.data import DataLoader, IterableDataset

from epim_nas.data.base import SPLITS, WHOLE, Batch, Data, Part, Split, check_split, seed_of
from epim_nas.errors import InputError, nearest
from epim_nas.imports import import_module_here

if TYPE_CHECKING:
    from epim_nas.data.config import DataConfig

logger = logging.getLogger(__name__)

_RETURNS = (
    'a `Data` object, or {"train": loader, "validation": loader, "test": loader, "num_classes": n}'
)


def load_custom(config: DataConfig) -> Data:
    """The data that a user's function returns.

    ``config.args`` are its arguments. The folder that the program was started in is importable.

    Raises:
        InputError: no such module or function, the function fails or returns something else, an
            option that only data with a name has, or batches that are not images and labels.
    """
    for option in ("root", "image_size", "train_fraction", "augment"):
        if getattr(config, option) != type(config).model_fields[option].default:
            raise InputError(
                f"data.{option}",
                f"is not used by `{config.name}`, which makes its own batches",
                "nothing here",
                "Give the function an argument for it in data.args.",
            )
    function = _find(config.name)
    try:
        result = function(**config.args)
    except InputError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"data.name: {config.name}", f"the function fails: {type(error).__name__}: {error}"
        ) from error
    if isinstance(result, Data):
        return result
    if not isinstance(result, Mapping):
        raise InputError(
            f"data.name: {config.name}", f"it returns a {type(result).__name__}", _RETURNS
        )
    for key in (*SPLITS, "num_classes"):
        if key not in result:
            raise InputError(
                f"data.name: {config.name}", f"what it returns has no `{key}`", _RETURNS
            )
    logger.info("Data: loaders of %s", config.name)
    return LoaderData(
        config.name, {split: result[split] for split in SPLITS}, result["num_classes"]
    )


class LoaderData(Data):
    """Data from three iterables of (images, labels), such as torch ``DataLoader`` objects.

    Batches are regrouped to the size that is asked for. The training loader is iterated again for
    each epoch, with torch's random generator seeded by the seed and the number of the loader's
    batch: a shuffling loader whose randomness comes from torch gives the same batches each time.
    A resumed training has to read, and throws away, the batches it has already used.

    Args:
        name: name of the data set.
        loaders: for each split an iterable that can be iterated many times; images are float
            ``(N, C, H, W)``, normalised, labels ``(N,)`` class indices.
        num_classes: number of classes.

    Raises:
        InputError: a loader that is empty or yields something else.
    """

    def __init__(self, name: str, loaders: Mapping[str, Iterable[Any]], num_classes: int) -> None:
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
            raise InputError(
                f"data.name: {name}: num_classes", f"got {num_classes!r}", "an integer of 2 or more"
            )
        self.name = name
        self.num_classes = num_classes
        self.description = f"the data loaders of {name}"
        self._loaders = loaders
        self.input_shape = (0, 0, 0)  # of the first batch, found while counting
        self.sizes = {split: self._count(split) for split in SPLITS}

    def train_batches(
        self, batch_size: int, seed: int, start_step: int = 0, part: Part = WHOLE
    ) -> Iterator[Batch]:
        """See :meth:`Data.train_batches`."""
        if batch_size < 1:
            raise InputError("data.batch_size", f"got {batch_size}", "at least 1")
        batches = _regroup(self._epochs(seed), batch_size)
        first, every = part
        for step, (images, labels) in enumerate(batches):
            if step >= start_step:
                yield images[first::every], labels[first::every]

    def batches(self, split: Split, batch_size: int, limit: int | None = None) -> Iterable[Batch]:
        """See :meth:`Data.batches`; the order is the loader's, a limit takes its first images."""
        check_split(split)
        left = self.sizes[split] if limit is None else min(limit, self.sizes[split])
        for images, labels in _regroup(self._once(split), batch_size, keep_last=True):
            if left <= 0:
                break
            yield images[:left], labels[:left]
            left -= len(labels)

    def _epochs(self, seed: int) -> Iterator[Batch]:
        number = 0
        epoch = 0
        while True:
            with _seeded("order", seed, epoch):
                loader = iter(self._loaders["train"])
            while True:
                with _seeded("augment", seed, number):
                    item = next(loader, None)
                if item is None:
                    break
                yield self._checked("train", item)
                number += 1
            epoch += 1

    def _once(self, split: str) -> Iterator[Batch]:
        for item in self._loaders[split]:
            yield self._checked(split, item)

    def _count(self, split: str) -> int:
        """Number of images, and a check of at least the first batch."""
        loader = self._loaders[split]
        where = f"data.name: {self.name}: {split}"
        if not isinstance(loader, Iterable) or isinstance(loader, Iterator):
            raise InputError(
                where,
                f"got a {type(loader).__name__}",
                "something that can be iterated again and again, such as a DataLoader or a list",
            )
        batches = self._once(split)
        first = next(batches, None)
        if first is None:
            raise InputError(where, "has no batches", "at least one batch")
        if (
            isinstance(loader, DataLoader)
            and loader.batch_size is not None
            and not isinstance(loader.dataset, IterableDataset)
        ):
            # Knowing the number spares reading a whole data set.
            images = len(cast(Sized, loader.sampler))
            return images - images % loader.batch_size if loader.drop_last else images
        return len(first[1]) + sum(len(labels) for _, labels in batches)

    def _checked(self, split: str, item: Any) -> Batch:
        where = f"data.name: {self.name}: {split}"
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise InputError(where, f"yields a {type(item).__name__}", "pairs (images, labels)")
        images, labels = (torch.as_tensor(part) for part in item)
        if images.ndim != 4 or not images.is_floating_point():
            raise InputError(
                where,
                f"its images are {images.dtype} of shape {tuple(images.shape)}",
                "normalised floats of shape (N, C, H, W)",
            )
        if labels.shape != images.shape[:1] or labels.is_floating_point():
            raise InputError(
                where,
                f"its labels are {labels.dtype} of shape {tuple(labels.shape)}",
                f"integers of shape ({len(images)},)",
            )
        if self.input_shape == (0, 0, 0):
            channels, height, width = images.shape[1:]
            self.input_shape = (channels, height, width)
        if tuple(images.shape[1:]) != self.input_shape:
            raise InputError(
                where,
                f"images of shape {tuple(images.shape[1:])}",
                f"{self.input_shape}, as in the first batch",
            )
        if len(labels) and (labels.min() < 0 or labels.max() >= self.num_classes):
            raise InputError(
                where,
                f"labels from {int(labels.min())} to {int(labels.max())}",
                f"0 to {self.num_classes - 1} (num_classes is {self.num_classes})",
            )
        if not torch.isfinite(images).all():
            raise InputError(where, "an image holds NaN or infinity", "finite values")
        return images.float(), labels.long()


def _regroup(batches: Iterable[Batch], batch_size: int, keep_last: bool = False) -> Iterator[Batch]:
    """The same images in batches of another size."""
    waiting: list[Batch] = []
    n = 0
    for batch in batches:
        waiting.append(batch)
        n += len(batch[1])
        if n < batch_size:
            continue
        images, labels = (torch.cat(parts) for parts in zip(*waiting, strict=True))
        whole = n - n % batch_size
        for start in range(0, whole, batch_size):
            yield images[start : start + batch_size], labels[start : start + batch_size]
        waiting, n = [(images[whole:], labels[whole:])], n - whole
    if keep_last and n:
        images, labels = (torch.cat(parts) for parts in zip(*waiting, strict=True))
        yield images, labels


@contextmanager
def _seeded(*parts: int | str) -> Iterator[None]:
    """torch's random state seeded inside, and as it was outside."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*parts))
        yield


def _find(name: str) -> Any:
    module_name, _, function_name = name.partition(":")
    field = f"data.name: {name}"
    if not module_name or not function_name:
        raise InputError(field, "is incomplete", "`package.module:function`")
    module = import_module_here(module_name, field)
    function = getattr(module, function_name, None)
    if not callable(function):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise InputError(
            field,
            f"`{module_name}` has no function `{function_name}`",
            "",
            nearest(function_name, public),
        )
    return function
