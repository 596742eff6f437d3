"""From a run file to the objects of a run: data, network, chip, space, budget."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

from torch import nn

from epim_nas.data.base import Data
from epim_nas.data.registry import load_data
from epim_nas.epitome.design import Design
from epim_nas.epitome.quantization import Quantization, QuantizationRule
from epim_nas.errors import InputError
from epim_nas.hardware import (
    Chip,
    CostModel,
    CostTable,
    NetworkCost,
    compression,
    dense_crossbars,
    load_chip,
)
from epim_nas.models.registry import build_model
from epim_nas.network.spec import Network
from epim_nas.network.trace import trace
from epim_nas.pipeline.config import RunConfig
from epim_nas.space.config import SpaceConfig, load_space_config
from epim_nas.space.resolve import resolve_space
from epim_nas.space.space import SearchSpace
from epim_nas.study.knapsack import least_weight
from epim_nas.study.problem import SearchProblem
from epim_nas.supernet.evaluation import resolve_device
from epim_nas.supernet.sensitivity import Table

log = logging.getLogger(__name__)

ADDITIVE = {
    "latency_ns": "sequential_latency_ns",
    "sequential_latency_ns": "sequential_latency_ns",
    "energy_nj": "energy_nj",
    "crossbars": "crossbars",
    "area_um2": "area_um2",
}
"""Objective -> the additive metric of the cost table that stands for it in the exact solver."""


@dataclass(frozen=True)
class Setup:
    """The objects of a run.

    Attributes:
        config: the run file.
        data: the images.
        model: the network, with random weights until the baseline is loaded.
        network: its geometry.
        chip: the chip.
        cost: the cost model of the network on the chip.
    """

    config: RunConfig
    data: Data
    model: nn.Module
    network: Network
    chip: Chip
    cost: CostModel

    @classmethod
    def load(cls, config: RunConfig) -> Setup:
        """Load what a run file names."""
        resolve_device(config.device)  # a wrong device should not show after the baseline
        chip = load_run_chip(config)
        data = load_data(config.data, config.seed)
        channels = data.input_shape[0]
        model = build_model(
            config.model.name,
            in_channels=channels,
            num_classes=data.num_classes,
            args=config.model.args,
        )
        network = trace(model, data.input_shape, config.model.name)
        return cls(config, data, model, network, chip, CostModel(network, chip))

    def build_space(self) -> SearchSpace:
        """The search space, its choices ordered by crossbars, dominated ones dropped."""
        space_config = self.config.space
        if not isinstance(space_config, SpaceConfig):
            space_config = load_space_config(space_config, "space")
        return resolve_space(space_config, self.cost).space

    @cached_property
    def quantization(self) -> Quantization | QuantizationRule:
        """How weights and inputs are quantized; by crossbar, a rule that knows the chip."""
        return self.config.quantization.on(self.chip)

    @cached_property
    def dense_crossbars(self) -> int:
        """Crossbars of the dense network with 32-bit weights."""
        return dense_crossbars(self.network, self.chip)

    def dense_cost(self, weight_bits: int, activation_bits: int = 9) -> NetworkCost:
        """Cost of the dense network (MNSIM's 9-bit activations by default)."""
        return self.cost.evaluate(weight_bits=weight_bits, activation_bits=activation_bits)

    def budget(self, space: SearchSpace, table: CostTable) -> int:
        """The crossbar budget.

        Raises:
            InputError: no design of the space is that small.
        """
        wanted = self.config.budget
        if wanted.crossbars is not None:
            field, budget = "budget.crossbars", wanted.crossbars
        else:
            assert wanted.compression is not None
            field, budget = "budget.compression", int(self.dense_crossbars / wanted.compression)
        least = least_weight(space.group_sums(table.by_layer("crossbars")))
        if budget < least:
            ratio = self.dense_crossbars / least
            raise InputError(
                field,
                f"asks for at most {budget} crossbars, but the smallest design of the search space "
                f"{space.name} has {least} ({ratio:.2f}x less than the dense network's "
                f"{self.dense_crossbars})",
                f"at least {least} crossbars, or a compression of at most {ratio:.2f}",
                "Raise the budget, or add smaller epitomes or fewer bits to the space.",
            )
        return budget

    def problem(
        self, space: SearchSpace, table: CostTable, sensitivity: Table, budget: int
    ) -> SearchProblem:
        """The additive search problem."""
        return SearchProblem(
            space=space,
            crossbars=space.group_sums(table.by_layer("crossbars")),
            sensitivity=space.group_sums(sensitivity),
            costs={
                objective: space.group_sums(table.by_layer(ADDITIVE[objective]))
                for objective in self.config.objectives
                if objective in ADDITIVE
            },
            budget=budget,
        )

    def metrics(self, design: Design) -> dict[str, float]:
        """Cost totals of a design and its compression, split into shape and bits."""
        cost = self.cost.evaluate(design)
        ratio = compression(self.network, self.chip, design)
        return {
            **{name: float(value) for name, value in asdict(cost.totals).items()},
            "compression": ratio.total,
            "shape_compression": ratio.shape,
            "bits_compression": ratio.bits,
        }


def load_run_chip(config: RunConfig) -> Chip:
    """The chip of a run file.

    Raises:
        InputError: unknown chip or a wrong value in it.
    """
    overrides = [f"{key}={json.dumps(value)}" for key, value in _flat(config.hardware.set)]
    return load_chip(config.hardware.chip, overrides, field="hardware.chip", option="hardware.set")


def _flat(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys of possibly nested settings: a group given in part keeps its other keys."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
