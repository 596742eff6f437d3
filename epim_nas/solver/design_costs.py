"""Costs of whole designs, and of a run's choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from epim_nas.epitome.design import Choice
from epim_nas.hardware import BatchCostModel, CostModel, CostTable, dense_crossbars
from epim_nas.hardware.mapping import map_layer
from epim_nas.network.spec import Network
from epim_nas.solver.exact import totals as summed
from epim_nas.solver.knapsack import FloatArray, IntArray
from epim_nas.solver.metrics import Metric, own_costs, own_metrics
from epim_nas.space.space import SearchSpace


@dataclass(frozen=True)
class Costs:
    """Costs of whole designs by rows of a search space.

    Attributes:
        model: the cost model of the space's choices.
        table: their additive costs, for what the model does not total.
        groups: (layers,) which group of a row decides each layer of the model.
        dense_crossbars: crossbars of the dense network with 32-bit weights.
        quantized: per group, crossbars of the dense layers with the bits of each choice.
        own: metrics that the user registered and that are not measured.
        space: the space, for those.
        network: its network, likewise.
    """

    model: BatchCostModel
    table: CostTable
    groups: npt.NDArray[np.int64]
    dense_crossbars: int
    quantized: list[IntArray]
    own: tuple[Metric, ...]
    space: SearchSpace
    network: Network

    @classmethod
    def of(cls, cost: CostModel, space: SearchSpace) -> Costs:
        """The costs of a space's designs, of the cost model's network on its chip."""
        choices = space.layer_choices
        model, table = cost.batch(choices), cost.table(choices)
        assert model.names == table.names
        owner = {
            layer: number for number, group in enumerate(space.groups) for layer in group.layers
        }
        groups = np.array([owner[name] for name in model.names])
        quantized = {
            layer.name: np.array([
                map_layer(layer, Choice(weight_bits=choice.weight_bits), cost.chip).crossbars
                for choice in choices[layer.name]
            ])
            for layer in cost.network.weighted
        }  # fmt: skip
        return cls(
            model, table, groups, dense_crossbars(cost.network, cost.chip),
            space.group_sums(quantized),
            tuple(own_metrics(measured=False)), space, cost.network,
        )  # fmt: skip

    def __call__(self, rows: IntArray) -> dict[str, FloatArray]:
        """(N, groups) rows -> metric -> (N,) values."""
        by_layer = np.asarray(rows)[:, self.groups]
        totals = dict(self.model.totals(by_layer))
        totals["weight_bits"] = self.table.totals(by_layer)["weight_bits"].astype(np.float64)
        if self.own:
            totals |= self._own(rows, totals)
        totals["edp_nj_ns"] = totals["energy_nj"] * totals["latency_ns"]
        quantized = summed(self.quantized, rows)
        totals["compression"] = self.dense_crossbars / totals["crossbars"]
        totals["shape_compression"] = quantized / totals["crossbars"]
        totals["bits_compression"] = self.dense_crossbars / quantized
        return totals

    def _own(self, rows: IntArray, totals: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Metric of the user -> (N,) values."""
        found = [
            own_costs(
                self.own,
                self.space.design(row),
                self.network,
                {name: float(values[index]) for name, values in totals.items()},
            )
            for index, row in enumerate(rows)
        ]
        return {metric.name: np.array([f[metric.name] for f in found]) for metric in self.own}


def added_up(columns: Sequence[Sequence[npt.NDArray[np.generic]]]) -> list[FloatArray]:
    """Per group the sum of additive costs; of several, each relative to its mean total."""
    sizes = [
        sum(float(np.mean(np.asarray(score, dtype=float))) for score in column) or 1.0
        for column in columns
    ]
    if len(columns) == 1:
        sizes = [1.0]
    return [
        np.sum([np.asarray(s, dtype=float) / size for s, size in zip(group, sizes, strict=True)], 0)
        for group in zip(*columns, strict=True)
    ]
