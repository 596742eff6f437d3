"""EPIM's claims about hardware, computed again: ResNet-50 and ResNet-101 on 256x256 crossbars.

    OMP_NUM_THREADS=1 python benchmarks/study.py costs [--networks resnet50 resnet101 --seeds 1]
    OMP_NUM_THREADS=1 python benchmarks/study.py wrapping

``costs`` compares, by the cost model alone, the dense network, fewer bits alone, one epitome size
for all layers, EPIM's evolution, and the default search under budgets of crossbars. ``wrapping``
takes a searched design and switches wrapping off. ``make study`` runs both and writes their tables
to ``--out`` as CSV.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from modelled import Result, Subject, explore
from rich.console import Console
from rich.table import Table

from epim_nas.epitome.design import Choice, Design
from epim_nas.files import atomic_path
from epim_nas.hardware.results import NetworkCost
from epim_nas.space.config import Matrix
from epim_nas.space.options import Option
from epim_nas.study.exact import minimise
from epim_nas.study.strategies import Options

optuna.logging.set_verbosity(optuna.logging.ERROR)
console = Console(width=130)

ACTIVATION_BITS = 9
BUDGETS = ((5696, 32), (1424, 9), (712, 5), (428, 3))
"""(crossbars, weight bits): at these bits each budget is a third to a half of the dense network."""
OBJECTIVES = ("latency_ns", "energy_nj", "edp_nj_ns")
TRIALS = 300
UNIFORM = Matrix(1024, 256)


@dataclass(frozen=True)
class Line:
    """A design in a table.

    Attributes:
        network: the network.
        design: how it came about.
        bits: of all weights.
        budget: crossbars that it may have, None where it is not searched.
        crossbars: crossbars that it has.
        compression: dense 32-bit crossbars over these.
        shape: the part of it from shapes.
        latency_ms: pipelined latency.
        energy_mj: energy.
        edp: energy times latency (mJ ms).
        utilization: cells that hold a weight over all (0..1).
        latency_vs_dense: its latency over the dense network's at the same bits.
        energy_vs_dense: likewise.
        evaluations: designs that were scored for it.
    """

    network: str
    design: str
    bits: int
    budget: int | None
    crossbars: int
    compression: float
    shape: float
    latency_ms: float
    energy_mj: float
    edp: float
    utilization: float
    latency_vs_dense: float
    energy_vs_dense: float
    evaluations: int = 0


def space(bits: int, wrap: bool) -> dict[str, Any]:
    """The epitome sizes of `wide` and EPIM's 1024x256, at one number of bits for all layers."""
    return {
        "schema": "epim-nas/space@1",
        "name": f"w{bits}{'' if wrap else ', no wrapping'}",
        "defaults": {
            "dense": True,
            "epitome": {
                "out_channels": [1, "1/2", "1/4"],
                "in_channels": [1, "1/2", "1/4"],
                "matrices": [str(UNIFORM)],
                "growth": [0, 1],
                "wrap": [False, True] if wrap else [False],
            },
            "weight_bits": [bits],
            "activation_bits": [ACTIVATION_BITS],
        },
        "rules": [{"position": "first", "epitome": "none"}, {"type": "fc", "epitome": "none"}],
    }


class Study:
    """The lines of one network.

    Args:
        network: its name.
    """

    def __init__(self, network: str) -> None:
        self.network = network
        self.subject = Subject(network)
        self.cost, self.layers = self.subject.setup.cost, self.subject.setup.network
        self.dense = {bits: self._uniform(bits, None) for bits in (32, 9, 7, 5, 3)}

    def _uniform(self, bits: int, size: Matrix | None, wrap: bool = False) -> Design:
        """Every layer dense, or an epitome of one size where that is smaller than the layer."""
        choices = {}
        for layer in self.layers.weighted:
            choice = None
            if size is not None:
                for wraps in (wrap, False):  # a layer without slabs to share stays as it is
                    option = Option(
                        size, wrap=wraps, weight_bits=bits, activation_bits=ACTIVATION_BITS
                    )
                    choice = choice or option.choice(layer, self.cost.chip)
            choices[layer.name] = choice or Choice(
                weight_bits=bits, activation_bits=ACTIVATION_BITS
            )
        return Design(self.network, choices)

    def line(self, text: str, bits: int, design: Design, budget: int | None = None) -> Line:
        """A design's line."""
        totals = self.cost.evaluate(design).totals
        dense = self.cost.evaluate(self.dense[bits]).totals
        full = self.cost.evaluate(self.dense[32]).totals
        return Line(
            self.network, text, bits, budget, totals.crossbars,
            full.crossbars / totals.crossbars, dense.crossbars / totals.crossbars,
            totals.latency_ns / 1e6, totals.energy_nj / 1e6,
            totals.latency_ns * totals.energy_nj / 1e12, totals.utilization,
            totals.latency_ns / dense.latency_ns, totals.energy_nj / dense.energy_nj,
        )  # fmt: skip

    def fixed(self) -> list[Line]:
        """Dense at every number of bits, and one epitome size for all layers."""
        lines = [self.line("dense", bits, design) for bits, design in self.dense.items()]
        for bits in self.dense:
            for wrap in (False, True):
                name = f"uniform {UNIFORM}{', wrapped' if wrap else ''}"
                lines.append(self.line(name, bits, self._uniform(bits, UNIFORM, wrap)))
        return lines

    def searched(self, seeds: int) -> tuple[list[Line], list[list[str]]]:
        """The best designs of both strategies, and how they compare."""
        lines, races = [], []
        for budget, bits in BUDGETS:
            for wrap in (True, False):
                subject = Subject(self.network, space(bits, wrap))
                name = "" if wrap else ", no wrapping"
                least = minimise(
                    [c.astype(float) for c in subject.problem(10**9, ["energy_nj"], 0).crossbars],
                    [],
                )
                console.print(
                    f"{self.network} w{bits}{name}: at least {least.loss:.0f} crossbars (exact)"
                )
                for objective in OBJECTIVES:
                    best: dict[str, tuple[float, Design]] = {}
                    race = []
                    for seed in range(seeds):
                        found = {
                            strategy: self._explored(subject, strategy, budget, objective, seed)
                            for strategy in ("epitome", "evolution")
                        }
                        for strategy, (result, design) in found.items():
                            value = result.best(objective)
                            if strategy not in best or value < best[strategy][0]:
                                best[strategy] = (value, design)
                        ours, theirs = found["epitome"][0], found["evolution"][0]
                        race.append(
                            (theirs.best(objective) / ours.best(objective),
                             ours.first_below(objective, theirs.best(objective)))
                        )  # fmt: skip
                    for strategy, (_, design) in best.items():
                        text = f"{strategy}, least {objective}{name}"
                        line = self.line(text, bits, design, budget)
                        lines.append(replace(line, evaluations=TRIALS))
                    ratios = [ratio for ratio, _ in race]
                    races.append([
                        self.network, str(budget), f"{bits}{name}", objective,
                        f"{min(ratios):.2f} to {max(ratios):.2f}",
                        ", ".join(str(first) for _, first in race),
                    ])  # fmt: skip
        return lines, races

    def _explored(
        self, subject: Subject, strategy: str, budget: int, objective: str, seed: int
    ) -> tuple[Result, Design]:
        problem = subject.problem(budget, [objective], seed)
        result = explore(problem, strategy, TRIALS, seed, Options(objective, population=50))
        best = int(np.argmin(np.where(result.feasible, result.values[objective], np.inf)))
        return result, subject.space.design(result.rows[best])


def costs(networks: Sequence[str], seeds: int, out: Path | None) -> None:
    """All designs of all networks."""
    lines, races = [], []
    for network in networks:
        study = Study(network)
        lines += study.fixed()
        found, raced = study.searched(seeds)
        lines += found
        races += raced
    headings = ("network", "budget", "bits", "objective", "evolution / default",
                "designs until the default has evolution's best")  # fmt: skip
    show("designs", [list(map(shown, vars(line).values())) for line in lines], list(vars(lines[0])))
    show("race", races, headings)
    if out is not None:
        save(out / "costs.csv", list(vars(lines[0])), [list(vars(line).values()) for line in lines])
        save(out / "race.csv", headings, races)


def wrapping(out: Path | None) -> None:
    """What wrapping saves in a searched design of ResNet-50, stage by stage."""
    study = Study("resnet50")
    subject = Subject("resnet50", space(3, True))
    _, design = study._explored(subject, "epitome", 428, "edp_nj_ns", 0)
    plain = replace(
        design,
        choices={
            name: replace(choice, wrap=False) if choice.wrap else choice
            for name, choice in design.choices.items()
        },
    )
    wrapped, without = study.cost.evaluate(design), study.cost.evaluate(plain)
    dense = study.cost.evaluate(study.dense[3])
    rows = []
    for stage in ("conv1", "layer1", "layer2", "layer3", "layer4", "fc", ""):
        names = [n for n, c in design.choices.items() if n.startswith(stage)]
        wraps = sum(design[name].wrap for name in names)
        rows.append([
            stage or "all", f"{wraps} of {len(names)}",
            *(f"{part(c, stage)[key]:.4g}" for key in PARTS for c in (dense, without, wrapped)),
        ])  # fmt: skip
    headings = ["stage", "wrapped", *(
        f"{key}: {which}" for key in PARTS for which in ("dense W3", "not wrapped", "wrapped")
    )]  # fmt: skip
    show("wrapping", rows, headings)
    totals = [dense.totals, without.totals, wrapped.totals]
    console.print(
        "pipelined latency (ms): " + ", ".join(f"{t.latency_ns / 1e6:.2f}" for t in totals)
    )
    if out is not None:
        save(out / "wrapping.csv", headings, rows)


PARTS = ("busy ms", "energy mJ", "buffer accesses (millions)")


def part(cost: NetworkCost, stage: str) -> dict[str, float]:
    """Busy time, energy and buffer accesses of a stage's layers."""
    layers = [layer for layer in cost.layers if layer.name.startswith(stage)]
    accesses = ("input_reads", "input_writes", "output_reads", "output_writes")
    return {
        "busy ms": sum(layer.sequential_latency_ns for layer in layers) / 1e6,
        "energy mJ": sum(layer.energy_nj["total"] for layer in layers) / 1e6,
        "buffer accesses (millions)": sum(
            layer.counts.get(name, 0.0) for layer in layers for name in accesses
        ) / 1e6,
    }  # fmt: skip


def shown(value: object) -> str:
    """A value for people."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show(title: str, rows: Sequence[Sequence[str]], headings: Sequence[str]) -> None:
    """Print a table."""
    table = Table(*headings, title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def save(path: Path, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Replace a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([headings, *rows])


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description="EPIM's claims about hardware, computed again.")
    parser.add_argument("part", choices=["costs", "wrapping"])
    parser.add_argument("--networks", nargs="+", default=["resnet50", "resnet101"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for CSV files")
    arguments = parser.parse_args()
    if arguments.part == "costs":
        costs(arguments.networks, arguments.seeds, arguments.out)
    else:
        wrapping(arguments.out)


if __name__ == "__main__":
    main()
