"""ResNets for ImageNet on a chip without images: a search problem by modelled costs alone.

There are no trained networks of that size here: the sensitivity is made up, as an error of each
layer's weights (from its size and bits) times a random importance of the layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna

from epim_nas import CostModel, SearchSpace, trace
from epim_nas.epitome.design import Choice
from epim_nas.hardware import load_chip
from epim_nas.models.registry import build_model
from epim_nas.network.spec import LayerSpec
from epim_nas.pipeline.config import RunConfig
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.progress import Reporter
from epim_nas.solver.design_costs import Costs
from epim_nas.solver.exact_front import exact_seeds
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.formulation import formulate
from epim_nas.solver.metrics import maximised, metric_of
from epim_nas.solver.problem import SearchProblem, StandIn
from epim_nas.study.history import distributions, params_of, row_of
from epim_nas.study.strategies import STRATEGIES, Options
from epim_nas.supernet.descent import Descent, additive_loss, gradient_rows

RELATIVE_ERROR = {2: 0.22, 3: 0.065, 5: 0.0085, 7: 0.0008, 9: 0.0001, 32: 0.0}
"""Relative squared error of weights by bits, measured on trained ResNet-20 weights (7: between)."""


@dataclass(frozen=True)
class Result:
    """What a strategy found.

    Attributes:
        values: metric -> (trials,) of the scored designs.
        feasible: (trials,) whether each keeps the limits.
        rows: the designs.
        seconds: for seeds and proposals.
    """

    values: dict[str, npt.NDArray[np.float64]]
    feasible: npt.NDArray[np.bool_]
    rows: list[tuple[int, ...]]
    seconds: float

    def best(self, metric: str, within: int | None = None) -> float:
        """Least value of a feasible design among the first ones."""
        values = np.where(self.feasible, self.values[metric], np.inf)[:within]
        return float(values.min(initial=np.inf))

    def first_below(self, metric: str, value: float) -> int | None:
        """How many designs were scored when one was at most as large as a value."""
        reached = self.feasible & (self.values[metric] <= value)
        return int(np.argmax(reached)) + 1 if reached.any() else None


class Subject:
    """A network for images of 224x224 in a search space on a chip.

    Args:
        network: ``resnet50`` or ``resnet101``.
        space: a preset's name, or a search space as plain data.
        chip: a preset's name.
    """

    def __init__(
        self,
        network: str = "resnet50",
        space: str | Mapping[str, Any] = "wide",
        chip: str = "epim_256",
    ) -> None:
        config = RunConfig.model_validate(
            {
                "schema": "epim-nas/run@1",
                "name": "modelled",
                "model": {"name": network},
                "data": {"name": "imagefolder", "root": "none"},
                "hardware": {"chip": chip},
                "space": space,
                "budget": {"crossbars": 1},
            }
        )
        model = build_model(network, in_channels=3, num_classes=1000)
        traced, loaded = trace(model, (3, 224, 224), network), load_chip(chip)
        # No images: what is not needed of a set-up is left out.
        folder, cost = RunFolder(Path("none")), CostModel(traced, loaded)
        none: Any = None
        self.setup = Run(config, folder, Reporter(), none, model, traced, loaded, cost)
        self.space = self.setup.build_space()
        self.costs = Costs.of(self.setup.cost, self.space)
        self._standins: dict[tuple[object, ...], Callable[[], Sequence[StandIn]]] = {}

    @property
    def crossbars(self) -> list[npt.NDArray[Any]]:
        """Per group the crossbars of each choice."""
        return self.space.group_sums(self.costs.table.by_layer("crossbars"))

    def problem(
        self, crossbars: int, objectives: Sequence[str], seed: int, space: SearchSpace | None = None
    ) -> SearchProblem:
        """The problem with made-up sensitivities."""
        config = self.setup.config.model_copy(
            update={
                "budget": self.setup.config.budget.model_copy(update={"crossbars": crossbars}),
                "objectives": list(objectives),
                "seed": seed,
            }
        )
        setup = replace(self.setup, config=config)
        costs = self.costs if space is None else Costs.of(setup.cost, space)
        problem = formulate(setup, space or self.space, costs)
        if problem.find_standins is not None and space is None:
            # They depend on the budget and on what is to fall: all seeds share them.
            key = (crossbars, problem.falling)
            find = self._standins.setdefault(key, cache(problem.find_standins))
            problem = replace(problem, find_standins=find)
        importance = np.random.default_rng([seed, 50]).lognormal(0.0, 1.0, 200)
        table = {
            layer.name: np.array([error(choice, layer) for choice in choices]) * importance[n]
            for n, layer in enumerate(setup.network.weighted)
            for choices in [(space or self.space).layer_choices[layer.name]]
        }
        return replace(problem, sensitivity=problem.space.group_sums(table))


def error(choice: Choice, layer: LayerSpec) -> float:
    """Expected relative squared error of a weight: what is not stored, and rounding of the rest."""
    stored = 1.0
    if choice.shape is not None:
        stored = choice.shape.size / float(np.prod(layer.weight_shape))
    return (1.0 - stored) + RELATIVE_ERROR[choice.weight_bits or 9]


def explore(
    problem: SearchProblem, strategy: str, trials: int, seed: int, options: Options
) -> Result:
    """Score designs by the problem's own scores, as a search would by measurements."""
    started = time.perf_counter()
    first = STRATEGIES[strategy].first
    rows: list[tuple[int, ...]] = []
    if first == "exact":
        rows = [found.row for found in exact_seeds(FeasibleSolver(problem), min(12, trials))]
    elif first == "gradient":
        rows = gradient_rows(
            FeasibleSolver(problem), 12, additive_loss(problem), Descent(steps=400), seed
        )
    study = optuna.create_study(
        directions=["maximize" if more else "minimize" for more in maximised(problem.objectives)],
        sampler=STRATEGIES[strategy].make(FeasibleSolver(problem), seed, options),
    )
    for row in rows:
        study.enqueue_trial(params_of(row, problem))
    spent = time.perf_counter() - started
    scored: list[dict[str, float]] = []
    explored: list[tuple[int, ...]] = []
    feasible: list[bool] = []
    count = trials if STRATEGIES[strategy].proposes else min(trials, len(rows))
    for _ in range(count):
        started = time.perf_counter()
        trial = study.ask(distributions(problem))
        spent += time.perf_counter() - started
        row = row_of(trial.params, problem)
        explored.append(row)
        metrics = measured(problem, row)
        excess = problem.violations(row)
        for name, value in excess.items():
            trial.set_constraint(name, value)
        trial.set_user_attr("metrics", metrics)
        started = time.perf_counter()
        study.tell(trial, [metrics[metric_of(name)] for name in problem.objectives])
        spent += time.perf_counter() - started
        scored.append(metrics)
        feasible.append(max(excess.values()) <= 0)
    values = {name: np.array([metrics[name] for metrics in scored]) for name in scored[0]}
    return Result(values, np.array(feasible), explored, spent)


def measured(problem: SearchProblem, row: tuple[int, ...]) -> dict[str, float]:
    """All metrics of a design; its sensitivity stands for the loss."""
    assert problem.model is not None
    totals = {n: float(v[0]) for n, v in problem.model(np.array([row])).items()}
    loss = problem.total(problem.sensitivity, row)
    return {**totals, "sensitivity": loss, "loss": loss}
