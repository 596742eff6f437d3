"""How much smaller a design is than the dense network in 32-bit floating point."""

from __future__ import annotations

from dataclasses import dataclass

from epim_nas.epitome.design import FLOAT_BITS, Choice, Design
from epim_nas.errors import InputError
from epim_nas.hardware.chip import Chip
from epim_nas.hardware.mapping import map_layer
from epim_nas.network.spec import Network


@dataclass(frozen=True)
class Compression:
    """Ratio of crossbars, total = shape * bits.

    Attributes:
        total: dense 32-bit crossbars / the design's crossbars.
        shape: dense crossbars at the design's bits / the design's crossbars.
        bits: dense 32-bit crossbars / dense crossbars at the design's bits.
    """

    total: float
    shape: float
    bits: float


def dense_crossbars(network: Network, chip: Chip, bits: int | None = FLOAT_BITS) -> int:
    """Crossbars of the dense network with weights of ``bits`` (None: 32).

    Raises:
        InputError: a kernel does not fit a crossbar.
    """
    choice = Choice(weight_bits=bits)
    return sum(map_layer(layer, choice, chip).crossbars for layer in network.weighted)


def compression(network: Network, chip: Chip, design: Design) -> Compression:
    """Compression of a design, split into its shape part and its bits part.

    Raises:
        InputError: the design does not fit the network.
    """
    design.check_fits(network)
    dense = dense_crossbars(network, chip)
    if dense == 0:
        raise InputError(f"network {network.name}", "it has no layer with weights")
    quantized = mapped = 0
    for layer in network.weighted:
        choice = design[layer.name]
        plain = Choice(weight_bits=choice.weight_bits)
        quantized += map_layer(layer, plain, chip).crossbars
        mapped += map_layer(layer, choice, chip).crossbars
    return Compression(dense / mapped, quantized / mapped, dense / quantized)
