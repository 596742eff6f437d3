"""Where validation images come from in data that has no validation split."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from epim_nas.data.arrays import balanced_indices
from epim_nas.errors import InputError

logger = logging.getLogger(__name__)


_ADVICE = {
    "test": "It has no validation split, so they become it; the test accuracy is measured on the "
    "other test images.",
    "validation": "It has no test split: they stay the validation split, and the other validation "
    "images become the test split.",
    "train": "It has neither validation nor test split, so they become both. A network that was "
    "trained on all training images has seen them, and its accuracies will be too high.",
}


def split_off_validation(
    name: str, source: str, labels: np.ndarray[Any, Any], size: int, seed: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Divide a split into held-out images and the rest, by seed and balanced by class.

    Args:
        name: name of the data set, for the warning.
        source: the split that is divided: ``test``, ``validation`` or ``train``.
        labels: ``(N,)`` labels of that split.
        size: number of images held out.
        seed: seed of the choice.

    Returns:
        Indices of the held-out images and of the rest.

    Raises:
        InputError: nothing would be left.
    """
    if size >= len(labels):
        raise InputError(
            "data.validation_size",
            f"got {size}, but `{name}` has only {len(labels)} {source} images to take them from",
            f"1 to {len(labels) - 1}",
        )
    logger.warning(
        "Data `%s`: %d of its %d %s images (seed %d) are held out. %s",
        *(name, size, len(labels), source, seed, _ADVICE[source]),
    )
    chosen = balanced_indices(labels, size, seed, "data.validation_size")
    return chosen, np.setdiff1d(np.arange(len(labels)), chosen)
