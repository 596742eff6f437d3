"""The designs that are scored first."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from torch import nn

from epim_nas.pipeline.context import Run
from epim_nas.solver.exact_front import exact_seeds
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.space.space import Row
from epim_nas.study.strategies import find_strategy
from epim_nas.supernet.descent import Descent, gradient_rows
from epim_nas.supernet.evaluation import resolve_device, to_device
from epim_nas.supernet.relaxation import Relaxation
from epim_nas.supernet.supernet import Supernet

log = logging.getLogger(__name__)

_GRADIENT_BATCHES = 16
"""Batches of augmented training images that the gradient strategy takes in turn."""


def exact_designs(run: Run, solver: FeasibleSolver) -> list[Row]:
    """The exact solutions that the search starts from.

    The strategy that scores nothing else gets as many as there are trials.
    """
    search, problem = run.config.search, solver.problem
    alone = search.strategy == "exact"
    seeds = exact_seeds(solver, search.trials if alone else search.seeds)
    rows = [seed.row for seed in seeds]
    lost = [problem.total(problem.sensitivity, row) for row in rows]
    stand_in = sum(seed.stands_in for seed in seeds)
    proven = sum(seed.certificate.optimal and not seed.stands_in for seed in seeds)
    log.info(
        "%d exact seeds (%d proven optimal for their trade-off, %d by stand-ins of energy and "
        "latency): sensitivity %.4g to %.4g, %d to %d crossbars",
        len(seeds), proven, stand_in, min(lost), max(lost),
        min(map(problem.weight, rows)), max(map(problem.weight, rows)),
    )  # fmt: skip
    for number, seed in enumerate(seeds):
        log.debug(
            "seed %d: sensitivity %.4g, %d crossbars; least weighted sum of %s%s%s: %s",
            number,
            lost[number],
            problem.weight(seed.row),
            ", ".join(f"{weight:.3g} {name}" for name, weight in seed.weights.items()),
            " by stand-ins" if seed.stands_in else "",
            f", no layer slower than {seed.cap:.4g} ns" if math.isfinite(seed.cap) else "",
            seed.certificate,
        )
    return rows


def first_designs(
    run: Run,
    supernet: Supernet,
    teacher: nn.Module,
    solver: FeasibleSolver,
    seeds: Sequence[Row],
) -> Sequence[Row]:
    """What the strategy scores first: exact seeds, designs of a gradient descent, or nothing."""
    search = run.config.search
    first = find_strategy(search.strategy).first
    if first != "gradient":
        return seeds if first else []
    device = resolve_device(run.config.device)
    size = run.config.data.batch_size
    batches = run.data.calibration_batches(_GRADIENT_BATCHES * size, size, run.config.seed + 6)
    images = [to_device(x, device) for x, _ in batches]
    relaxation = Relaxation(supernet, teacher.to(device), images, run.config.precision)
    with run.stage("gradient", "Gradient", search.gradient_steps) as advance:
        rows = gradient_rows(
            solver,
            search.trials,
            relaxation,
            Descent(steps=search.gradient_steps, lr=search.gradient_lr),
            run.config.seed,
            checkpoint=run.folder.checkpoints / "gradient.state",
            progress=lambda step, loss: advance(step, f"loss {loss:.3f}"),
        )
    if len(rows) < search.trials:
        log.info(
            "the descent gave %d different designs for %d trials; more search.gradient_steps give "
            "more", len(rows), search.trials,
        )  # fmt: skip
    return rows
