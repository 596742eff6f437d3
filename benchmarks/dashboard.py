"""What a dashboard of many trials costs: writing it, TensorBoard's loading, and its answers.

    OMP_NUM_THREADS=1 python benchmarks/dashboard.py [--trials 2000] [--keep DIR]

The trials are made up; what is written is what a search writes. Times are those of the queries
that TensorBoard's pages send; ``--keep`` leaves the event files, to look at them in a browser.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from epim_nas.pipeline.config import load_run_config
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.folder import RunFolder
from epim_nas.records import Baseline, TrialRecord
from epim_nas.report.tensorboard import DashboardWriter
from epim_nas.solver.design_costs import Costs

console = Console(width=100)
PORT = 16006
ALL_ROWS = json.dumps(
    {
        "experimentName": "",
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [],
        "startIndex": 0,
        "sliceSize": 100_000,
    }
).encode()
"""What the page HParams asks for."""


def write(folder: Path, trials: int) -> float:
    """Write a dashboard of made-up scores of real designs; seconds a trial."""
    config, _ = load_run_config("demo", [f"search.trials={trials}"])
    setup = Run.load(config, RunFolder(folder))
    space = setup.build_space()
    costs = Costs.of(setup.cost, space)
    rng = np.random.default_rng(0)
    sizes = np.array([len(group) for group in space.groups])
    # From small to large designs, since uniform ones are all alike.
    lean = rng.beta(0.4, 0.8, size=(trials, 1))
    rows = np.minimum((rng.random((trials, len(sizes))) ** (1 / (0.05 + lean)) * sizes), sizes - 1)
    rows = rows.astype(int)
    totals = costs(rows)
    lost = 0.02 + 2.0 / np.sqrt(totals["crossbars"]) * rng.uniform(0.8, 1.2, trials)
    limit = float(np.quantile(totals["crossbars"], 0.6))
    baseline = Baseline(0.93, 0.92, setup.dense_totals(), "made up")
    seconds = 0.0
    with DashboardWriter(
        folder, config.name, config.objectives, {"crossbars": limit}, baseline
    ) as writer:
        for number, row in enumerate(rows):
            metrics = {name: float(values[number]) for name, values in totals.items()}
            record = TrialRecord(
                number=number,
                design=space.design(row),
                metrics=metrics | {"accuracy": max(0.1, 0.94 - float(lost[number]))},
                feasible=metrics["crossbars"] <= limit,
                origin="seed" if number < 12 else "search",
                finished_at=1.7e9 + number,
                seconds=1.0,
            )
            started = time.perf_counter()
            writer.add_trial(record)
            seconds += time.perf_counter() - started
    return seconds / trials


def get(path: str, data: bytes | None = None) -> tuple[float, bytes]:
    """Seconds and content of an answer of TensorBoard."""
    started = time.perf_counter()
    headers = {"Content-Type": "application/json"} if data else {}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/{path}", data, headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        content = answer.read()
    return time.perf_counter() - started, content


def serve(folder: Path, trials: int) -> dict[str, float]:
    """Seconds until TensorBoard has loaded everything, and of its answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(PORT),
         "--host", "127.0.0.1", "--load_fast", "false"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    found: dict[str, float] = {}
    started = time.perf_counter()
    expected = sum(1 for _ in (folder / "trials").iterdir())
    try:
        rows = 0
        while rows < expected:
            time.sleep(0.5)
            try:
                taken, content = get("data/plugin/hparams/session_groups", ALL_ROWS)
            except OSError:  # it does not listen yet
                if process.poll() is not None:
                    raise
                continue
            rows = len(json.loads(content).get("sessionGroups", []))
        found["until all are loaded"] = time.perf_counter() - started
        found[f"HParams: {rows} rows"] = taken
        tag = urllib.parse.urlencode({"run": "search", "tag": "hypervolume/over_trials"})
        found["a curve"], _ = get(f"data/plugin/scalars/scalars?{tag}")
        found["list of images"], _ = get("data/plugin/images/tags")
    finally:
        process.terminate()
        process.wait()
    return found


def main() -> None:
    """Write, serve, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        table = Table("what", "seconds")
        table.add_row("writing a trial", f"{write(folder, arguments.trials):.4f}")
        for what, seconds in serve(folder, arguments.trials).items():
            table.add_row(what, f"{seconds:.2f}")
    console.print(f"{arguments.trials} trials")
    console.print(table)


if __name__ == "__main__":
    main()
