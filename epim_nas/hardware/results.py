"""What the cost model returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from epim_nas.hardware.layer_pipeline import Timeline
from epim_nas.hardware.mapping import LayerMapping
from epim_nas.hardware.timing import Hops

COST_SCHEMA = "epim-nas/cost@1"
MODEL_VERSION = "3"
"""Version of the cost model's equations, stamped into every result.

2: rounds on disjoint crossbars are parallel, rounds are charged by their own rows and columns,
replicas are written, and input buffers hold every channel that a row group sees.
3: a last, partial slab of a wrapped layer has as many replicas as channels.
"""


@dataclass(frozen=True)
class CostTotals:
    """Totals of a network.

    Attributes:
        crossbars: crossbars; a positive/negative pair counts as one.
        tiles: tiles.
        latency_ns: pipelined latency of one inference.
        sequential_latency_ns: latency with one layer after the other.
        energy_nj: energy of one inference.
        area_um2: area of the tiles used.
        utilization: cells that hold a weight / cells (0..1).
        rounds: activation rounds of one output position, summed over layers.
    """

    crossbars: int
    tiles: int
    latency_ns: float
    sequential_latency_ns: float
    energy_nj: float
    area_um2: float
    utilization: float
    rounds: int


TOTALS = tuple(total.name for total in fields(CostTotals))
"""Names of the totals, in order."""


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer.

    Attributes:
        name: name of the layer.
        type: ``conv``, ``fc``, ``pooling`` or ``element_sum``.
        crossbars: crossbars; a positive/negative pair counts as one.
        tiles: tiles.
        rounds: activation rounds of one output position.
        latency_ns: component -> busy time over all positions, without waiting. As in MNSIM 2.0,
            ``inter_tile`` (``tile_merge`` + ``tile_transfer``) includes the read of the output
            buffer that is also in ``buffer``; ``sequential_latency_ns`` counts it once.
        energy_nj: component -> energy, with ``total``.
        power_w: component -> power while it works, with ``total``.
        area_um2: component -> area, with ``total``.
        counts: event -> number of events of one inference, see ``timing.COUNTS``.
        utilization: cells that hold a weight / cells (0..1).
        sequential_latency_ns: time of all positions, one after the other.
        mapping: where the weight lies.
        hops: distances on the tile mesh.
        timeline: begin and end in the pipelined network.
    """

    name: str
    type: str
    crossbars: int
    tiles: int
    rounds: int
    latency_ns: dict[str, float]
    energy_nj: dict[str, float]
    power_w: dict[str, float]
    area_um2: dict[str, float]
    counts: dict[str, float]
    utilization: float
    sequential_latency_ns: float
    mapping: LayerMapping
    hops: Hops
    timeline: Timeline


@dataclass(frozen=True)
class Shared:
    """Parts of the chip that belong to no layer.

    MNSIM 2.0 adds the accumulator to the sub-totals of its components but not to its totals;
    :attr:`CostTotals.area_um2` and ``energy_nj`` are without it as well.

    Attributes:
        pe_input_kb: input buffer that the most demanding layer needs in every PE.
        tile_output_kb: output buffer that the most demanding layer needs in every tile.
        accumulator_kb: buffer of the global accumulator that ``element_sum`` layers use.
        accumulator_adders: adders of the global accumulator.
        accumulator_adder_bits: width of these adders.
        area_um2: ``adder`` and ``buf`` of the accumulator.
        power_w: ``adder``, ``buf_r`` and ``buf_w`` of the accumulator.
    """

    pe_input_kb: float
    tile_output_kb: float
    accumulator_kb: float
    accumulator_adders: int
    accumulator_adder_bits: int
    area_um2: dict[str, float]
    power_w: dict[str, float]


@dataclass(frozen=True)
class NetworkCost:
    """Cost of one design of a network on a chip.

    Attributes:
        network: name of the network.
        hardware: name of the chip.
        totals: totals.
        shared: buffers and the global accumulator.
        make_layers: makes :attr:`layers`.
    """

    network: str
    hardware: str
    totals: CostTotals
    shared: Shared
    make_layers: Callable[[], tuple[LayerCost, ...]] = field(repr=False, compare=False)

    @cached_property
    def layers(self) -> tuple[LayerCost, ...]:
        """One cost per layer, in order; made when they are asked for, as a search rarely does."""
        return self.make_layers()

    def to_dict(self) -> dict[str, Any]:
        """The content of ``epim-nas cost --json``."""
        return {
            "schema": COST_SCHEMA,
            "model_version": MODEL_VERSION,
            "network": self.network,
            "hardware": self.hardware,
            "totals": asdict(self.totals),
            "layers": [
                {
                    "name": layer.name,
                    "type": layer.type,
                    "crossbars": layer.crossbars,
                    "tiles": layer.tiles,
                    "rounds": layer.rounds,
                    "utilization": layer.utilization,
                    "sequential_latency_ns": layer.sequential_latency_ns,
                    "latency_ns": layer.latency_ns,
                    "energy_nj": layer.energy_nj,
                    "power_w": layer.power_w,
                    "area_um2": layer.area_um2,
                    "counts": layer.counts,
                }
                for layer in self.layers
            ],
        }
