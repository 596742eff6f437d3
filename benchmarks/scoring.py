"""What one evaluation of a design with shared weights costs, against the dense network's.

Both are: recalibrate batch norm, then measure on the validation images. The dense network is the
one that the supernet was made of, without quantizers and epitomes. They run in turn, and ratios are
taken within a round, so that a noisy machine disturbs both alike.

    OMP_NUM_THREADS=1 python benchmarks/scoring.py [--images FOLDER --weights FILE] [--cache DIR]
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import numpy as np
from lab import Lab
from subjects import Source

from epim_nas.pipeline.measure import make_scorer
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.supernet.evaluation import evaluate, recalibrate_batch_norm
from epim_nas.supernet.training import TrainConfig


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description="Cost of scoring a design.")
    Source.add_arguments(parser, cache="runs/scoring")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    lab = Lab(Source.of(arguments), "resnet20", "xbar_64", "narrow", TrainConfig(1, 128))
    dense = copy.deepcopy(lab.setup.model)
    scorer = make_scorer(lab.setup, lab.supernet, dense)
    images = sum(len(labels) for _, labels in lab.validation)
    print(f"{images} validation images, {sum(len(y) for _, y in lab.calibration)} to recalibrate")

    def dense_evaluation() -> None:
        recalibrate_batch_norm(dense, lab.calibration)
        evaluate(dense, lab.validation)

    for compression in (12, 20, 30, 45):
        problem = lab.problem(int(lab.setup.dense_crossbars / compression))
        row = FeasibleSolver(problem).solve(problem.sensitivity).row
        epitomes = sum(c.shape is not None for c in lab.space.design(row).choices.values())
        scorer.score(row)
        ratios = []
        for _ in range(arguments.rounds):
            base = seconds(dense_evaluation)
            ratios.append(seconds(lambda row=row: scorer.score(row)) / base)  # type: ignore[misc]
        print(
            f"{compression}x, {epitomes} epitomes: {np.median(ratios):.2f} of the dense network's "
            f"time ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
