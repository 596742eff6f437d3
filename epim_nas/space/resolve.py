"""The search space of a network on a chip: what is offered, and what is left of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from epim_nas.hardware import CostModel
from epim_nas.space.config import SpaceConfig
from epim_nas.space.space import SearchSpace

_METRICS = ("crossbars", "sequential_latency_ns", "energy_nj", "area_um2")
"""Metrics in all of which a choice has to be beaten to be dropped; the first orders choices."""


@dataclass(frozen=True)
class ResolvedSpace:
    """A search space before and after dominated choices are dropped.

    Attributes:
        offered: all choices that the file gives the layers.
        space: those that are searched, in order of their crossbars.
    """

    offered: SearchSpace
    space: SearchSpace

    @property
    def dropped_by_layer(self) -> dict[str, int]:
        """Layer -> choices that were dropped; tied layers drop the same ones."""
        return {
            layer: len(before) - len(after)
            for before, after in zip(self.offered.groups, self.space.groups, strict=True)
            for layer in before.layers
        }


def resolve_space(
    config: SpaceConfig, cost: CostModel, also: Collection[str] = ()
) -> ResolvedSpace:
    """The search space of the cost model's network on its chip.

    Args:
        config: the space.
        cost: the cost model.
        also: additive metrics in which a choice has to be beaten as well to be dropped.

    Raises:
        InputError: the space does not fit the network or the chip.
    """
    offered = SearchSpace.build(config, cost.network, cost.chip)
    table = cost.table(offered.layer_choices)
    if config.drop_dominated:
        names = dict.fromkeys((*_METRICS, *also))
        costs = {name: table.by_layer(name) for name in names}
        return ResolvedSpace(offered, offered.without_dominated(costs))
    crossbars = offered.group_sums(table.by_layer("crossbars"))
    order = [list(column.argsort(kind="stable")) for column in crossbars]
    return ResolvedSpace(offered, offered.arranged(order))
