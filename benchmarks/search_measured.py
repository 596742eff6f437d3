"""Every strategy on measured objectives: hypervolume against the number of scored designs.

The objectives are the accuracy of ResNet-20 with a supernet's shared weights, the pipelined latency
and the energy. All strategies score designs on the same trained supernet, and a design is measured
once whoever asks for it: the file of scores can be shared by several processes, one a seed.

    OMP_NUM_THREADS=1 python benchmarks/search_measured.py [--run demo] [--seeds 0 1 2 3 4]
        [--trials 150] [--out runs/search_measured] [--strategies epitome nsga2 ...]
    python benchmarks/search_measured.py --report [--out runs/search_measured]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lab import Records
from rich.console import Console
from rich.table import Table

from epim_nas.cluster.executor import LocalExecutor, Outcome
from epim_nas.pipeline.config import RunConfig, load_run_config
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.measure import make_scorer
from epim_nas.pipeline.progress import setup_logging
from epim_nas.pipeline.stages.baseline import prepare_baseline
from epim_nas.pipeline.stages.first_designs import exact_designs, first_designs
from epim_nas.pipeline.stages.sensitivity import measure_sensitivity
from epim_nas.pipeline.stages.supernet import prepare_supernet, train_supernet
from epim_nas.pipeline.stages.trials import run_trials
from epim_nas.solver.design_costs import Costs
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.formulation import formulate, limits_of
from epim_nas.solver.pareto import ReferenceBox, hypervolume_over_trials
from epim_nas.study.store import TrialStore
from epim_nas.supernet.evaluation import Score

OWN = ("nsga2", "nsga3", "tpe", "random")
"""Optuna's samplers; once repaired into the budget and once as they are."""
STRATEGIES = (
    "epitome", "exact", "gradient", "evolution",
    *OWN, *(f"{name}-own" for name in OWN),
)  # fmt: skip


class Remembering(LocalExecutor):
    """Scores in this process; what is in the records is not measured again."""

    def __init__(self, factory: Callable[[], Any], records: Records) -> None:
        super().__init__(factory)
        self._records = records
        self._known = {tuple(row["row"]): row for row in records.rows}
        self._rows: list[tuple[Any, tuple[int, ...]]] = []

    def submit(self, key: Any, method: str, *args: Any) -> None:
        """Queue a design."""
        self._rows.append((key, tuple(args[0])))

    def wait(self) -> Outcome:
        """The score of the oldest queued design."""
        key, row = self._rows.pop(0)
        if row in self._known:
            found = self._known[row]
            return Outcome(key, Score(found["accuracy"], found["loss"], found["images"]))
        super().submit(key, "score", row)
        outcome = super().wait()
        if not outcome.error:
            score = outcome.value
            line = {"row": list(row), "accuracy": score.accuracy, "loss": score.loss}
            self._records.add(line | {"images": score.images})
            self._known[row] = line | {"images": score.images}
        return outcome


def explore(arguments: argparse.Namespace) -> None:
    """Run the strategies and store their trials."""
    torch.set_num_threads(1)
    config, _ = load_run_config(arguments.run, arguments.set or [])
    folder = RunFolder(arguments.out / "supernet")
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    run = Run.load(config, folder)
    space = run.build_space()
    limits = limits_of(config.budget.model_dump(exclude_none=True), run.dense_crossbars)
    problem = formulate(Costs.of(run.cost, space), limits, config.objectives, config.seed)
    model, _ = prepare_baseline(run)
    supernet = prepare_supernet(run, model, space)
    solver = FeasibleSolver(problem.with_sensitivity(measure_sensitivity(run, supernet)))
    train_supernet(run, supernet, model, solver, exact_designs(run, solver))
    scorer = make_scorer(run, supernet, model)
    records = Records(arguments.out / f"scores-{'-'.join(map(str, arguments.seeds))}.jsonl")
    for other in sorted(arguments.out.glob("scores-*.jsonl")):
        records.rows += [row for row in Records(other).rows if row not in records.rows]
    for seed in arguments.seeds:
        for name in arguments.strategies:
            path = arguments.out / f"{name}-{seed}"
            chosen = _config(config, name, seed, arguments.trials)
            mine = replace(run, config=chosen, folder=RunFolder(path))
            mine.folder.checkpoints.mkdir(parents=True, exist_ok=True)
            store = TrialStore(mine.folder.journal, chosen.objectives, space, {"seed": seed})
            first = first_designs(mine, supernet, model, solver, exact_designs(mine, solver))
            with Remembering(lambda: scorer, records) as executor:
                run_trials(mine, solver, first, store, executor)
            box = ReferenceBox.from_baseline(
                run.dense_totals(), chosen.objectives, arguments.margin
            )
            history = hypervolume_over_trials(store.records(), box)
            values = [volume for _, volume in history]
            (path / "hypervolume.json").write_text(json.dumps(values))
            feasible = np.mean([record.feasible for record in store.records()])
            print(
                f"{name} seed {seed}: {values[-1]:.4f}, {100 * feasible:.0f} % feasible", flush=True
            )


def _config(config: RunConfig, name: str, seed: int, trials: int) -> RunConfig:
    strategy, _, own = name.partition("-")
    changes = {"strategy": strategy, "trials": trials, "repair": not own}
    search = config.search.model_copy(update=changes)
    return config.model_copy(update={"search": search, "seed": seed})


def report(out: Path) -> None:
    """Print hypervolumes: mean and standard deviation over the seeds."""
    found: dict[str, list[list[float]]] = {}
    for file in sorted(out.glob("*/hypervolume.json")):
        name, _, _ = file.parent.name.rpartition("-")
        found.setdefault(name, []).append(json.loads(file.read_text()))
    if not found:
        raise SystemExit(f"{out}: no results")
    longest = max(len(values) for runs in found.values() for values in runs)
    steps = [count for count in (5, 10, 15, 20, 30, 50, 100, 150, 200, 300) if count <= longest]
    table = Table("strategy", "seeds", *map(str, steps), title="hypervolume after so many designs")
    ends = {}
    for name in (known for known in STRATEGIES if known in found):
        runs = np.array([_filled(values, longest) for values in found[name]])
        ends[name] = runs[:, -1].mean()
        cells = [f"{runs[:, s - 1].mean():.4f} ±{runs[:, s - 1].std():.4f}" for s in steps]
        table.add_row(name, str(len(runs)), *cells)
    console = Console(width=180)
    console.print(table)
    stock = {name: end for name, end in ends.items() if name.split("-")[0] in OWN}
    if stock and "epitome" in found:
        best = max(stock, key=lambda name: stock[name])
        curve = np.array([_filled(values, longest) for values in found["epitome"]])
        reached = [first_above(run, stock[best]) for run in curve]
        console.print(
            f"best sampler of Optuna: {best}, {stock[best]:.4f} after {longest}; the default "
            f"reaches that after {reached} designs"
        )


def _filled(values: Sequence[float], length: int) -> npt.NDArray[np.float64]:
    """A strategy that ends early keeps what it has."""
    return np.array([*values, *[values[-1]] * (length - len(values))])


def first_above(values: npt.NDArray[np.float64], level: float) -> int | None:
    """The number of designs at which a level is reached."""
    above = values >= level
    return int(np.argmax(above)) + 1 if above.any() else None


def main() -> None:
    """Explore, or report."""
    parser = argparse.ArgumentParser(description="Hypervolume against scored designs.")
    parser.add_argument("--run", default="demo", help="run file")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="change it")
    parser.add_argument("--out", type=Path, default=Path("runs/search_measured"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--margin", type=float, default=2.0, help="worst cost / the dense one's")
    parser.add_argument("--report", action="store_true", help="print what is stored")
    arguments = parser.parse_args()
    if not arguments.report:
        setup_logging(-1)
        explore(arguments)
    report(arguments.out)


if __name__ == "__main__":
    main()
