"""The idx format of MNIST and its relatives (http://yann.lecun.com/exdb/mnist/)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from epim_nas.errors import InputError

_UINT8 = 8  # the format's code for unsigned bytes, the only type that image sets use


def read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The uint8 array in an idx file, plain or compressed with gzip (``.gz``).

    Raises:
        InputError: the file is missing, damaged, or not an idx file of bytes.
    """
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except FileNotFoundError:
        raise InputError(str(path), "no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(str(path), f"cannot be read: {error}", hint="Fetch it again.") from None
    if len(data) < 4 or data[:3] != bytes([0, 0, _UINT8]):
        raise InputError(str(path), "not an idx file of bytes", "an idx file as MNIST's")
    n_dimensions = data[3]
    start = 4 + 4 * n_dimensions
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], ">u4"))
    if len(shape) != n_dimensions or len(data) - start != math.prod(shape):
        raise InputError(
            str(path),
            f"holds {max(0, len(data) - start)} values but announces the shape {shape}",
            hint="The file is damaged: fetch it again.",
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
