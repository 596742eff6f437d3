"""Bits of the data between layers."""

from __future__ import annotations

from collections.abc import Sequence

from epim_nas.errors import InputError
from epim_nas.network.spec import INPUT, Network

MAX_BITS = 64


def check_bits(field: str, bits: int | None) -> None:
    """Check that a number of bits is None or 1..64.

    Raises:
        InputError: it is not.
    """
    if bits is None:
        return
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= MAX_BITS:
        raise InputError(field, f"got `{bits}`", f"a whole number of bits from 1 to {MAX_BITS}")


def data_bits(network: Network, input_bits: Sequence[int]) -> list[tuple[int, int]]:
    """Bits of every layer's inputs and outputs.

    A layer is written at the most bits that any reader of its output wants, also through pooling
    and element sums, which read and write at these same bits. The last layer writes what it
    reads; pooling or a sum in its place passes on the most that it is given.

    Args:
        network: the network.
        input_bits: per layer, bits of the inputs of a weighted layer; ignored for the others.

    Returns:
        Per layer, (bits of its inputs, bits of its outputs).
    """
    layers = network.layers
    # What a sink without weights passes on comes from above, all else from below.
    given: list[int] = []
    for index, layer in enumerate(layers):
        if layer.has_weight:
            given.append(input_bits[index])
        else:
            sources = [network.index[name] for name in layer.inputs if name != INPUT]
            known = [given[source] for source in sources]
            given.append(max(known, default=input_bits[index]))
    wanted = [0] * len(layers)
    for index in range(len(layers) - 1, -1, -1):
        layer = layers[index]
        readers = [network.index[name] for name in network.consumers[layer.name]]
        wanted[index] = max(
            (
                input_bits[reader] if layers[reader].has_weight else wanted[reader]
                for reader in readers
            ),
            default=given[index],
        )
    return [
        (input_bits[index] if layer.has_weight else wanted[index], wanted[index])
        for index, layer in enumerate(layers)
    ]
