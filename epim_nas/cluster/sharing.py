"""Objects in Ray's object store that all workers of a node read in place.

Ray keeps numpy arrays outside the pickled bytes: every process of a node maps them from shared
memory instead of copying them. Torch tensors are pickled into the bytes. A network's parameters
are therefore sent as numpy arrays here. Buffers are not: batch-norm statistics are written while a
design is measured, and what one process writes into the shared memory, all would read.
"""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ray.cloudpickle import CloudPickler
from torch import nn


@dataclass(frozen=True)
class Shared:
    """A pickled object, its arrays beside it.

    Attributes:
        pickled: the object without its arrays.
        arrays: its large arrays, which Ray maps rather than copies.
    """

    pickled: bytes
    arrays: list[npt.NDArray[np.uint8]]


def share(thing: Any) -> Shared:
    """Take an object apart for the object store.

    Args:
        thing: anything that cloudpickle can pickle.
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(thing)
    # As numpy arrays: Ray keeps those outside of its own pickle as well.
    arrays = [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers]
    return Shared(stream.getvalue(), arrays)


def restore(shared: Shared) -> Any:
    """The object again; its parameters and arrays are views of the shared memory, for reading."""
    return pickle.loads(shared.pickled, buffers=shared.arrays)


class _Pickler(CloudPickler):
    """Pickles parameters on the CPU as numpy arrays."""

    def reducer_override(self, thing: Any) -> Any:
        if type(thing) is nn.Parameter and _plain(thing):
            array = thing.detach().contiguous().numpy()
            return _parameter, (array, thing.requires_grad)
        return super().reducer_override(thing)


def _plain(parameter: nn.Parameter) -> bool:
    return (
        parameter.device.type == "cpu"
        and parameter.layout is torch.strided
        and parameter.dtype is not torch.bfloat16  # numpy has no such type
    )


def _parameter(array: npt.NDArray[Any], requires_grad: bool) -> nn.Parameter:
    with warnings.catch_warnings():
        # Torch warns of read-only memory. Nobody writes: training works on copies.
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array)
    return nn.Parameter(tensor, requires_grad=requires_grad)
