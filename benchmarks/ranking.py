"""How well the scores of a search rank designs, against the accuracy after a brief fine-tuning.

Two sets of designs: some across budgets (half of them random, half near the exact front of the
additive score), and some that all have one budget (near the front, further and further from it).
Every design is fine-tuned on its own from the same start by one recipe. Printed for each score:
Spearman's and Kendall's correlation with the recalibrated accuracy before training, and with test
accuracy and test loss after it. The last line says how well the validation accuracy of the very
same trained networks ranks them: no score can be expected to do better.

    OMP_NUM_THREADS=1 python benchmarks/ranking.py [--images FOLDER --weights FILE] [--cache DIR]
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from lab import Lab, Records
from scipy.stats import kendalltau, spearmanr
from subjects import NETWORKS, Source

from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.knapsack import Knapsack
from epim_nas.solver.problem import SearchProblem
from epim_nas.solver.ranking import expected_rank
from epim_nas.supernet.evaluation import Score, evaluate
from epim_nas.supernet.sandwich import Sandwich
from epim_nas.supernet.sensitivity import METHODS
from epim_nas.supernet.supernet import Supernet
from epim_nas.supernet.training import TrainConfig, train

ACROSS, FIXED = "across budgets", "one budget"
FIXED_COMPRESSION = 30


def draw(lab: Lab, across: int, fixed: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The designs: (set, row).

    Near the front means the exact optimum of the additive scores, each multiplied by exp(noise).
    """
    rng, dense = np.random.default_rng(5), lab.setup.dense_crossbars
    top = int(dense / FIXED_COMPRESSION)

    def near_front(budget: int, noise: float) -> tuple[int, ...]:
        problem = lab.problem(budget)
        losses = [
            np.maximum(score, 1e-9) * np.exp(rng.normal(0, noise, len(score)))
            for score in problem.sensitivity
        ]
        return FeasibleSolver(problem).solve(losses).row

    for number in range(across):
        budget = int(dense / np.exp(rng.uniform(np.log(13), np.log(45))))
        yield (
            ACROSS,
            lab.random_row(budget, rng)
            if number % 2
            else near_front(budget, (0.5, 1.5)[number % 4 // 2]),
        )
    for number in range(fixed):
        yield FIXED, near_front(top, (0.3, 0.8, 1.5, 2.5)[number % 4])


def fine_tuned(lab: Lab, records: Records, across: int, fixed: int) -> None:
    """Fine-tune every design that is not in the records."""
    for number, (kind, row) in enumerate(draw(lab, across, fixed)):
        design = [str(choice) for choice in lab.space.design(row).choices.values()]
        if records.find(number=number, design=design):
            continue
        started = time.monotonic()
        network = lab.supernet.extract(row)
        before = lab.measure(network)
        train(network, lab.setup.data, lab.recipe, seed=1, device="cpu", teacher=lab.setup.model)
        after, test = lab.measure(network), evaluate(network, lab.test)
        record = {
            "number": number,
            "set": kind,
            "row": [int(index) for index in row],
            "design": design,
            "crossbars": lab.problem(10**9).weight(row),
        }
        for name, score in (("before", before), ("validation", after), ("test", test)):
            record |= {f"{name}_accuracy": score.accuracy, f"{name}_loss": score.loss}
        records.add(record)
        print(
            f"{number} {kind}, {record['crossbars']} crossbars: {100 * before.accuracy:.1f} % -> "
            f"{100 * after.accuracy:.1f} %, test {100 * test.accuracy:.1f} % "
            f"({time.monotonic() - started:.0f} s)",
            flush=True,
        )


def shared(lab: Lab, steps: int, around: str) -> Supernet:
    """A supernet that was trained briefly."""
    supernet = copy.deepcopy(lab.supernet)
    problem = lab.problem(int(lab.setup.dense_crossbars / 13))
    seeds = seeds_across(problem)
    sandwich = Sandwich(FeasibleSolver(problem), seeds, 0, around=around)  # type: ignore[arg-type]
    config = TrainConfig(steps, 128, lr=0.01, warmup=0.05, distillation=1.0)
    train(
        supernet, lab.setup.data, config, seed=2, device="cpu", teacher=lab.setup.model,
        variants=lambda step: (partial(supernet.select, row) for row in sandwich.designs(step)),
    )  # fmt: skip
    supernet.select(None)
    return supernet


def seeds_across(problem: SearchProblem) -> list[tuple[int, ...]]:
    """The exact front over budgets, from a third of the budget on."""
    most = int(problem.limits["crossbars"])
    budgets = np.unique(np.geomspace(most * 0.3, most, 12).astype(int))
    solved = Knapsack(problem.sensitivity, problem.crossbars, most)
    return [solved.solve(int(budget)).row for budget in budgets]


def measured(lab: Lab, supernet: Supernet, rows: Sequence[Sequence[int]]) -> list[Score]:
    """Validation scores of designs with shared weights, as a search measures them."""
    return [lab.score(supernet, row) for row in rows]


def correlation(score: Sequence[float], truth: Sequence[float]) -> str:
    """Spearman's and Kendall's coefficient."""
    return f"{spearmanr(score, truth).statistic:6.3f} {kendalltau(score, truth).statistic:6.3f}"


def report(
    lab: Lab, records: Records, steps: int, arounds: Sequence[str], methods: Sequence[str]
) -> None:
    """Print the correlations."""
    rows = [record["row"] for record in records.rows]
    scores: dict[str, list[float]] = {
        "crossbars": [record["crossbars"] for record in records.rows],
        **{
            f"table {method}": [
                -sum(score[i] for score, i in zip(table, row, strict=True)) for row in rows
            ]
            for method, table in lab.tables(methods).items()
        },
        "recalibrated accuracy": [record["before_accuracy"] for record in records.rows],
        "recalibrated loss": [-record["before_loss"] for record in records.rows],
    }
    additive = [-score for score in scores[f"table {lab.setup.config.sensitivity.method}"]]

    def ranks(losses: list[float]) -> list[float]:
        return [
            expected_rank({"sensitivity": s, "loss": loss})
            for s, loss in zip(additive, losses, strict=True)
        ]

    scores["expected rank, recalibrated"] = ranks([r["before_loss"] for r in records.rows])
    for around in arounds:
        found = measured(lab, shared(lab, steps, around), rows)
        scores[f"supernet {around} accuracy"] = [score.accuracy for score in found]
        scores[f"supernet {around} loss"] = [-score.loss for score in found]
        scores[f"expected rank, supernet {around}"] = ranks([score.loss for score in found])
    scores["validation accuracy after training"] = [r["validation_accuracy"] for r in records.rows]
    truths = {
        "recalibrated": [record["before_accuracy"] for record in records.rows],
        "trained, accuracy": [record["test_accuracy"] for record in records.rows],
        "trained, loss": [-record["test_loss"] for record in records.rows],
    }
    print(f"\n{'Spearman, Kendall against':36} " + " ".join(f"{name:>18}" for name in truths))
    for kind in (ACROSS, FIXED):
        picked = [n for n, record in enumerate(records.rows) if record["set"] == kind]
        if len(picked) < 3:
            continue
        print(f"{len(picked)} designs, {kind}")
        for name, values in scores.items():
            cells = [
                correlation([values[n] for n in picked], [truth[n] for n in picked])
                for truth in truths.values()
            ]
            print(f"  {name:34} " + " ".join(f"{cell:>18}" for cell in cells), flush=True)


def main() -> None:
    """Fine-tune the designs and print the table."""
    parser = argparse.ArgumentParser(description="How well scores rank designs.")
    Source.add_arguments(parser, cache="runs/ranking")
    parser.add_argument("--network", default="resnet20", choices=list(NETWORKS))
    parser.add_argument("--across", type=int, default=32, help="designs across budgets")
    parser.add_argument("--fixed", type=int, default=20, help="designs at one budget")
    parser.add_argument("--steps", type=int, default=150, help="of a fine-tuning")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--report", action="store_true", help="only on what is in the cache")
    parser.add_argument("--supernet-steps", type=int, default=200)
    parser.add_argument("--around", nargs="*", default=["front", "uniform"])
    parser.add_argument("--tables", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--chip", default="xbar_64")
    parser.add_argument("--space", help="search space; by default narrow for ResNet-20, else wide")
    arguments = parser.parse_args()
    source = Source.of(arguments)
    space = arguments.space or ("narrow" if arguments.network == "resnet20" else "wide")
    recipe = TrainConfig(arguments.steps, 128, lr=arguments.lr, warmup=0.05, distillation=0.5)
    lab = Lab(source, arguments.network, arguments.chip, space, recipe)
    records = Records(source.cache / f"ranking-{arguments.network}.jsonl")
    if not arguments.report:
        fine_tuned(lab, records, arguments.across, arguments.fixed)
    report(lab, records, arguments.supernet_steps, arguments.around, arguments.tables)


if __name__ == "__main__":
    main()
