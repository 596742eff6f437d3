"""How far sums of the additive cost table are from the costs of whole designs.

    OMP_NUM_THREADS=1 python benchmarks/additive_table.py [--designs 500]

The table costs a layer with what it does not know of the others (hops, sizes of buffers) taken from
a reference design. Compared are uniformly random designs: sums of the table with the dense network
as the reference, with one of five random designs, and the sums that a search solves with, fitted to
whole designs (docs/search.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np
from rich.console import Console
from rich.table import Table

from epim_nas import CostModel, SearchSpace, load_chip, trace
from epim_nas.models.registry import build_model
from epim_nas.pipeline.context import Setup
from epim_nas.solver.cost_fit import calibrated
from epim_nas.solver.design_costs import Costs
from epim_nas.solver.exact import totals as summed
from epim_nas.solver.metrics import METRICS
from epim_nas.solver.problem import SearchProblem
from epim_nas.space import load_space_config

CASES = (
    ("resnet20", (3, 32, 32), 10, "xbar_64"),
    ("resnet18", (3, 224, 224), 1000, "epim_256"),
    ("resnet50", (3, 224, 224), 1000, "epim_256"),
    ("torchvision:mobilenet_v2", (3, 224, 224), 1000, "epim_256"),
    ("torchvision:mobilenet_v2", (3, 224, 224), 1000, "xbar_64"),
)
COSTS = ("energy_nj", "area_um2", "sequential_latency_ns", "latency_ns")
REFERENCES = 5


def main() -> None:
    """Print the errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--designs", type=int, default=500)
    count = parser.parse_args().designs
    shown = Table(title=f"error in %, {count} random designs of `narrow`: median / largest")
    for column in ("network", "chip", "cost", "dense", "random", "fitted"):
        shown.add_column(column)
    for name, shape, classes, chip_name in CASES:
        chip = load_chip(chip_name, ["mesh.size=[150,150]"])  # room for the dense network
        model = build_model(name, in_channels=shape[0], num_classes=classes)
        network = trace(model, shape, name=name)
        space = SearchSpace.build(load_space_config("narrow"), network, chip)
        setup = SimpleNamespace(
            cost=CostModel(network, chip), chip=chip, network=network, dense_crossbars=1
        )
        costs = Costs.of(cast(Setup, setup), space)
        scores = {
            cost: space.group_sums(costs.table.by_layer(METRICS[cost].additive[0]))
            for cost in ("crossbars", *COSTS)
        }
        rng = np.random.default_rng(0)
        rows = np.stack([rng.integers(len(group), size=count) for group in space.groups], axis=1)
        real = costs(rows)
        zeros = [np.zeros(len(group)) for group in space.groups]
        limits = {"crossbars": float(np.median(real["crossbars"]))}
        constants = {
            cost: float(costs.table.constant[METRICS[cost].additive[0]]) for cost in scores
        }
        problem = SearchProblem(
            space, zeros, scores, limits, ("accuracy", *COSTS), constants, costs
        )
        fitted = calibrated(problem, costs, 0)
        tables = [
            setup.cost.table(space.layer_choices, space.design(row)).totals(rows[:, costs.groups])
            for row in rows[:REFERENCES]
        ]
        dense = costs.table.totals(rows[:, costs.groups])
        for cost in COSTS:
            metric = METRICS[cost].additive[0]
            fit = summed(fitted.costs[cost], rows) + fitted.constants[cost]
            shown.add_row(
                name.split(":")[-1],
                chip_name,
                cost,
                _errors([dense[metric]], real[cost]),
                _errors([table[metric] for table in tables], real[cost]),
                _errors([fit], real[cost]),
            )
    Console(width=100).print(shown)


def _errors(sums: Sequence[np.ndarray], real: np.ndarray) -> str:
    """Median and largest relative error of sums."""
    errors = 100 * np.abs(np.stack(sums) / real - 1)
    return f"{np.median(errors):.1f} / {errors.max():.1f}"


if __name__ == "__main__":
    main()
