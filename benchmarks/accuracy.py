"""Accuracy at equal crossbars: the searched design against what one would do without a search.

At several budgets, given as crossbar compression against the dense 32-bit network, the best design
that each method finds is fine-tuned by one recipe with several seeds:

    searched   designs at and around the exact optimum of the additive score, scored on the
               untrained supernet
    bits       the exact optimum over bit-widths alone, every layer dense
    uniform    one relative epitome shape and one bit-width for all layers
    pruned     structured channel pruning to the same crossbars, one bit-width
    crossbars  pruning of the weakest whole crossbars, one bit-width
    random     random designs of the space, repaired into the budget

Where a method has several candidates, the best by recalibrated validation loss (of the search, by
expected rank) are trained briefly, and the best of them by validation accuracy goes on. Validation
images choose, test images are only reported. Everything a budget compares is measured in one run.
Results are kept in the cache folder: an interrupted run goes on, and ``--seeds`` may be raised.

    OMP_NUM_THREADS=1 python benchmarks/accuracy.py [--images FOLDER --weights FILE] [--cache DIR]

The design of the first seed and its weights are kept as well; with the ``run.yaml`` beside them
``epim-nas evaluate --simulate`` measures a ResNet-20 on simulated crossbars.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from lab import Lab, Records, mean_and_spread, results
from methods import Candidate, Study, selected
from subjects import NETWORKS, Source

from epim_nas.files import atomic_path
from epim_nas.models.weights import save_weights
from epim_nas.solver.knapsack import Infeasible
from epim_nas.supernet.training import TrainConfig

OUT_OF_REACH = "reaches no such budget"
METHODS = ("searched", "bits", "uniform", "pruned", "crossbars", "random")


def measure(
    study: Study, name: str, compression: float, methods: Sequence[str], seeds: int,
    records: Records, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Measure what is not yet in the records."""
    budget = int(study.lab.setup.dense_crossbars / compression)
    for method in methods:
        key = {"network": name, "compression": compression, "budget": budget, "method": method}
        chosen: Candidate | None = None
        for seed in range(seeds):
            if records.find(**key, seed=seed) or records.find(**key, text=OUT_OF_REACH):
                continue
            started = time.monotonic()
            if chosen is None or method == "random":
                # The same candidate for every seed; what is random draws another one.
                drawn_by = seed if method == "random" else 0
                try:
                    candidates = study.propose(method, budget, drawn_by)
                except Infeasible:
                    records.add({**key, "seed": seed, "text": OUT_OF_REACH})
                    continue
                chosen = selected(study.lab, candidates, drawn_by)
            tuned = study.lab.tune(chosen.network(), seed)
            if seed == 0 and chosen.design is not None:
                folder = study.lab.folder.path / "networks"
                folder.mkdir(exist_ok=True)
                chosen.design.save(folder / f"{method}-{compression:g}x.yaml")
                save_weights(tuned.network, folder / f"{method}-{compression:g}x.safetensors")
            found = {"crossbars": chosen.crossbars, "text": chosen.text, **tuned.record}
            records.add({**key, "seed": seed, **found})
            scores = " ".join(f"{k} {100 * v:.1f}" for k, v in tuned.record.items() if "acc" in k)
            say(f"{name} {compression:g}x {method}: {scores} ({chosen.text}, "
                f"{time.monotonic() - started:.0f} s)")  # fmt: skip


def table(records: Records, name: str) -> str:
    """Test accuracy by method and compression, as Markdown."""
    rows = records.find(network=name)
    budgets = sorted({(row["compression"], row["budget"]) for row in rows})
    lines = [
        f"{name}: test top-1 in per cent, mean and half the range over the seeds; crossbars",
        "",
        " | ".join(["| method", *(f"{c:g}x, at most {b} crossbars" for c, b in budgets)]) + " |",
        "|---|" + "---:|" * len(budgets),
    ]
    for method in METHODS:
        if not records.find(network=name, method=method):
            continue
        cells = [f"| {method}"]
        for compression, _ in budgets:
            found = records.find(network=name, compression=compression, method=method)
            done = [row for row in found if "test_accuracy" in row]
            if done:
                top = mean_and_spread(row["test_accuracy"] for row in done)
                cells.append(f"{top}; {np.mean([row['crossbars'] for row in done]):.0f}")
            else:
                cells.append("out of reach" if found else "")
        lines.append(" | ".join(cells) + " |")
    return "\n".join(lines)


def draw(panels: Sequence[tuple[str, Records, float]], path: Path) -> None:
    """Test accuracy against compression: a panel a network, a line a method.

    Bars reach from the worst to the best seed. What falls below half of the float network's
    accuracy is left out.

    Args:
        panels: (network, its results, test accuracy in floating point).
        path: the picture.
    """
    size = (7 * len(panels), 4.2)
    drawing, row = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axes, (name, records, dense) in zip(row[0], panels, strict=True):
        axes.axhline(100 * dense, color="grey", linestyle=":", label="float network")
        for number, method in enumerate(METHODS):
            points = []
            for compression in sorted({found["compression"] for found in records.rows}):
                rows = records.find(network=name, compression=compression, method=method)
                tests = [100 * found["test_accuracy"] for found in rows if "test_accuracy" in found]
                if tests and np.mean(tests) > 50 * dense:
                    points.append((compression, np.mean(tests), min(tests), max(tests)))
            if points:
                x, mean, low, high = np.array(points).T
                bars = [mean - low, high - mean]
                axes.errorbar(
                    x, mean, bars, label=method, color=f"C{number}", marker="o", capsize=3
                )
        axes.set(xlabel="compression in crossbars (x)", ylabel="test top-1 (%)", title=name)
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    with atomic_path(path) as temporary:
        drawing.savefig(temporary, format="png", dpi=110)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description="Accuracy at equal crossbars.")
    Source.add_arguments(parser, cache="runs/accuracy")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--compressions", nargs="+", type=float, default=[20, 30, 45, 60])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--chip", default="xbar_64")
    parser.add_argument("--space", help="search space; by default narrow for ResNet-20, else wide")
    arguments = parser.parse_args()
    source = Source.of(arguments)
    recipe = TrainConfig(arguments.steps, 128, lr=arguments.lr, warmup=0.05, distillation=0.5)
    panels = []
    for name in arguments.networks:
        space = arguments.space or ("narrow" if name == "resnet20" else "wide")
        study = Study(Lab(source, name, arguments.chip, space, recipe))
        records = results(study.lab, "accuracy")
        for compression in arguments.compressions:
            measure(
                study, name, compression, arguments.methods, arguments.seeds, records,
                lambda text: print(text, flush=True),
            )  # fmt: skip
        print(table(records, name), flush=True)
        dense = study.lab.dense_accuracy
        print(f"float network: {100 * dense:.2f} %, {study.lab.setup.dense_crossbars} crossbars")
        panels.append((name, records, dense))
    draw(panels, source.cache / "accuracy.png")


if __name__ == "__main__":
    main()
