"""Files of arrays that were slow to compute, and can be computed again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from epim_nas.stored import check_stored, store_path

log = logging.getLogger(__name__)
T = TypeVar("T")


def read_cache(file: Path | None, read: Callable[[Mapping[str, Any]], T | None]) -> T | None:
    """What ``read`` makes of the arrays in a file.

    Returns:
        None where there is no file, where ``read`` returns it (the arrays belong to something
        else), and, with a warning, where the file is damaged.
    """
    if file is None or not file.is_file():
        return None
    try:
        check_stored(file)
        with np.load(file) as arrays:
            return read(arrays)
    except Exception as error:  # numpy and zipfile raise nearly anything on damaged bytes
        log.warning("%s cannot be read (%s): computed again", file, error)
        return None


def write_cache(file: Path, arrays: Mapping[str, Any]) -> None:
    """Replace a file by arrays, atomically."""
    with store_path(file) as temporary, open(temporary, "wb") as target:
        np.savez(target, **arrays)
