"""What a long study costs: going on with it, its front, its report, as ratios to stock Optuna.

    OMP_NUM_THREADS=1 python benchmarks/long_study.py [--trials 20000] [--keep DIR]

A short real search makes the run folder; the rest of its trials have real designs and costs, and
made-up accuracies. Each command then runs in a process of its own. All CPU times are compared with
that in which Optuna alone loads the same journal (``optuna.load_study`` and ``get_trials``).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from epim_nas.pipeline.context import Run
from epim_nas.pipeline.driver import search
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.results import open_store
from epim_nas.solver.design_costs import Costs
from epim_nas.solver.formulation import formulate, limits_of
from epim_nas.solver.metrics import own_sources
from epim_nas.solver.ranking import expected_rank
from epim_nas.study.inflight import Pending

console = Console(width=100)

SHORT = (
    "search.trials=8", "search.seeds=4", "search.calibration_images=64",
    "search.validation_images=100", "sensitivity.images=64", "sensitivity.batch_size=32",
    "supernet.steps=2", "finalists.count=1", "finalists.steps=2",
)  # fmt: skip
"""A search of seconds, before the made-up trials."""

_LOAD = """
import sys, optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
optuna.logging.set_verbosity(optuna.logging.ERROR)
storage = JournalStorage(JournalFileBackend(sys.argv[1]))
study = optuna.load_study(study_name="epim_nas", storage=storage)
print(len(study.get_trials(deepcopy=False)), file=sys.stderr)
"""


def fill(path: Path, trials: int) -> None:
    """Store made-up scores of real designs until the run has so many trials."""
    folder = RunFolder(path)
    config = folder.load_config()
    run = Run.load(config, folder)
    space = run.build_space()
    costs = Costs.of(run.cost, space)
    limits = limits_of(config.budget.model_dump(exclude_none=True), run.dense_crossbars)
    problem = formulate(costs, limits, config.objectives, config.seed)
    settings = {"budget": dict(problem.limits), "seed": config.seed, "metrics": own_sources()}
    os.fsync = lambda file: None  # none of it has to survive a power cut
    store = open_store(folder, config, space, settings)
    stored = store.trials()
    rng = np.random.default_rng(0)
    sizes = np.array([len(group) for group in space.groups])
    count = trials - len(stored)
    # From small to large designs, since uniform ones are all alike.
    lean = rng.beta(0.4, 0.8, size=(count, 1))
    rows = np.minimum(rng.random((count, len(sizes))) ** (1 / (0.05 + lean)) * sizes, sizes - 1)
    table = rows.astype(np.int64)
    totals = costs(table)
    lost = 0.02 + 2.0 / np.sqrt(totals["crossbars"]) * rng.uniform(0.8, 1.2, count)
    first = max((int(trial.user_attrs["asked"]) for trial in stored), default=-1) + 1
    for number, row in enumerate(map(tuple, table.tolist())):
        metrics = {name: float(values[number]) for name, values in totals.items()}
        metrics |= {"sensitivity": float(lost[number]), "loss": float(lost[number])}
        metrics["accuracy"] = round(max(0.1, 0.94 - float(lost[number])), 4)
        metrics["expected_rank"] = expected_rank(metrics)
        pending = Pending(first + number, row, "search", {})
        constraints = problem.violations(row)
        store.add(
            pending, metrics, constraints=constraints, finished_at=1.9e9 + number, seconds=1.0
        )


def seconds_of(command: Sequence[str]) -> float:
    """CPU time of a command, which other programs disturb less than the time that passes."""
    started = _children()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return _children() - started


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Make the study and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--keep", type=Path, help="folder for the run; made where it is missing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = arguments.keep or Path(scratch) / "run"
        if not (path / "best.yaml").exists():
            search("demo", path, overrides=list(SHORT))
            started = time.perf_counter()
            fill(path, arguments.trials)
            seconds = time.perf_counter() - started
            console.print(f"{arguments.trials} trials stored in {seconds:.0f} s")
        measure(path, arguments.trials)


def measure(path: Path, trials: int) -> None:
    """Print what each command on the run takes."""
    tool = [str(Path(sys.executable).with_name("epim-nas"))]
    changed = [f"--set={value}" for value in SHORT if not value.startswith("search.trials")]
    go_on = [*tool, "search", "demo", "--out", str(path), *changed]
    commands = {
        "stock Optuna": [sys.executable, "-c", _LOAD, str(path / "study.journal")],
        "pareto": [*tool, "pareto", str(path), "--json"],
        "report": [*tool, "report", str(path)],
        "search, two more trials": [*go_on, f"--set=search.trials={trials + 2}"],
        "search, nothing left": [*go_on, f"--set=search.trials={trials + 2}"],
    }
    table = Table(title=f"{trials} trials, {(path / 'study.journal').stat().st_size / 1e6:.0f} MB")
    for column in ("command", "CPU seconds", "times stock Optuna"):
        table.add_column(column, justify="left" if column == "command" else "right")
    base = 0.0
    for name, command in commands.items():
        taken = seconds_of(command)
        base = base or taken
        table.add_row(name, f"{taken:.1f}", f"{taken / base:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
