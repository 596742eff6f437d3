"""Every strategy on ResNet-50 without images: gaps, pipelined costs, and time per proposal.

    OMP_NUM_THREADS=1 python benchmarks/search.py additive [--seeds 5 --trials 400]
    OMP_NUM_THREADS=1 python benchmarks/search.py pipelined [--seeds 5 --trials 300]
    OMP_NUM_THREADS=1 python benchmarks/search.py overhead [--trials 2000]

There is no trained ResNet-50 here: its sensitivity is made up, as an error of each layer's weights
(from its size and bits) times a random importance of the layer, so that its optimum is known.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import optuna
from modelled import Subject, explore, measured
from rich.console import Console
from rich.table import Table

from epim_nas.solver.exact import Limit, minimise
from epim_nas.solver.exact_front import exact_seeds
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.study.history import distributions, params_of, row_of
from epim_nas.study.inflight import Pending
from epim_nas.study.store import TrialStore
from epim_nas.study.strategies import STRATEGIES, Options

optuna.logging.set_verbosity(optuna.logging.ERROR)
console = Console(width=110)

VARIANTS: dict[str, tuple[str, Options]] = {
    "epitome": ("epitome", Options()),
    "exact": ("exact", Options()),
    "gradient": ("gradient", Options()),
    "evolution": ("evolution", Options("sensitivity", population=50)),
    **{name: (name, Options()) for name in ("nsga2", "nsga3", "tpe", "random")},
    **{
        f"{name}, not repaired": (name, Options(repair=False))
        for name in ("nsga2", "nsga3", "tpe", "random")
    },
}


def additive(subject: Subject, seeds: int, trials: int) -> None:
    """Gap to the proven optimum of an additive loss under a budget of crossbars."""
    for budget in (428, 700, 1424):
        table = Table("strategy", "gap to the optimum", "feasible", "seconds", title=f"{budget}")
        problems = [subject.problem(budget, ["sensitivity"], seed) for seed in range(seeds)]
        optima = []
        for problem in problems:
            limit = Limit(problem.crossbars, budget)
            started = time.perf_counter()
            exact = minimise(problem.sensitivity, [limit])
            elapsed = time.perf_counter() - started
            again = minimise(
                problem.sensitivity, [Limit([c.astype(float) for c in problem.crossbars], budget)]
            )
            assert abs(again.loss - exact.loss) <= 1e-9 * exact.loss, "the two solvers differ"
            optima.append(exact.loss)
        table.add_row("dynamic programming", "0 (integer program agrees)", "", f"{elapsed:.4f}")
        for name, (strategy, options) in VARIANTS.items():
            results = [
                explore(problem, strategy, trials, seed, options)
                for seed, problem in enumerate(problems)
            ]
            gaps = [
                100 * (result.best("sensitivity") / optimum - 1)
                for result, optimum in zip(results, optima, strict=True)
            ]
            share = np.mean([result.feasible.mean() for result in results])
            seconds = np.mean([result.seconds for result in results])
            table.add_row(name, spread(gaps, " %"), f"{100 * share:.0f} %", f"{seconds:.2f}")
        console.print(table)


def spread(values: Sequence[float], unit: str) -> str:
    """Mean and standard deviation; what was never reached is said."""
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return "nothing feasible"
    missing = f" ({len(values) - len(finite)} without)" if len(finite) < len(values) else ""
    return f"{np.mean(finite):.1f} +- {np.std(finite):.1f}{unit}{missing}"


class Counting:
    """A model of whole designs that counts how many it was asked for."""

    def __init__(self, model: Callable[[npt.NDArray[np.int64]], dict[str, npt.NDArray]]) -> None:
        self.model, self.count = model, 0

    def __call__(self, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray]:
        """Costs of (N, groups) rows."""
        self.count += len(rows)
        return self.model(rows)


def pipelined(subject: Subject, seeds: int, trials: int) -> None:
    """The default against EPIM's evolution where costs are not additive."""
    for metric in ("latency_ns", "edp_nj_ns", "energy_nj"):
        table = Table("", *(f"seed {seed}" for seed in range(seeds)), title=metric)
        rows: dict[str, list[str]] = {}
        for seed in range(seeds):
            problem = subject.problem(428, [metric], seed)
            counting = Counting(problem.model)  # type: ignore[arg-type]
            counted = replace(problem, model=counting)
            ours = explore(counted, "epitome", trials, seed, Options())
            asked = counting.count - trials + 256  # fitting the additive costs took 256
            options = Options(metric, population=50)
            equal = explore(problem, "evolution", trials, seed, options)
            longer = explore(problem, "evolution", trials + asked, seed, options)
            best = ours.best(metric)
            seeds_best = ours.best(metric, within=12)
            for name, text in (
                ("evolution, as many scored designs", f"{equal.best(metric) / best:.3f}"),
                (
                    "evolution, as many model evaluations",
                    f"{longer.best(metric) / best:.3f} ({trials + asked})",
                ),
                ("exact seeds alone", f"{seeds_best / best:.3f}"),
                (
                    "designs until the default beats evolution's end",
                    str(ours.first_below(metric, equal.best(metric))),
                ),
            ):
                rows.setdefault(name, []).append(text)
        for name, cells in rows.items():
            table.add_row(name, *cells)
        console.print(table)
    console.print("values relative to the default's best: above 1 is worse")


def overhead(subject: Subject, trials: int) -> None:
    """Milliseconds of asking, repairing and storing a trial, as the study grows."""
    table = Table("trials so far", "ask", "store", "tell", "all", title="ms a trial (median)")
    # At most 36 choices a layer, evenly taken by cost.
    space = subject.space.arranged(
        [
            np.unique(np.linspace(0, len(group) - 1, min(36, len(group))).round().astype(int))
            for group in subject.space.groups
        ]
    )
    problem = subject.problem(428, ["accuracy", "latency_ns", "energy_nj"], 0, space)
    groups, widest = len(problem.space.groups), max(map(len, problem.space.groups))
    console.print(f"{groups} groups, up to {widest} choices")
    with tempfile.TemporaryDirectory() as folder:
        store = TrialStore(
            Path(folder) / "study.journal", problem.objectives, problem.space, {"seed": 0}
        )
        sampler = STRATEGIES["epitome"].make(FeasibleSolver(problem), 0, Options())
        study = optuna.create_study(directions=list(store.study.directions), sampler=sampler)
        for seed in exact_seeds(FeasibleSolver(problem), 12):
            study.enqueue_trial(params_of(seed.row, problem))
        times: list[tuple[float, float, float]] = []
        for number in range(trials):
            marks = [time.perf_counter()]
            trial = study.ask(distributions(problem))
            row = row_of(trial.params, problem)
            marks.append(time.perf_counter())
            metrics = measured(problem, row)
            metrics["accuracy"] = 1 / (1 + metrics["loss"])
            excess = problem.violations(row)
            marks.append(time.perf_counter())
            pending = Pending(trial.number, row, "search", {})
            store.begin(pending)
            store.add(pending, metrics, constraints=excess, finished_at=0.0, seconds=0.0)
            marks.append(time.perf_counter())
            for name, value in excess.items():
                trial.set_constraint(name, value)
            trial.set_user_attr("metrics", metrics)
            study.tell(trial, [metrics[name] for name in problem.objectives])
            marks.append(time.perf_counter())
            times.append((marks[1] - marks[0], marks[3] - marks[2], marks[4] - marks[3]))
            if number + 1 in (100, 500, 1000, 2000) or number + 1 == trials:
                recent = 1000 * np.median(np.array(times[-100:]), axis=0)
                mean = 1000 * np.mean(np.sum(times[-100:], axis=1))
                table.add_row(
                    str(number + 1), *(f"{part:.1f}" for part in recent),
                    f"{recent.sum():.1f} (mean {mean:.1f})",
                )  # fmt: skip
    console.print(table)


def main() -> None:
    """Run one of the studies."""
    parser = argparse.ArgumentParser(description="Strategies on ResNet-50, without images.")
    parser.add_argument("study", choices=["additive", "pipelined", "overhead"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int)
    arguments = parser.parse_args()
    subject = Subject()
    if arguments.study == "additive":
        additive(subject, arguments.seeds, arguments.trials or 400)
    elif arguments.study == "pipelined":
        pipelined(subject, arguments.seeds, arguments.trials or 300)
    else:
        overhead(subject, arguments.trials or 2000)


if __name__ == "__main__":
    main()
