"""Bits of the data between layers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from epim_nas.epitome.design import FLOAT_BITS
from epim_nas.errors import InputError
from epim_nas.hardware.ragged_reduce import Segments
from epim_nas.network.spec import Network

MAX_BITS = 64


def check_bits(field: str, bits: int | None, least: int = 1, most: int = MAX_BITS) -> None:
    """Check that a number of bits is None or in a range.

    Raises:
        InputError: it is not.
    """
    if bits is None:
        return
    if isinstance(bits, bool) or not isinstance(bits, int) or not least <= bits <= most:
        raise InputError(field, f"got `{bits}`", f"a whole number of bits from {least} to {most}")


class DataFlow:
    """Whose bits decide about a layer's outputs.

    A layer is written at the most bits that any reader of its output wants, also through pooling
    and element sums, which read and write at these same bits. The last layer writes what it
    reads; pooling or a sum in its place passes on the most that it is given.

    Args:
        network: the network.

    Attributes:
        deciders: per layer, the weighted layers (by their number among these) whose input bits
            it is written with; none where nothing with a weight is near.
    """

    def __init__(self, network: Network) -> None:
        number = {layer.name: index for index, layer in enumerate(network.weighted)}
        # What a sink without weights passes on comes from above, all else from below.
        above: dict[str, tuple[int, ...]] = {}
        for layer in network.layers:
            sources = [name for name in layer.inputs if name != network.input_name]
            above[layer.name] = (
                (number[layer.name],)
                if layer.has_weight
                else _merged([above[name] for name in sources])
            )
        below: dict[str, tuple[int, ...]] = {}
        for layer in reversed(network.layers):
            readers = network.consumers[layer.name]
            below[layer.name] = (
                _merged([(number[name],) if name in number else below[name] for name in readers])
                if readers
                else above[layer.name]
            )
        self.deciders = tuple(below[layer.name] for layer in network.layers)
        self._segments = Segments(self.deciders)

    def output_bits(self, input_bits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Bits of every layer's outputs.

        Args:
            input_bits: (..., weighted layers) bits of their inputs.

        Returns:
            (..., layers).
        """
        shape = (*input_bits.shape[:-1], len(self.deciders))
        bits = np.full(shape, float(FLOAT_BITS))
        bits[..., self._segments.layers] = self._segments.largest(input_bits)
        return bits


def _merged(parts: list[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted({index for part in parts for index in part}))
