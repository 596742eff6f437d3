"""What each part of the search is worth: the default with one part removed at a time, at equal N.

Three trained networks (ResNet-20, depthwise convolutions, wide layers) and three kinds of accuracy:

- ``additive``: the loss is the sensitivity table's sum, so only modelled costs are uncertain;
- ``wrong table``: the loss is a sum too, of a table that differs from the one that the search has
  by a random factor for each layer and choice, so that measuring can teach something;
- ``measured``: accuracy with shared weights, on validation images that differ between seeds.

Every arm scores the same number of designs. The hypervolume is that of the front so far, relative
to the front of all arms of the same network, objectives and seed. ``held-out`` measures each front
again on test images: choosing among noisy measurements flatters an arm.

    OMP_NUM_THREADS=1 python benchmarks/search_ablation.py modelled --trials 60
    OMP_NUM_THREADS=1 python benchmarks/search_ablation.py measured
    OMP_NUM_THREADS=1 python benchmarks/search_ablation.py held-out
    python benchmarks/search_ablation.py report [--csv docs/data/search_ablation.csv]

``--images FOLDER --weights FILE`` gives the ResNet-20 other images, as in :mod:`accuracy`.

Scores are kept in the cache folder, and an interrupted study goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import optuna
import torch
from lab import Lab, Records
from rich.console import Console
from rich.table import Table
from subjects import DATA_SETS, NETWORKS, SHIPPED, Source, _cached, resnet20
from torch import nn

from epim_nas.data.base import Batch, Data
from epim_nas.models.resnet_cifar import CifarResNet
from epim_nas.pipeline.stages.supernet import train_supernet
from epim_nas.solver.design_costs import Costs
from epim_nas.solver.exact import totals
from epim_nas.solver.exact_front import _judged, exact_seeds
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.formulation import formulate, limits_of
from epim_nas.solver.metrics import maximised, metric_of
from epim_nas.solver.pareto import box_volume, non_dominated
from epim_nas.solver.problem import SearchProblem
from epim_nas.solver.ranking import expected_rank
from epim_nas.solver.sensitivity_update import Sensitivity
from epim_nas.space.moves import mutate, random_row
from epim_nas.space.space import Row
from epim_nas.study import epitome_sampler
from epim_nas.study.epitome_sampler import _REFIT_EVERY, EpitomeSampler, _gain
from epim_nas.study.evolution import EvolutionSampler
from epim_nas.study.history import distributions, params_of, row_of
from epim_nas.study.samplers import FeasibleSampler
from epim_nas.supernet.evaluation import evaluate, recalibrate_batch_norm
from epim_nas.supernet.training import TrainConfig

optuna.logging.set_verbosity(optuna.logging.ERROR)
console = Console(width=150)
Metrics = dict[str, float]
FloatArray = npt.NDArray[np.float64]

SEEDS_FIRST = 12
"""Exact designs that the default scores first (`search.seeds`)."""
_BOX = 1.1
"""Reference point of the hypervolume; 0 and 1 are the ends of the front of all arms."""


# --- The arms ---------------------------------------------------------------------------------


class Local(FeasibleSampler):
    """A few choices of a random design of the front changed at random, and repaired."""

    def propose(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, rng: np.random.Generator
    ) -> tuple[Sequence[int], str]:
        """A child of the front; uniform where there is none yet."""
        front = self._history.front
        if not front:
            return random_row(self._problem.space, rng), "random"
        parent = front[int(rng.integers(len(front)))]
        return mutate(parent, self._problem.space, rng, int(rng.integers(1, 4))), "local move"


class SolveAgain(EpitomeSampler):
    """Exact solutions of the corrected scores for random trade-offs, and nothing else."""

    def propose(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, rng: np.random.Generator
    ) -> tuple[Sequence[int], str]:
        """An exact solution; a local move where no layer can be so fast."""
        front = self._history.front
        if not front:
            return random_row(self._problem.space, rng), "random"
        self._correct()
        row = self._solved(front, self._sensitivity.drawn(rng), rng)
        if row is None:
            row = tuple(mutate(front[int(rng.integers(len(front)))], self._problem.space, rng, 1))
        return row, "solved again"


class Refitted(EpitomeSampler):
    """The exact front again, of scores that were corrected in the meantime; then local moves."""

    _queue: tuple[int, list[Row]] = (-1, [])

    def propose(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, rng: np.random.Generator
    ) -> tuple[Sequence[int], str]:
        """The first row of the front that was not proposed."""
        front = self._history.front
        if not front:
            return random_row(self._problem.space, rng), "random"
        self._correct()
        if self._queue[0] != self._fitted:
            problem = replace(self._problem, sensitivity=self._sensitivity.scores)
            count = len(self._history.proposed) + _REFIT_EVERY
            self._queue = (
                self._fitted,
                [seed.row for seed in exact_seeds(FeasibleSolver(problem), count)],
            )
        for row in self._queue[1]:
            if row not in self._history.proposed:
                return row, "front of corrected scores"
        return mutate(
            front[int(rng.integers(len(front)))], self._problem.space, rng, 1
        ), "local move"


class NoCurves(EpitomeSampler):
    """The default, its pool and the front judged by the drawn scores and costs alone."""

    def _solved(
        self, front: Sequence[Row], drawn: Sequence[FloatArray], rng: np.random.Generator
    ) -> Row | None:
        """As in the default; a local move where there is none, so that the pool is never empty."""
        parent = front[int(rng.integers(len(front)))]
        row = super()._solved(front, drawn, rng)
        return row or self._solver.repair(mutate(parent, self._problem.space, rng, 1))

    def _most_promising(
        self, rows: Sequence[Row], drawn: Sequence[FloatArray], rng: np.random.Generator
    ) -> int:
        front = self._history.front
        judged = _judged(replace(self._problem, sensitivity=list(drawn)), [*front, *rows])
        known = judged[: len(front)]
        low, span = known.min(axis=0), np.maximum(np.ptp(known, axis=0), 1e-12)
        scaled = (judged - low) / span / _BOX
        gains = [_gain(scaled[: len(front)], row) for row in scaled[len(front) :]]
        if max(gains) > 0:
            return int(np.argmax(gains))
        return int(np.argmin(scaled[len(front) :] @ rng.dirichlet(np.ones(scaled.shape[1]))))


SolvedPool = partial(NoCurves, swept=0, solutions=4, children=0)
"""Of four exact solutions for random trade-offs the one that adds most."""


class _NotDrawn(NoCurves):
    def _correct(self) -> None:
        super()._correct()
        self._sensitivity = replace(self._sensitivity, error=0.0)


NotDrawn = partial(_NotDrawn, swept=0, solutions=4, children=0)
"""The same, by the corrected scores themselves rather than a draw of them."""


class FirstOfPool(EpitomeSampler):
    """The default, without judging its pool."""

    def _most_promising(self, *_: Any) -> int:
        return 0


class AnyOfPool(EpitomeSampler):
    """The default, with a random proposal of its pool."""

    def _most_promising(self, rows: Sequence[Row], drawn: Any, rng: np.random.Generator) -> int:
        return int(rng.integers(len(rows)))


def _evolution(solver: FeasibleSolver, seed: int) -> EvolutionSampler:
    costs = [metric_of(o) for o in solver.problem.objectives if metric_of(o) != "accuracy"]
    return EvolutionSampler(solver, seed, costs[0] if costs else "sensitivity", 12, 4)


@dataclass(frozen=True)
class Arm:
    """A search.

    Attributes:
        sampler: proposes after the first designs.
        first: exact designs that are scored first, as a share of all; None for the default's.
        standins: whether exact designs may minimise stand-ins of energy and latency.
        corrected: whether the sensitivity is corrected by measured losses.
        ranked: whether the front is that of the expected rank rather than of the accuracy.
    """

    sampler: Callable[[FeasibleSolver, int], FeasibleSampler] = EpitomeSampler
    first: float | None = None
    standins: bool = True
    corrected: bool = True
    ranked: bool = True


ARMS = {
    "exact": Arm(first=1.0),
    "exact, no stand-ins": Arm(first=1.0, standins=False),
    "exact, then local": Arm(Local, ranked=False),
    "exact half, then local": Arm(Local, first=0.5, ranked=False),
    "exact, then local by rank": Arm(Local),
    "default": Arm(),
    "default, not corrected": Arm(corrected=False),
    "default, first of the pool": Arm(FirstOfPool),
    "default, any of the pool": Arm(AnyOfPool),
    "default, no stand-ins": Arm(standins=False),
    "default, no curves": Arm(NoCurves),
    "default, no curves, no children": Arm(partial(NoCurves, solutions=4, children=0)),
    "exact half, then solved pool": Arm(SolvedPool, first=0.5),
    "exact half, then solved pool, not corrected": Arm(SolvedPool, first=0.5, corrected=False),
    "exact half, then solved pool, not drawn": Arm(NotDrawn, first=0.5),
    "exact half, then refitted front": Arm(Refitted, first=0.5),
    "exact, then solve again": Arm(SolveAgain),
    "exact half, then solve again": Arm(SolveAgain, first=0.5),
    "exact half, then default": Arm(first=0.5),
    "evolution": Arm(_evolution, first=0.0),
}
FIRST_IN = (
    "exact", "default", "exact half, then solved pool", "exact half, then local",
    "exact, then local", "exact, no stand-ins", "default, no curves, no children",
)  # fmt: skip
"""Arms that are measured before the others."""


@contextmanager
def _without(arm: Arm) -> Iterator[None]:
    """The package without what an arm goes without."""

    def uncorrected(prior: Sequence[FloatArray], rows: object, losses: object) -> Sensitivity:
        return Sensitivity(list(prior), 0.1)

    with ExitStack() as stack:
        if not arm.corrected:
            stack.enter_context(patch.object(epitome_sampler, "corrected", uncorrected))
        yield


@dataclass(frozen=True)
class Trial:
    """A scored design, and the seconds from the beginning until it was asked for."""

    row: Row
    metrics: Metrics
    seconds: float


def run(
    arm: Arm, problem: SearchProblem, seed: int, count: int, measure: Callable[[Row], Metrics]
) -> list[Trial]:
    """Score designs."""
    if not arm.standins:
        problem = replace(problem, find_standins=None)
    wanted = SEEDS_FIRST if arm.first is None else round(arm.first * count)
    spent, trials = 0.0, []
    started = time.perf_counter()
    solver = FeasibleSolver(problem)
    rows = [found.row for found in exact_seeds(solver, wanted)] if wanted else []
    study = optuna.create_study(
        directions=["maximize" if more else "minimize" for more in maximised(problem.objectives)],
        sampler=arm.sampler(solver, seed),
    )
    for row in rows:
        study.enqueue_trial(params_of(row, problem))
    spent += time.perf_counter() - started
    with _without(arm):
        for _ in range(len(rows) if arm.first == 1.0 else count):
            started = time.perf_counter()
            trial = study.ask(distributions(problem))
            spent += time.perf_counter() - started
            row = row_of(trial.params, problem)
            metrics = problem.metrics(row) | measure(row)
            noted = metrics | ({"expected_rank": expected_rank(metrics)} if arm.ranked else {})
            trial.set_user_attr("metrics", noted)
            for name, excess in problem.violations(row).items():
                trial.set_constraint(name, excess)
            study.tell(trial, [metrics[metric_of(name)] for name in problem.objectives])
            trials.append(Trial(row, metrics, spent))
    return trials


# --- The networks -----------------------------------------------------------------------------


class Separable(nn.Sequential):
    """A small network of depthwise separable convolutions (after MobileNet, arXiv 1704.04861)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        layers = [_conv(in_channels, 16, 2)]
        for inputs, outputs, stride in ((16, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2)):
            layers += [_conv(inputs, inputs, stride, inputs), _conv(inputs, outputs, 1, size=1)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes)]
        super().__init__(*layers, *head)


def _conv(inputs: int, outputs: int, stride: int, groups: int = 1, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def separable(data: Data, source: Source) -> nn.Module:
    """The depthwise network, trained briefly."""
    torch.manual_seed(0)
    model = Separable(data.input_shape[0], data.num_classes)
    config = TrainConfig(800, 128, lr=0.1, warmup=0.05)
    return _cached(model, data, config, source.cache / "separable.safetensors")


def wide(data: Data, source: Source) -> nn.Module:
    """The wide ResNet-8 of the accuracy study, trained briefly."""
    torch.manual_seed(0)
    model = CifarResNet(1, data.input_shape[0], data.num_classes, width=64)
    model.conv1.stride = (2, 2)
    config = TrainConfig(300, 64, lr=0.1, warmup=0.05)
    return _cached(model, data, config, source.cache / "wide-300.safetensors")


def tuned_resnet20(data: Data, source: Source) -> nn.Module:
    """The trained ResNet-20; given weights are fine-tuned for as long as the others are trained."""
    if source.weights is None or source.images in DATA_SETS:
        return resnet20(data, source)
    from epim_nas.models.registry import build_model
    from epim_nas.models.weights import load_weights

    model = build_model("resnet20", in_channels=data.input_shape[0], num_classes=data.num_classes)
    load_weights(model, source.weights)
    config = TrainConfig(300, 128, lr=0.01)
    return _cached(model, data, config, source.cache / "resnet20-300.safetensors")


NETWORKS |= {"separable": separable, "wide": wide, "tuned_resnet20": tuned_resnet20}
COSTS = ("latency_ns", "energy_nj")


@dataclass(frozen=True)
class Subject:
    """A trained network in a search space under a budget.

    Attributes:
        name: the network.
        space: the search space.
        compression: dense 32-bit crossbars over the budget.
        source: images and weights.
    """

    name: str
    space: str
    compression: float
    source: Source

    @cached_property
    def lab(self) -> Lab:
        """The network, its images and its untrained supernet."""
        recipe = TrainConfig(100, 64, lr=0.01)
        changes = {
            "budget": {"compression": self.compression},
            "objectives": ["accuracy", *COSTS],
            "search": {"calibration_images": 256, "batch_size": 256},
            "supernet": {"steps": 60, "random": 1},
            "projection": {"outputs": 500},
        }
        return Lab(self.source, self.name, "xbar_64", self.space, recipe, changes=changes)

    def problem(self, objectives: tuple[str, ...]) -> SearchProblem:
        """The search problem with the sensitivity of the trained network."""
        run = self.lab.setup
        limits = limits_of(run.config.budget.model_dump(exclude_none=True), run.dense_crossbars)
        costs = Costs.of(run.cost, self.lab.space)
        problem = formulate(costs, limits, objectives, run.config.seed)
        if problem.find_standins is not None:
            problem = replace(problem, find_standins=cache(problem.find_standins))
        return replace(problem, sensitivity=self.lab.sensitivity)

    @cached_property
    def trained(self) -> Any:
        """The supernet, trained as a search trains it."""
        lab = self.lab
        problem = self.problem(("accuracy", *COSTS))
        solver = FeasibleSolver(problem)
        rows = [seed.row for seed in exact_seeds(solver, SEEDS_FIRST)]
        train_supernet(lab.setup, lab.supernet, lab.setup.model, solver, rows)
        return lab.supernet


class Measured:
    """Accuracy and loss with shared weights; what the records hold is not measured again.

    Args:
        subject: the network.
        images: images of a measurement.
        held_out: images of a measurement on test images.
    """

    def __init__(self, subject: Subject, images: int, held_out: int) -> None:
        self._subject, self._images, self._held_out = subject, images, held_out
        self._records = Records(subject.source.cache / f"scores-{subject.name}.jsonl")
        self._known = {(row["split"], *row["row"]): row for row in self._records.rows}

    def __call__(self, row: Row, split: int | str) -> Metrics:
        """Accuracy and loss of a design.

        Args:
            row: the design.
            split: number of a block of the validation images, or ``test``.
        """
        known = self._known.get((split, *row))
        if known is None:
            supernet = self._subject.trained
            with supernet.frozen(row):
                recalibrate_batch_norm(supernet, self._subject.lab.calibration)
                score = evaluate(supernet, self.batches(split))
            known = {"split": split, "row": list(row), "accuracy": score.accuracy}
            known["loss"] = score.loss
            self._records.add(known)
            self._known[(split, *row)] = known
        return {"accuracy": known["accuracy"], "loss": known["loss"]}

    def batches(self, split: int | str) -> list[Batch]:
        """The images of a split, of every class alike."""
        lab = self._subject.lab
        if split == "test":
            return list(lab.setup.data.batches("test", 500, self._held_out))
        images = torch.cat([x for x, _ in lab.validation])
        labels = torch.cat([y for _, y in lab.validation])
        blocks = len(labels) // self._images
        order = torch.argsort(labels, stable=True)[int(split) % blocks :: blocks]
        return list(zip(images[order].split(500), labels[order].split(500), strict=True))


def another_table(
    problem: SearchProblem, seed: int, layers: float, choices: float
) -> SearchProblem:
    """The problem with each sensitivity times a random factor of its layer and one of its own."""
    rng = np.random.default_rng([seed, 61])
    table = [
        scores * np.exp(layers * rng.standard_normal() + choices * rng.standard_normal(len(scores)))
        for scores in problem.sensitivity
    ]
    return replace(problem, sensitivity=table)


# --- The studies ------------------------------------------------------------------------------

OBJECTIVES = {
    "energy": ("accuracy", "energy_nj"),
    "latency": ("accuracy", "latency_ns"),
    "EDP": ("accuracy", "edp_nj_ns"),
    "latency and energy": ("accuracy", *COSTS),
    "accuracy alone": ("accuracy",),
}


MODELLED = (
    *(("wrong table", aim) for aim in ("latency and energy", "accuracy alone")),
    *(("additive", aim) for aim in ("latency and energy", "EDP", "latency", "energy")),
)
"""Studies without images, and what they optimise. (The optimum of an additive loss is known.)"""


def modelled(subjects: Sequence[Subject], arguments: argparse.Namespace, records: Records) -> None:
    """All arms on losses that are sums."""
    for (study, aim), subject, seed in itertools.product(
        MODELLED, subjects, range(arguments.seeds)
    ):
        plain = subject.problem(OBJECTIVES[aim])
        if study == "additive":  # another network with each seed
            problem = truth = another_table(plain, seed, 0.5, 0.0)
        else:
            problem, truth = plain, another_table(plain, seed + 100, 0.7, 0.5)
        for name in arguments.arms:
            key = {"study": study, "network": subject.name, "aim": aim, "seed": seed, "arm": name}
            if records.find(**key):
                continue
            trials = run(ARMS[name], problem, seed, arguments.trials, partial(_added_up, truth))
            records.add(key | _record(trials, problem))
            print(*key.values(), f"{len(trials)} designs, {trials[-1].seconds:.1f} s", flush=True)


def _added_up(truth: SearchProblem, row: Row) -> Metrics:
    """The loss of a design as a sum, and an accuracy that falls with it."""
    loss = float(totals(truth.sensitivity, [row])[0])
    return {"loss": loss, "accuracy": math.exp(-loss)}


def measured(subjects: Sequence[Subject], arguments: argparse.Namespace, records: Records) -> None:
    """All arms on the accuracy with shared weights."""
    scorers = {subject: Measured(subject, arguments.images_each, 1000) for subject in subjects}
    first = [name for name in FIRST_IN if name in arguments.arms]
    for names in (first, [name for name in arguments.arms if name not in FIRST_IN]):
        for aim, subject, seed in itertools.product(
            ("latency and energy", "accuracy alone"), subjects, range(arguments.seeds)
        ):
            problem = subject.problem(OBJECTIVES[aim])
            scorer = scorers[subject]
            for name in names:
                key = {"study": "measured", "network": subject.name, "aim": aim, "seed": seed}
                key["arm"] = name
                if records.find(**key):
                    continue
                measure = partial(scorer, split=seed)
                trials = run(ARMS[name], problem, seed, arguments.trials, measure)
                record = key | _record(trials, problem)
                if aim == "accuracy alone":
                    best = max(trials, key=lambda t: (t.metrics["accuracy"], -t.metrics["loss"]))
                    record["held_out"] = scorer(best.row, "test")
                records.add(record)
                print(*key.values(), f"{len(trials)} designs", flush=True)


def held_out(subjects: Sequence[Subject], arguments: argparse.Namespace, records: Records) -> None:
    """Measure the fronts of the measured study on test images."""
    for seed, subject in itertools.product(range(arguments.seeds), subjects):
        scorer = Measured(subject, arguments.images_each, 1000)
        key = {"study": "measured", "network": subject.name, "aim": "latency and energy"}
        for record in records.find(**key, seed=seed):
            for index in _front(record):
                scorer(tuple(record["rows"][index]), "test")


def _record(trials: Sequence[Trial], problem: SearchProblem) -> dict[str, Any]:
    """Rows, losses (less is better; accuracy and loss first) and seconds."""
    costs = [metric_of(o) for o in problem.objectives if metric_of(o) != "accuracy"]
    return {
        "rows": [list(trial.row) for trial in trials],
        "values": [
            [1 - t.metrics["accuracy"], math.log(max(t.metrics["loss"], 1e-12))]
            + [t.metrics[name] for name in costs]
            for t in trials
        ],
        "seconds": trials[-1].seconds,
    }  # fmt: skip


# --- The report -------------------------------------------------------------------------------


def _points(record: dict[str, Any]) -> FloatArray:
    """(designs, objectives): accuracy where it is measured, else the logarithm of the loss."""
    values = np.array(record["values"])
    return np.delete(values, 1 if record["study"] == "measured" else 0, axis=1)


def _front(record: dict[str, Any]) -> list[int]:
    points = _points(record)
    return [int(i) for i in np.flatnonzero(non_dominated(points, [False] * points.shape[1]))]


class Box:
    """The hypervolume relative to that of the front of all arms."""

    def __init__(self, points: FloatArray) -> None:
        front = points[non_dominated(points, [False] * points.shape[1])]
        self._low, self._span = front.min(axis=0), np.maximum(np.ptp(front, axis=0), 1e-12)
        self._all = self._volume(front)

    def _volume(self, points: FloatArray) -> float:
        return box_volume((points - self._low) / self._span / _BOX)

    def __call__(self, points: FloatArray) -> float:
        """Relative volume of some points."""
        return self._volume(points) / self._all


def report(records: Records, out: Path, scores: Path) -> None:
    """Print all tables and write the CSV."""
    lines: list[dict[str, Any]] = []
    cases: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in (row for row in records.rows if row["arm"] in ARMS):
        case = tuple(record[key] for key in ("study", "network", "aim", "seed"))
        cases.setdefault(case, []).append(record)
    tested: dict[str, dict[tuple[int, ...], float]] = {}
    for file in sorted(scores.glob("*/scores-*.jsonl")):
        rows = Records(file).find(split="test")
        name = file.stem.removeprefix("scores-")
        tested[name] = {tuple(row["row"]): 1 - row["accuracy"] for row in rows}
    for (study, network, aim, seed), found in cases.items():
        box = Box(np.concatenate([_points(record) for record in found]))
        honest = [_tested(record, tested.get(network, {})) for record in found]
        complete = [points for points in honest if points is not None]
        test_box = Box(np.concatenate(complete)) if complete else None
        for record, points in zip(found, honest, strict=True):
            values = _points(record)
            line = {"study": study, "network": network, "aim": aim, "seed": seed}
            line |= {"arm": record["arm"], "designs": len(values)}
            if values.shape[1] > 1:
                longest = max(len(other["rows"]) for other in found)
                for name, step in (
                    (f"_{SEEDS_FIRST}", SEEDS_FIRST),
                    ("_half", longest // 2),
                    ("", None),
                ):
                    line[f"hypervolume{name}"] = round(box(values[:step]), 5)
                if points is not None and test_box is not None:
                    line["hypervolume_held_out"] = round(test_box(points), 5)
            best = np.array(record["values"]).min(axis=0)
            line["best_accuracy"] = round(1 - best[0], 5)
            line["least_loss"] = float(f"{math.exp(best[1]):.5g}")
            if "held_out" in record:
                line["held_out_accuracy"] = round(record["held_out"]["accuracy"], 5)
                line["held_out_loss"] = round(record["held_out"]["loss"], 5)
            line["seconds"] = round(record["seconds"], 3)
            lines.append(line)
    order = list(ARMS)
    lines.sort(key=lambda x: (x["study"], x["network"], x["aim"], order.index(x["arm"]), x["seed"]))
    names = list(dict.fromkeys(name for line in lines for name in line))
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    for study, aim in dict.fromkeys((line["study"], line["aim"]) for line in lines):
        _print([x for x in lines if (x["study"], x["aim"]) == (study, aim)], study, aim)


def _tested(record: dict[str, Any], known: dict[tuple[int, ...], float]) -> FloatArray | None:
    """The front's points with the accuracy of test images; None where one is missing."""
    if record["study"] != "measured" or record["aim"] == "accuracy alone":
        return None
    points, found = _points(record), []
    for index in _front(record):
        lost = known.get(tuple(record["rows"][index]))
        if lost is None:
            return None
        found.append([lost, *points[index, 1:]])
    return np.array(found)


def _print(lines: Sequence[dict[str, Any]], study: str, aim: str) -> None:
    """One table: arms by networks, and the mean difference from the default in the same seed."""
    columns = ["least_loss"]
    if aim != "accuracy alone":
        columns = ["hypervolume"]
    if study == "measured":
        more = ["held_out_accuracy", "held_out_loss"] if aim == "accuracy alone" else []
        columns += [*more, "hypervolume_held_out", "best_accuracy"]
    networks = list(dict.fromkeys(line["network"] for line in lines))
    for column in columns:
        if not any(column in line for line in lines):
            continue
        table = Table(
            "arm", *networks, "minus default", "seconds", title=f"{study}, {aim}: {column}"
        )
        known = {(x["network"], x["seed"], x["arm"]): x[column] for x in lines if column in x}
        for arm in ARMS:
            cells = []
            for network in networks:
                values = [v for (n, _, a), v in known.items() if (n, a) == (network, arm)]
                text = ""
                if values:
                    text = f"{np.mean(values):.4f} ±{np.std(values):.4f} ({len(values)})"
                cells.append(text)
            pairs = [
                value - known[(n, s, "default")]
                for (n, s, a), value in known.items()
                if a == arm and (n, s, "default") in known
            ]
            spread = (
                f"{np.mean(pairs):+.4f} ±{np.std(pairs) / len(pairs) ** 0.5:.4f}" if pairs else ""
            )
            seconds = [x["seconds"] for x in lines if x["arm"] == arm]
            table.add_row(arm, *cells, spread, f"{np.mean(seconds):.2f}" if seconds else "")
        console.print(table)


def main() -> None:
    """Run a study, or report."""
    parser = argparse.ArgumentParser(description="What each part of the search is worth.")
    parser.add_argument("study", choices=["modelled", "measured", "held-out", "report"])
    Source.add_arguments(parser, cache="runs/search_ablation")
    parser.add_argument("--networks", nargs="+", default=["separable", "wide", "tuned_resnet20"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--images-each", type=int, default=400, help="images of a measurement")
    parser.add_argument("--csv", type=Path, default=Path("docs/data/search_ablation.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shipped = Source(SHIPPED, None, arguments.cache / SHIPPED)
    subjects = {
        "separable": Subject("separable", "narrow", 50, shipped),
        "wide": Subject("wide", "wide", 60, shipped),
        "tuned_resnet20": Subject("tuned_resnet20", "narrow", 30, Source.of(arguments)),
    }
    chosen = [subjects[name] for name in arguments.networks]
    if arguments.study == "report":
        parts = [Records(file) for file in sorted(arguments.cache.glob("runs-*.jsonl"))]
        merged = parts[0]
        merged.rows = [row for part in parts for row in part.rows]
        report(merged, arguments.csv, arguments.cache)
        return
    kind = "modelled" if arguments.study == "modelled" else "measured"
    records = Records(arguments.cache / f"runs-{kind}.jsonl")
    {"modelled": modelled, "measured": measured, "held-out": held_out}[arguments.study](
        chosen, arguments, records
    )


if __name__ == "__main__":
    main()
