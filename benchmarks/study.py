"""EPIM's claims about hardware, computed again: ResNet-50 and ResNet-101 on 256x256 crossbars.

    OMP_NUM_THREADS=1 python benchmarks/study.py costs [--networks resnet50 resnet101 --seeds 1]
    OMP_NUM_THREADS=1 python benchmarks/study.py wrapping
    OMP_NUM_THREADS=1 python benchmarks/study.py bounds [--networks resnet50 resnet101]
    python benchmarks/study.py figures

``costs`` compares, by the cost model alone, the dense network, fewer bits alone, one epitome size
for all layers, EPIM's evolution, and the default search under budgets of crossbars, against lower
bounds of what any design can reach. ``bounds`` prints these alone, in seconds. ``wrapping`` takes a
searched design and switches wrapping off. They write all numbers to ``--out`` as CSV and print the
tables of docs/results.md; ``figures`` draws what is there. ``make hardware`` runs all of it.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from modelled import Result, Subject, explore
from rich.console import Console
from study_tables import OBJECTIVES, cost_tables, stages_table

from epim_nas import EpitomeShape
from epim_nas.epitome.design import Choice, Design
from epim_nas.files import atomic_path
from epim_nas.hardware.lower_bounds.floors import Floors
from epim_nas.hardware.results import NetworkCost
from epim_nas.solver.lower_bounds import Bounds
from epim_nas.solver.problem import SearchProblem
from epim_nas.space.config import Matrix
from epim_nas.study.strategies import Options

optuna.logging.set_verbosity(optuna.logging.ERROR)
console = Console(width=130)

ACTIVATION_BITS = 9
BUDGETS = ((5696, 32), (1424, 9), (712, 5), (428, 3))
"""(crossbars, weight bits): at these bits each budget is a third to a half of the dense network."""
BITS = (32, 9, 7, 5, 3, 2)
"""Of the networks that no search has made."""
UNITS = {"latency_ns": 1e6, "energy_nj": 1e6, "edp_nj_ns": 1e12}
"""To ms, mJ and mJ ms."""
NAMES = {"epitome": "searched", "evolution": "evolved"}
TRIALS = 300
UNIFORM = Matrix(1024, 256)


@dataclass(frozen=True)
class Line:
    """A design in a table.

    Attributes:
        network: the network.
        design: how it came about.
        objective: what it was searched for.
        wrapping: whether the space allows it, or the design has it.
        bits: of all weights.
        budget: crossbars that it may have, None where it is not searched.
        crossbars: crossbars that it has.
        compression: dense 32-bit crossbars over these.
        shape: the part of it from shapes.
        fewer_bits: the part of it from fewer bits.
        latency_ms: pipelined latency.
        energy_mj: energy.
        edp: energy times latency (mJ ms).
        utilization: cells that hold a weight over all (0..1).
        latency_vs_dense: its latency over the dense network's at the same bits.
        energy_vs_dense: likewise.
        bound: no design of the space within the budget has less of the objective.
        gap: how much more the design has, relative to the bound.
        evaluations: designs that were scored for it.
        seeds: searches of which it is the best.
    """

    network: str
    design: str
    objective: str
    wrapping: bool
    bits: int
    budget: int | None
    crossbars: int
    compression: float
    shape: float
    fewer_bits: float
    latency_ms: float
    energy_mj: float
    edp: float
    utilization: float
    latency_vs_dense: float
    energy_vs_dense: float
    bound: float | None = None
    gap: float | None = None
    evaluations: int = 0
    seeds: int = 0


@dataclass(frozen=True)
class Race:
    """How the default compares with the bound and with evolution, over the seeds.

    Attributes:
        network: the network.
        budget: most crossbars.
        bits: of all weights.
        wrapping: whether the space allows it.
        objective: what is optimised.
        bound: no design has less (ms, mJ or mJ ms, as all values).
        least: the default's value with its best seed.
        most: with its worst seed.
        least_gap: how much more than the bound that is, relative, with the best seed.
        most_gap: with the worst seed.
        least_ratio: evolution's value over the default's with the same seed, the least.
        most_ratio: the greatest.
        designs: per seed, designs that the default had scored when it was at evolution's end.
    """

    network: str
    budget: int
    bits: int
    wrapping: bool
    objective: str
    bound: float
    least: float
    most: float
    least_gap: float
    most_gap: float
    least_ratio: float
    most_ratio: float
    designs: str


def bounds_of(subject: Subject, budget: int) -> dict[str, float]:
    """Objective -> what no design of a space has less of."""
    bounds = Bounds(subject.space, Floors(subject.costs.model), subject.crossbars, budget)
    return {
        "latency_ns": bounds.latency_ns,
        "energy_nj": bounds.energy_nj.certificate.bound,
        "edp_nj_ns": bounds.product,
    }


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
        self.dense = {bits: self._uniform(bits, None) for bits in BITS}

    def _uniform(self, bits: int, size: Matrix | None, wrap: bool = False) -> Design:
        """Every layer dense, or an epitome of one size where that is smaller than the layer.

        As in the searched spaces, the first and the last layer stay dense. Where a layer has fewer
        channels than the size, the epitome has as many as the layer. A layer without slabs to
        share is not wrapped.
        """
        first, *_, last = self.layers.weighted
        choices = {}
        for layer in self.layers.weighted:
            choice = None
            if size is not None and layer not in (first, last):
                out_channels, in_channels, height, width = layer.weight_shape
                shape = EpitomeShape(
                    min(size.columns, out_channels),
                    min(size.rows // (height * width), in_channels),
                    height,
                    width,
                )
                if shape.as_tuple != layer.weight_shape:
                    wraps = wrap and shape.out_channels < out_channels
                    choice = Choice(shape, wraps, weight_bits=bits, activation_bits=ACTIVATION_BITS)
            choices[layer.name] = choice or Choice(
                weight_bits=bits, activation_bits=ACTIVATION_BITS
            )
        return Design(self.network, choices)

    def line(
        self,
        text: str,
        bits: int,
        design: Design,
        budget: int | None = None,
        objective: str = "",
        wrapping: bool = False,
    ) -> Line:
        """A design's line."""
        totals = self.cost.evaluate(design).totals
        dense = self.cost.evaluate(self.dense[bits]).totals
        full = self.cost.evaluate(self.dense[32]).totals
        return Line(
            self.network, text, objective, wrapping, bits, budget, totals.crossbars,
            full.crossbars / totals.crossbars, dense.crossbars / totals.crossbars,
            full.crossbars / dense.crossbars,
            totals.latency_ns / 1e6, totals.energy_nj / 1e6,
            totals.latency_ns * totals.energy_nj / 1e12, totals.utilization,
            totals.latency_ns / dense.latency_ns, totals.energy_nj / dense.energy_nj,
        )  # fmt: skip

    def fixed(self) -> list[Line]:
        """Dense at every number of bits, and one epitome size for all layers."""
        lines = [self.line("dense", bits, design) for bits, design in self.dense.items()]
        for bits in self.dense:
            for wrap in (False, True):
                design = self._uniform(bits, UNIFORM, wrap)
                lines.append(self.line(f"uniform {UNIFORM}", bits, design, wrapping=wrap))
        return lines

    def searched(self, seeds: int) -> tuple[list[Line], list[Race]]:
        """The best designs of both strategies, and how they compare with each other and bounds."""
        lines, races = [], []
        for budget, bits in BUDGETS:
            for wrap in (True, False):
                subject = Subject(self.network, space(bits, wrap))
                bounds = bounds_of(subject, budget)
                for objective in OBJECTIVES:
                    best: dict[str, tuple[float, Design]] = {}
                    ratios, firsts, ours = [], [], []
                    for seed in range(seeds):
                        problem = subject.problem(budget, [objective], seed)
                        found = {
                            strategy: explored(subject, problem, strategy, seed)
                            for strategy in ("epitome", "evolution")
                        }
                        for strategy, (result, design) in found.items():
                            value = result.best(objective)
                            if strategy not in best or value < best[strategy][0]:
                                best[strategy] = (value, design)
                        default, theirs = found["epitome"][0], found["evolution"][0].best(objective)
                        ours.append(default.best(objective))
                        ratios.append(theirs / ours[-1])
                        firsts.append(default.first_below(objective, theirs) or 0)
                    for strategy, (value, design) in best.items():
                        line = self.line(NAMES[strategy], bits, design, budget, objective, wrap)
                        lines.append(replace(
                            line, bound=bounds[objective] / UNITS[objective],
                            gap=value / bounds[objective] - 1, evaluations=TRIALS, seeds=seeds,
                        ))  # fmt: skip
                    gaps = [value / bounds[objective] - 1 for value in ours]
                    races.append(Race(
                        self.network, budget, bits, wrap, objective,
                        bounds[objective] / UNITS[objective],
                        min(ours) / UNITS[objective], max(ours) / UNITS[objective],
                        min(gaps), max(gaps), min(ratios), max(ratios),
                        " ".join(map(str, firsts)),
                    ))  # fmt: skip
                    show_race(races[-1])
        return lines, races


def explored(
    subject: Subject, problem: SearchProblem, strategy: str, seed: int
) -> tuple[Result, Design]:
    """What a strategy finds, and the best design of it, for a problem's one objective."""
    (objective,) = problem.objectives
    result = explore(problem, strategy, TRIALS, seed, Options(objective, population=50))
    best = int(np.argmin(np.where(result.feasible, result.values[objective], np.inf)))
    return result, subject.space.design(result.rows[best])


def costs(networks: Sequence[str], seeds: int, out: Path) -> None:
    """All designs of all networks."""
    for network in networks:
        study = Study(network)
        lines = study.fixed()
        found, races = study.searched(seeds)
        lines += found
        save_all(out / f"{network}_designs.csv", lines)
        save_all(out / f"{network}_race.csv", races)
        print_tables(cost_tables(out, network))


def bounds(networks: Sequence[str]) -> None:
    """What no design has less of, and the least crossbars of all."""
    for network in networks:
        for budget, bits in BUDGETS:
            for wrap in (True, False):
                subject = Subject(network, space(bits, wrap))
                least = sum(int(column.min()) for column in subject.crossbars)
                found = bounds_of(subject, budget)
                values = [f"{name} {found[name] / UNITS[name]:.4g}" for name in OBJECTIVES]
                console.print(
                    f"{network}, {bits} bits{'' if wrap else ', no wrapping'}: least crossbars "
                    f"{least}; with {budget}: {', '.join(values)}"
                )


def show_race(race: Race) -> None:
    """Print a comparison as soon as it is there: a study takes a while."""
    console.print(
        f"{race.network} {race.budget} W{race.bits}{'' if race.wrapping else ', no wrapping'}, "
        f"{race.objective}: {race.least:.4g} to {race.most:.4g}, "
        f"{100 * race.least_gap:.1f} to {100 * race.most_gap:.1f} % above the bound; evolution "
        f"{race.least_ratio:.2f} to {race.most_ratio:.2f} times as much; designs {race.designs}",
        soft_wrap=True,
    )


def wrapping(out: Path) -> None:
    """What wrapping saves in a searched design of ResNet-50, by stage and by layer."""
    study = Study("resnet50")
    subject = Subject("resnet50", space(3, True))
    _, design = explored(subject, subject.problem(428, ["edp_nj_ns"], 0), "epitome", 0)
    plain = replace(
        design,
        choices={
            name: replace(choice, wrap=False) if choice.wrap else choice
            for name, choice in design.choices.items()
        },
    )
    found = [study.cost.evaluate(d) for d in (study.dense[3], plain, design)]
    headings = [f"{key}: {which}" for key in PARTS for which in ("dense", "not wrapped", "wrapped")]
    stages, layers = [], []
    for stage in ("conv1", "layer1", "layer2", "layer3", "layer4", "fc", ""):
        names = [n for n, c in design.choices.items() if n.startswith(stage)]
        wraps = sum(design[name].wrap for name in names)
        parts = [part(cost, lambda name, stage=stage: name.startswith(stage)) for cost in found]
        stages.append([
            stage or "all", f"{wraps} of {len(names)}",
            *(f"{p[key]:.4g}" for key in PARTS for p in parts),
        ])  # fmt: skip
    for name, choice in design.choices.items():
        parts = [part(cost, name.__eq__) for cost in found]
        shape = "dense" if choice.shape is None else "x".join(map(str, choice.shape.as_tuple))
        layers.append([
            name, shape, choice.wrap, *(f"{p[key]:.4g}" for key in PARTS for p in parts),
        ])  # fmt: skip
    console.print(
        "pipelined latency (ms), dense, not wrapped, wrapped: "
        + ", ".join(f"{cost.totals.latency_ns / 1e6:.2f}" for cost in found)
    )
    save(out / "wrapping_stages.csv", ["stage", "wrapped", *headings], stages)
    save(out / "wrapping_layers.csv", ["layer", "epitome", "wrapped", *headings], layers)
    print_tables([stages_table(out)])


PARTS = ("busy ms", "energy mJ", "buffer accesses (millions)")


def print_tables(tables: Sequence[str]) -> None:
    """Print Markdown, as it is on the page."""
    for table in tables:
        print(f"\n{table}", flush=True)


def part(cost: NetworkCost, belongs: Callable[[str], bool]) -> dict[str, float]:
    """Busy time, energy and buffer accesses of the layers whose names belong."""
    layers = [layer for layer in cost.layers if belongs(layer.name)]
    accesses = ("input_reads", "input_writes", "output_reads", "output_writes")
    return {
        "busy ms": sum(layer.sequential_latency_ns for layer in layers) / 1e6,
        "energy mJ": sum(layer.energy_nj["total"] for layer in layers) / 1e6,
        "buffer accesses (millions)": sum(
            layer.counts.get(name, 0.0) for layer in layers for name in accesses
        ) / 1e6,
    }  # fmt: skip


def save(path: Path, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Replace a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([headings, *rows])


def save_all(path: Path, lines: Sequence[Line] | Sequence[Race]) -> None:
    """Replace a CSV file by the fields of lines."""
    rows = [
        [f"{value:.6g}" if isinstance(value, float) else value for value in vars(line).values()]
        for line in lines
    ]
    save(path, list(vars(lines[0])), rows)


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description="EPIM's claims about hardware, computed again.")
    parser.add_argument("part", choices=["costs", "bounds", "wrapping", "figures"])
    parser.add_argument("--networks", nargs="+", default=["resnet50", "resnet101"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, default=Path("build/study"), help="folder for CSV files and figures"
    )
    arguments = parser.parse_args()
    if arguments.part == "costs":
        costs(arguments.networks, arguments.seeds, arguments.out)
    elif arguments.part == "bounds":
        bounds(arguments.networks)
    elif arguments.part == "wrapping":
        wrapping(arguments.out)
    else:
        from study_figures import designs_figure, wrapping_figure

        folder = arguments.out
        designs_figure(folder / "resnet50_designs.csv", folder / "study_designs.png")
        wrapping_figure(folder / "wrapping_layers.csv", folder / "study_wrapping.png", PARTS)


if __name__ == "__main__":
    main()
