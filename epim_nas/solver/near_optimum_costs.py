"""Additive costs that stand for energy and latency near their least values.

The costs that are fitted to whole designs err most there. What proves a lower bound knows better:
for given SRAMs the energy is a sum, and the bound of the latency is a mix of paths.
"""

from __future__ import annotations

from collections.abc import Container

from epim_nas.solver.knapsack import FloatArray
from epim_nas.solver.lower_bounds import Bounds
from epim_nas.solver.problem import PIPELINED, StandIn
from epim_nas.space.space import Row

ENERGY = "energy_nj"
_SHARE = 0.05
"""Share of a solution's longest path in the stand-in of the latency that follows it."""


def find_standins(bounds: Bounds, metrics: Container[str], count: int) -> list[StandIn]:
    """Stand-ins for some metrics; what the others would need is not computed.

    ``energy_nj`` is exact for given SRAMs of the buffers, and infinite for choices that need larger
    ones. ``latency_ns`` is the mix of paths by which the latency's bound is proven (its dual).
    Shares of choices have that latency, whole choices a longer path somewhere: after each solution
    a little of its longest path joins the mix, so that the next one is short there as well.

    Args:
        bounds: the bounds of the space's designs within the budget.
        metrics: ``energy_nj``, ``latency_ns`` or both.
        count: how many SRAMs at most, those of least energy first.

    Raises:
        InputError: the SRAM tables have the buffers of no design.
        Unreachable: likewise of none within the budget.
    """
    mix = bounds.path_mix if PIPELINED in metrics else None
    if ENERGY not in metrics:
        return [] if mix is None else [_standin(bounds, {}, mix)]
    return [_standin(bounds, {ENERGY: case.scores}, mix) for case in bounds.cases[:count]]


def _standin(
    bounds: Bounds, energy: dict[str, list[FloatArray]], mix: list[FloatArray] | None
) -> StandIn:
    if mix is None:
        return StandIn(energy)

    def followed(row: Row) -> StandIn:
        mixed = [
            (1 - _SHARE) * old + _SHARE * new
            for old, new in zip(mix, bounds.longest_path(row), strict=True)
        ]
        return _standin(bounds, energy, mixed)

    return StandIn(energy | {PIPELINED: mix}, followed)
