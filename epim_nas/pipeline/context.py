"""From a run file to the objects of a run: data, network, chip, space, budget."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property

from torch import nn

from epim_nas.data.base import Data
from epim_nas.data.registry import load_data
from epim_nas.epitome.design import FLOAT_BITS, Design
from epim_nas.epitome.quantization import Quantization, QuantizationRule
from epim_nas.hardware import (
    Chip,
    CostModel,
    NetworkCost,
    compression,
    dense_crossbars,
    load_chip,
)
from epim_nas.hardware.table import stored_bits
from epim_nas.models.prepare import check_outputs, initialise
from epim_nas.models.registry import build_model
from epim_nas.network.spec import Network
from epim_nas.network.trace import trace
from epim_nas.pipeline.config import RunConfig
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.progress import Advance, Reporter
from epim_nas.solver.metrics import METRICS, metric_of, own_costs, own_metrics
from epim_nas.space.config import SpaceConfig, load_space_config
from epim_nas.space.resolve import resolve_space
from epim_nas.space.space import SearchSpace
from epim_nas.supernet.evaluation import resolve_device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """The objects of a run, which every stage is given.

    Attributes:
        config: the run file.
        folder: where results are kept.
        reporter: shows the progress.
        data: the images.
        model: the network as it is built: with random weights, or those that it comes with. The
            trained one is what the first stage returns.
        network: its geometry.
        chip: the chip.
        cost: the cost model of the network on the chip.
    """

    config: RunConfig
    folder: RunFolder
    reporter: Reporter
    data: Data
    model: nn.Module
    network: Network
    chip: Chip
    cost: CostModel

    @classmethod
    def load(cls, config: RunConfig, folder: RunFolder, reporter: Reporter | None = None) -> Run:
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
        initialise(model, config.model.name, data.input_shape)
        check_outputs(model, config.model.name, data.input_shape, data.num_classes)
        network = trace(model, data.input_shape, config.model.name)
        cost = CostModel(network, chip)
        return cls(config, folder, reporter or Reporter(), data, model, network, chip, cost)

    @contextmanager
    def stage(self, name: str, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Show the progress of a stage, and add its time to the folder's record.

        Args:
            name: of the stage in the record.
            title: what is shown.
            total: steps in all.
            done: steps that were done before.
        """
        with self.folder.timed(name), self.reporter.stage(title, total, done) as advance:
            yield advance

    def build_space(self) -> SearchSpace:
        """The search space, its choices ordered by crossbars, dominated ones dropped."""
        space_config = self.config.space
        if not isinstance(space_config, SpaceConfig):
            space_config = load_space_config(space_config, "space")
        return resolve_space(space_config, self.cost, self._judged_by).space

    @property
    def _judged_by(self) -> list[str]:
        """Additive metrics that the run bounds or optimises: no choice may be lost in them."""
        budget = self.config.budget.model_dump(exclude_none=True)
        names = [*budget, *(metric_of(objective) for objective in self.config.objectives)]
        return [part for name in names if name in METRICS for part in METRICS[name].additive]

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

    def dense_totals(self) -> dict[str, float]:
        """Cost totals of the dense network with 32-bit weights."""
        totals = self.dense_cost(FLOAT_BITS).totals
        weights = sum(math.prod(layer.weight_shape) for layer in self.network.weighted)
        found = self._with_own(
            Design.uniform(self.network, None, None),
            {**asdict(totals), "weight_bits": float(FLOAT_BITS * weights)},
        )
        for metric in own_metrics(measured=False):
            metric.of_dense(found[metric.name])
        return found

    def _with_own(self, design: Design, totals: Mapping[str, float]) -> dict[str, float]:
        """Totals with the metrics that the user registered, and what follows from both."""
        own = own_costs(own_metrics(measured=False), design, self.network, totals)
        found = {**totals, **own}
        return {**found, "edp_nj_ns": found["energy_nj"] * found["latency_ns"]}

    def metrics(self, design: Design) -> dict[str, float]:
        """Cost totals of a design and its compression, split into shape and bits."""
        totals = self.cost.evaluate_many([design])
        ratio = compression(self.network, self.chip, design)
        stored = (
            stored_bits(design[layer.name], layer.weight_shape) for layer in self.network.weighted
        )
        costs = {name: float(values[0]) for name, values in totals.items()}
        return {
            **self._with_own(design, {**costs, "weight_bits": float(sum(stored))}),
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
