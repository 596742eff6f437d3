"""Which learning rate repairs which damage.

The exact optima of the additive score at several compressions are fine-tuned at several peak rates.
Printed: the damage before training (KL from the float network, nats), what the package's rule would
take (`epim_nas.supernet.damage.learning_rate_for`), and the validation and test accuracy of every
rate. It shows whether the anchors of the rule fit a network.

    OMP_NUM_THREADS=1 python benchmarks/learning_rate.py [--images FOLDER --weights FILE]
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from lab import Lab, Records
from subjects import NETWORKS, Source

from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.supernet.damage import learning_rate_for, measure_damage
from epim_nas.supernet.training import TrainConfig


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description="Learning rate against damage.")
    Source.add_arguments(parser, cache="runs/learning_rate")
    parser.add_argument("--network", default="resnet20", choices=list(NETWORKS))
    parser.add_argument("--compressions", nargs="+", type=float, default=[8, 12, 20, 30, 45])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.003, 0.01, 0.03, 0.1])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--space", help="search space; by default narrow for ResNet-20, else wide")
    arguments = parser.parse_args()
    source = Source.of(arguments)
    space = arguments.space or ("narrow" if arguments.network == "resnet20" else "wide")
    recipe = TrainConfig(arguments.steps, 128, warmup=0.05, distillation=0.5)
    lab = Lab(source, arguments.network, "xbar_64", space, recipe)
    records = Records(source.cache / f"learning_rate-{arguments.network}.jsonl")
    print(f"{'':12} {'damage':>8} {'rule':>8}  validation / test top-1 % at each rate")
    print(" " * 31 + " ".join(f"{head!s:>13}" for head in ["before", *arguments.rates]))
    for compression in arguments.compressions:
        problem = lab.problem(int(lab.setup.dense_crossbars / compression))
        row = FeasibleSolver(problem).solve(problem.sensitivity).row
        network = lab.supernet.extract(row)
        before = lab.measure(network)
        damage = measure_damage(network, lab.setup.model, lab.calibration)
        cells = [f"{100 * before.accuracy:13.1f}"]
        for rate in arguments.rates:
            key = {"compression": compression, "rate": rate, "steps": arguments.steps}
            if not records.find(**key):
                lab.recipe = replace(recipe, lr=rate)
                tuned = lab.tune(lab.supernet.extract(row), seed=1)
                records.add({**key, "damage": damage, **tuned.record})
            record = records.find(**key)[0]
            both = (record["after_accuracy"], record["test_accuracy"])
            cells.append(f"{100 * both[0]:6.1f} / {100 * both[1]:4.1f}")
        head = f"{compression:g}x ({problem.weight(row)})"
        rule = learning_rate_for(damage)
        print(f"{head:12} {damage:8.3f} {rule:8.4f}  {' '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
