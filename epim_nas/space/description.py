"""What a search space holds: its size, its layers, and how small and large its designs are."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from epim_nas.errors import InputError
from epim_nas.hardware import CostModel, dense_crossbars
from epim_nas.space.config import SpaceConfig
from epim_nas.space.resolve import resolve_space

SCHEMA = "epim-nas/space-description@1"


@dataclass(frozen=True)
class LayerDescription:
    """What one layer may become.

    Attributes:
        name: name of the layer.
        weight_shape: (O, I/groups, Kh, Kw).
        tied_with: the other layers that share its decision.
        offered: choices before dominated ones are dropped.
        choices: choices that are searched.
        fewest: crossbars of the smallest of them.
        most: crossbars of the largest.
    """

    name: str
    weight_shape: tuple[int, int, int, int]
    tied_with: tuple[str, ...]
    offered: int
    choices: int
    fewest: int
    most: int


@dataclass(frozen=True)
class SpaceDescription:
    """A search space of a network on a chip.

    Attributes:
        space: name of the space.
        network: name of the network.
        input_shape: (channels, height, width) of the network's input.
        hardware: name of the chip.
        log10_offered: decimal logarithm of the number of designs before dropping.
        log10_designs: of those that are searched.
        decisions: independent decisions: layers, those that are tied counted once.
        dropped: choices dropped because another one is never worse.
        fewest: crossbars of the smallest design.
        most: crossbars of the largest design.
        dense: crossbars of the dense network with 32-bit weights.
        layers: the layers with a weight, in order.
    """

    space: str
    network: str
    input_shape: tuple[int, int, int]
    hardware: str
    log10_offered: float
    log10_designs: float
    decisions: int
    dropped: int
    fewest: int
    most: int
    dense: int
    layers: tuple[LayerDescription, ...]

    @property
    def compression(self) -> tuple[float, float]:
        """Dense 32-bit crossbars over those of the largest, and of the smallest design."""
        return self.dense / self.most, self.dense / self.fewest

    def to_dict(self) -> dict[str, Any]:
        """The description as plain data (``epim-nas/space-description@1``)."""
        least, greatest = self.compression
        return {
            "schema": SCHEMA,
            "space": self.space,
            "network": self.network,
            "input_shape": self.input_shape,
            "hardware": self.hardware,
            "log10_designs": {"offered": self.log10_offered, "searched": self.log10_designs},
            "decisions": self.decisions,
            "dropped_choices": self.dropped,
            "crossbars": {"fewest": self.fewest, "most": self.most, "dense_32_bit": self.dense},
            "compression": {"least": least, "greatest": greatest},
            "layers": [asdict(layer) for layer in self.layers],
        }


def describe_space(config: SpaceConfig, cost: CostModel) -> SpaceDescription:
    """Describe the search space of the cost model's network on its chip.

    Raises:
        InputError: the space does not fit the network or the chip, or no layer has a weight.
    """
    network, chip = cost.network, cost.chip
    if not network.weighted:
        raise InputError(f"network {network.name}", "it has no layer with weights")
    resolved = resolve_space(config, cost)
    space = resolved.space
    crossbars = cost.table(space.layer_choices).by_layer("crossbars")
    group_of = {layer: group for group in space.groups for layer in group.layers}
    layers = [
        LayerDescription(
            name=layer.name,
            weight_shape=layer.weight_shape,
            tied_with=tuple(n for n in group_of[layer.name].layers if n != layer.name),
            offered=len(group_of[layer.name]) + resolved.dropped_by_layer[layer.name],
            choices=len(group_of[layer.name]),
            fewest=int(crossbars[layer.name].min()),
            most=int(crossbars[layer.name].max()),
        )
        for layer in network.weighted
    ]
    sums = space.group_sums(crossbars)
    return SpaceDescription(
        space=space.name,
        network=network.name,
        input_shape=network.input_shape,
        hardware=chip.name,
        log10_offered=resolved.offered.log10_size,
        log10_designs=space.log10_size,
        decisions=len(space),
        dropped=space.dropped,
        fewest=sum(int(total.min()) for total in sums),
        most=sum(int(total.max()) for total in sums),
        dense=dense_crossbars(network, chip),
        layers=tuple(layers),
    )


def powers_of_ten(log10: float) -> str:
    """A number of designs: in full up to a million, else as a power of ten."""
    return f"{round(10**log10):,}" if log10 < 6 else f"10^{math.floor(10 * log10) / 10:.1f}"
