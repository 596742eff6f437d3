"""The supernet's training: in this process, or on several workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from epim_nas.data.base import Data
from epim_nas.pipeline.config import SupernetConfig
from epim_nas.pipeline.context import Setup
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.progress import Reporter
from epim_nas.pipeline.stages.baseline import timed
from epim_nas.pipeline.workers import Progress, Together, train_together
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.space.space import Row
from epim_nas.supernet.checkpoint import read_checkpoint
from epim_nas.supernet.parallel import ALONE, Parallel
from epim_nas.supernet.sandwich import Sandwich
from epim_nas.supernet.supernet import Supernet
from epim_nas.supernet.train_config import TrainConfig
from epim_nas.supernet.training import TrainResult, train

_CHECKPOINT_EVERY = 25
"""Steps that a kill may cost."""


@dataclass(frozen=True)
class SupernetTraining:
    """The brief training of the shared weights by the sandwich rule, on whichever process it runs.

    Every step trains the designs of :class:`Sandwich`. Picklable.
    """

    supernet: Supernet
    teacher: nn.Module
    data: Data
    config: TrainConfig
    sandwich: Sandwich
    seed: int
    device: str
    precision: str
    checkpoint: Path

    def run(
        self, progress: Callable[[int, float], None], parallel: Parallel = ALONE
    ) -> TrainResult:
        """Train, or finish what the checkpoint holds."""

        def designs(step: int) -> Iterator[Callable[[], None]]:
            return (partial(self.supernet.select, row) for row in self.sandwich.designs(step))

        return train(
            self.supernet,
            self.data,
            self.config,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            teacher=self.teacher,
            checkpoint=self.checkpoint,
            checkpoint_every=_CHECKPOINT_EVERY,
            progress=progress,
            variants=designs,
            parallel=parallel,
        )


def needs_workers(config: SupernetConfig, folder: RunFolder) -> bool:
    """Whether the supernet has to be trained yet, and by several workers.

    Raises:
        InputError: the checkpoint of its training is damaged.
    """
    if config.workers == 1 or config.steps == 0:
        return False
    state = _state_file(folder)
    return not state.exists() or int(read_checkpoint(state)["step"]) < config.steps


def _state_file(folder: RunFolder) -> Path:
    return folder.checkpoints / "supernet.state"


def _train_in_worker(training: SupernetTraining, progress: Progress) -> None:
    training.run(progress, Parallel.current())


def train_supernet(
    setup: Setup,
    supernet: Supernet,
    teacher: nn.Module,
    solver: FeasibleSolver,
    seeds: Sequence[Row],
    folder: RunFolder,
    reporter: Reporter,
) -> tuple[tuple[int, float], ...]:
    """Train the shared weights, on several workers where the run file says so.

    Returns:
        The loss curve.
    """
    config = setup.config.supernet
    if config.steps == 0:
        return ()
    training = SupernetTraining(
        supernet,
        teacher,
        setup.data,
        config.train_config(config.steps, setup.config.data.batch_size, config.lr),
        Sandwich(
            solver, seeds, setup.config.seed, random=config.random, around=config.around,
            warmup_steps=round(config.bits_warmup * config.steps),
        ),
        setup.config.seed + 2,
        setup.config.device,
        setup.config.precision,
        _state_file(folder).resolve(),
    )  # fmt: skip
    with timed(folder, "supernet"):
        if needs_workers(config, folder):
            _train_on_workers(training, config.workers, setup.config.executor.address, reporter)
        with reporter.stage("Supernet", config.steps) as advance:
            result = training.run(lambda step, loss: advance(step, f"loss {loss:.3f}"))
    supernet.select(None)
    return result.curve


def _train_on_workers(
    training: SupernetTraining, workers: int, address: str | None, reporter: Reporter
) -> None:
    """Train on several workers; the checkpoint is then that of the end."""
    together = Together(
        _train_in_worker, training, training.checkpoint.parent,
        training.config.steps, training.config.batch_size,
    )  # fmt: skip
    train_together(
        together, workers, f"Supernet x{workers}", reporter,
        address=address, field="supernet.workers",
    )  # fmt: skip
