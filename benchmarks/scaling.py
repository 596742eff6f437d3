"""How many workers one driver can feed, and what a large study costs it.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py throughput [--seconds 0.05 --trials 300]
    OMP_NUM_THREADS=1 python benchmarks/scaling.py supernet [--trials 60]
    OMP_NUM_THREADS=1 python benchmarks/scaling.py calls [--trials 3000]
    OMP_NUM_THREADS=1 python benchmarks/scaling.py driver [--workers 256 --trials 2000]
    OMP_NUM_THREADS=1 python benchmarks/scaling.py storage [--trials 100000]

``throughput`` and ``supernet`` compare with the ideal and with one worker. ``driver`` simulates the
workers in this process: their objectives only wait, so that what is measured is the driver alone.
"""

from __future__ import annotations

import argparse
import heapq
import os
import resource
import tempfile
import time
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from rich.console import Console
from rich.table import Table

from epim_nas.cluster.executor import Executor, Outcome
from epim_nas.cluster.ray_executor import PoolSettings, RayExecutor
from epim_nas.pipeline.config import load_run_config
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.measure import make_scorer
from epim_nas.pipeline.stages.baseline import prepare_baseline
from epim_nas.pipeline.stages.first_designs import exact_designs
from epim_nas.pipeline.stages.sensitivity import measure_sensitivity
from epim_nas.pipeline.stages.supernet import prepare_supernet
from epim_nas.pipeline.stages.trials import run_trials
from epim_nas.records import Baseline
from epim_nas.report.tensorboard import DashboardWriter
from epim_nas.solver.design_costs import Costs
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.formulation import formulate, limits_of
from epim_nas.space.space import Row
from epim_nas.study.history import distributions
from epim_nas.study.inflight import Pending
from epim_nas.study.store import TrialStore, without_legacy
from epim_nas.study.strategies import Options, find_strategy
from epim_nas.supernet.evaluation import Score
from epim_nas.supernet.supernet import Supernet

optuna.logging.set_verbosity(optuna.logging.ERROR)
console = Console(width=110)


class Waiting:
    """A worker whose objective only waits; the score depends on the design."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def score(self, row: Row) -> Score:
        """A made-up score, after a while."""
        time.sleep(self.seconds)
        return made_up(row)


def made_up(row: Row) -> Score:
    """A score that falls with the indices' distance from a middle, so that there is a front."""
    loss = float(np.mean(np.abs(np.sin(np.asarray(row) + np.arange(len(row))))))
    return Score(1.0 / (1.0 + loss), loss, 1)


class Simulated(Executor):
    """Workers in this process that only wait: their results come when they are due.

    Args:
        workers: how many.
        seconds: how long each takes; 0 for results that are always there.
    """

    def __init__(self, workers: int, seconds: float) -> None:
        self._workers, self._seconds = workers, seconds
        self._due: list[tuple[float, int, Hashable, Row]] = []
        self._free = [0.0] * workers
        self._count = 0

    @property
    def capacity(self) -> int:
        """One call a worker, and an eighth as many to follow, as on Ray."""
        return self._workers + max(1, self._workers // 8)

    def submit(self, key: Hashable, method: str, *args: Any) -> None:
        """Give a call to the worker that is free first."""
        start = max(time.monotonic(), heapq.heappop(self._free))
        heapq.heappush(self._free, start + self._seconds)
        self._count += 1
        heapq.heappush(self._due, (start + self._seconds, self._count, key, args[0]))

    def wait(self) -> Outcome:
        """The next result, when it is due."""
        due, _, key, row = heapq.heappop(self._due)
        time.sleep(max(0.0, due - time.monotonic()))
        return Outcome(key, made_up(row), seconds=self._seconds)

    def close(self) -> None:
        """Nothing to end."""


class Search:
    """The demo's search without its baseline and supernet, unless they are asked for."""

    def __init__(self, strategy: str, trials: int, folder: Path, measured: bool = False) -> None:
        config, _ = load_run_config(
            "demo",
            [f"search.strategy={strategy}", f"search.trials={trials}", "supernet.steps=0",
             "search.validation_images=1000", "search.calibration_images=250"],
        )  # fmt: skip
        self.folder = RunFolder(folder)
        self.setup = Run.load(config, self.folder)
        self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
        self.space = self.setup.build_space()
        limits = limits_of(config.budget.model_dump(exclude_none=True), self.setup.dense_crossbars)
        costs = Costs.of(self.setup.cost, self.space)
        problem = formulate(costs, limits, config.objectives, config.seed)
        self.model = self.setup.model
        self.supernet: Supernet | None = None
        if measured:
            self.model, _ = prepare_baseline(self.setup)
            self.supernet = prepare_supernet(self.setup, self.model, self.space)
            table = measure_sensitivity(self.setup, self.supernet)
            problem = problem.with_sensitivity(table)
        else:
            rng = np.random.default_rng(0)
            problem = replace(
                problem, sensitivity=[rng.random(len(group)) for group in self.space.groups]
            )
        self.problem = problem

    def run(self, executor: Executor, name: str, seeds: int | None = None) -> float:
        """Seconds of the search with an executor."""
        (self.folder.path / name).mkdir()
        store = TrialStore(
            self.folder.path / name / "study.journal", self.setup.config.objectives, self.space, {}
        )
        solver = FeasibleSolver(self.problem)
        rows = exact_designs(self.setup, solver)[:seeds]
        executor.submit("warm", "score", rows[0])
        executor.wait()
        started = time.perf_counter()
        run_trials(self.setup, solver, rows, store, executor)
        return time.perf_counter() - started


def throughput(seconds: float, trials: int, workers: int) -> None:
    """Results a second against the ideal, for objectives that take so long."""
    table = Table("strategy", "results a second", "of the ideal")
    for strategy in ("random", "epitome"):
        with tempfile.TemporaryDirectory() as folder:
            search = Search(strategy, trials, Path(folder))
            pool = PoolSettings(workers=workers, cpus=0.5)
            with RayExecutor(partial(Waiting, seconds), pool) as executor:
                while executor.state.idle < workers:  # all of them are there
                    executor.submit("warm", "score", (0,))
                    executor.wait()
                rate = trials / search.run(executor, strategy)
        table.add_row(strategy, f"{rate:.1f}", f"{100 * rate * seconds / workers:.0f} %")
    console.print(table)


def supernet(trials: int, workers: int) -> None:
    """The real objective: several workers against one, one thread each."""
    table = Table("workers", "results a second", "times one worker")
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        search = Search("random", trials, Path(folder), measured=True)
        assert search.supernet is not None
        scorer = make_scorer(search.setup, search.supernet, search.model)
        for count in (1, workers, 1, workers):
            with RayExecutor(lambda: scorer, PoolSettings(workers=count)) as executor:
                while executor.state.idle < count:
                    executor.submit("warm", "score", tuple(0 for _ in search.space.groups))
                    executor.wait()
                name = f"{count}-{len(rates)}"
                rates[name] = trials / search.run(executor, name)
    single = np.mean([rate for name, rate in rates.items() if name.startswith("1-")])
    for name, rate in rates.items():
        table.add_row(name.split("-")[0], f"{rate:.2f}", f"{rate / single:.2f}")
    console.print(table)


def calls(trials: int, workers: int) -> None:
    """Results a second of Ray itself: calls that do nothing."""
    with RayExecutor(partial(Waiting, 0.0), PoolSettings(workers=workers, cpus=0.25)) as executor:
        while executor.state.idle < workers:
            executor.submit("warm", "score", (0,))
            executor.wait()
        started, submitted = time.perf_counter(), 0
        for _ in range(trials):
            while submitted < trials and submitted - _ < executor.capacity:
                executor.submit(submitted, "score", (0,))
                submitted += 1
            executor.wait()
        rate = trials / (time.perf_counter() - started)
    console.print(f"{workers} workers, calls that do nothing: {rate:.0f} results a second")


def driver(trials: int, workers: int) -> None:
    """Results a second that the driver handles when the workers are never what it waits for."""
    table = Table("strategy", "results a second", "objective (s) from which it feeds all workers")
    for strategy in ("random", "nsga2", "epitome"):
        with tempfile.TemporaryDirectory() as folder:
            search = Search(strategy, trials, Path(folder))
            rate = trials / search.run(Simulated(workers, 0.0), strategy)
        table.add_row(strategy, f"{rate:.0f}", f"{workers / rate:.2f}")
    console.print(table)
    seconds = workers / rate * 1.2
    with tempfile.TemporaryDirectory() as folder:
        search = Search("epitome", trials, Path(folder))
        reached = trials / search.run(Simulated(workers, seconds), "waiting")
    ideal = workers / seconds
    console.print(
        f"{workers} simulated workers of {seconds:.2f} s: {reached:.0f} of {ideal:.0f} results a "
        f"second ({100 * reached / ideal:.0f} %)"
    )


def storage(trials: int) -> None:
    """What a large study costs: journal, TensorBoard, memory, proposals, reopening."""
    table = Table("trials", "store (ms)", "journal (MB)", "TensorBoard (ms)", "TensorBoard (MB)",
                  "memory (MB)", "reopen (s)", "catch up (s)", "propose (ms)")  # fmt: skip
    marks = [mark for mark in (1_000, 3_000, 10_000, 30_000, 100_000) if mark <= trials]
    with tempfile.TemporaryDirectory() as folder:
        search = Search("epitome", trials, Path(folder))
        path = search.folder.path / "study.journal"
        objectives = search.setup.config.objectives
        store = TrialStore(path, objectives, search.space, {})
        memory = optuna.create_study(directions=list(store.study.directions))  # the driver's own
        baseline = Baseline(0.9, 0.9, search.setup.dense_totals(), "made up")
        rng = np.random.default_rng(0)
        sizes = [len(group) for group in search.space.groups]
        boards = search.folder.tensorboard
        with DashboardWriter(boards, "large", objectives, {"crossbars": 88}, baseline) as writer:
            stored_s = shown_s = 0.0
            before = 0
            for number in range(trials):
                row = tuple(int(rng.integers(size)) for size in sizes)
                score = made_up(row)
                metrics = search.problem.metrics(row) | {
                    "accuracy": score.accuracy, "loss": score.loss
                }  # fmt: skip
                started = time.perf_counter()
                pending = Pending(number, row, "search", {})
                store.begin(pending)
                trial = store.add(pending, metrics, constraints={"crossbars": -1.0},
                                  finished_at=time.time(), seconds=0.1)  # fmt: skip
                middle = time.perf_counter()
                writer.add_trial(store.record(trial))
                stored_s += middle - started
                shown_s += time.perf_counter() - middle
                memory.add_trial(without_legacy(trial))
                if number + 1 in marks:
                    count = number + 1 - before
                    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                    started = time.perf_counter()
                    TrialStore(path, objectives, search.space, {}, read_only=True).records()
                    reopened = time.perf_counter() - started
                    first, later = proposals(search, memory)
                    table.add_row(
                        f"{number + 1:,}", f"{1000 * stored_s / count:.1f}",
                        f"{path.stat().st_size / 1e6:.0f}", f"{1000 * shown_s / count:.1f}",
                        f"{size_of(boards) / 1e6:.0f}", f"{used:.0f}", f"{reopened:.1f}",
                        f"{first:.1f}", f"{1000 * later:.1f}",
                    )  # fmt: skip
                    console.print(table)
                    stored_s = shown_s = 0.0
                    before = number + 1


def proposals(search: Search, study: optuna.Study, count: int = 20) -> tuple[float, float]:
    """Seconds of a new sampler's first proposal, and of a later one; the study stays as it is."""
    strategy = find_strategy("epitome")
    config = search.setup.config
    sampler = strategy.make(
        search.problem, 0, Options(config.search.fitness, config.search.population, True)
    )
    copied = optuna.create_study(directions=list(study.directions), sampler=sampler)
    copied.add_trials(study.get_trials(deepcopy=False))
    seconds = []
    for _ in range(count + 1):
        started = time.perf_counter()
        trial = copied.ask(distributions(search.problem))
        seconds.append(time.perf_counter() - started)
        copied.tell(trial, state=optuna.trial.TrialState.FAIL)
    return seconds[0], float(np.mean(seconds[1:]))


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(
        entry.stat().st_size
        for root, _, files in os.walk(folder)
        for entry in (Path(root) / name for name in files)
    )


STUDIES: dict[str, Callable[[argparse.Namespace], None]] = {
    "throughput": lambda a: throughput(a.seconds, a.trials or 300, a.workers or 2),
    "supernet": lambda a: supernet(a.trials or 60, a.workers or 2),
    "calls": lambda a: calls(a.trials or 3000, a.workers or 4),
    "driver": lambda a: driver(a.trials or 2000, a.workers or 256),
    "storage": lambda a: storage(a.trials or 100_000),
}


def main() -> None:
    """Run one of the studies."""
    parser = argparse.ArgumentParser(description="What one driver can feed, and what it costs.")
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seconds", type=float, default=0.05)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--workers", type=int)
    arguments = parser.parse_args()
    STUDIES[arguments.study](arguments)


if __name__ == "__main__":
    main()
