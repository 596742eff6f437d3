"""The supernet's training: in this process, or on several workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from epim_nas.data.base import Data
from epim_nas.epitome.alignment import AlignmentSearch
from epim_nas.pipeline.config import SupernetConfig
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.measure import activation_batch, output_covariances
from epim_nas.pipeline.progress import Reporter
from epim_nas.pipeline.workers import DistributedTraining, Progress, train_together
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.space.space import Row, SearchSpace
from epim_nas.supernet.checkpoint import read_checkpoint
from epim_nas.supernet.evaluation import resolve_device
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


def prepare_supernet(run: Run, model: nn.Module, space: SearchSpace) -> Supernet:
    """The untrained supernet, its choices projected and its activation ranges calibrated.

    The orders that are found are kept in the run.folder.
    """
    device = resolve_device(run.config.device)
    layer_choices = space.layer_choices
    shared = [
        name
        for name, choices in layer_choices.items()
        if any(choice.shape is not None for choice in choices)
    ]
    # One descent: a search may have a thousand plans, and restarts gain little.
    search = AlignmentSearch(restarts=0, tolerance=1e-3) if run.config.projection.align else None
    with run.folder.timed("projection"):
        covariances = output_covariances(run, model, shared)
        total = sum(
            len(choices) * ((search is not None) + (name in (covariances or {})))
            for name, choices in layer_choices.items()
        )
        with run.reporter.stage("Projection", total) as advance:
            supernet = Supernet(
                model, run.network, space, run.quantization, search,
                covariances=covariances,
                alignments=run.folder.checkpoints / f"alignment-{space.digest[:12]}",
                progress=lambda done: advance(done, ""),
            )  # fmt: skip
    supernet.to(device)
    supernet.calibrate_activations(activation_batch(run)[0].to(device))
    return supernet


def train_supernet(
    run: Run,
    supernet: Supernet,
    teacher: nn.Module,
    solver: FeasibleSolver,
    seeds: Sequence[Row],
) -> tuple[tuple[int, float], ...]:
    """Train the shared weights, on several workers where the run file says so.

    Returns:
        The loss curve.
    """
    config = run.config.supernet
    if config.steps == 0:
        return ()
    training = SupernetTraining(
        supernet,
        teacher,
        run.data,
        config.train_config(config.steps, run.config.data.batch_size, config.lr),
        Sandwich(
            solver, seeds, run.config.seed, random=config.random, around=config.around,
            warmup_steps=round(config.bits_warmup * config.steps),
        ),
        run.config.seed + 2,
        run.config.device,
        run.config.precision,
        _state_file(run.folder).resolve(),
    )  # fmt: skip
    with run.folder.timed("supernet"):
        if needs_workers(config, run.folder):
            _train_on_workers(training, config.workers, run.config.executor.address, run.reporter)
        with run.reporter.stage("Supernet", config.steps) as advance:
            result = training.run(lambda step, loss: advance(step, f"loss {loss:.3f}"))
    supernet.select(None)
    return result.curve


def _train_on_workers(
    training: SupernetTraining, workers: int, address: str | None, reporter: Reporter
) -> None:
    """Train on several workers; the checkpoint is then that of the end."""
    together = DistributedTraining(
        _train_in_worker, training, training.checkpoint.parent,
        training.config.steps, training.config.batch_size,
    )  # fmt: skip
    train_together(
        together, workers, f"Supernet x{workers}", reporter,
        address=address, field="supernet.workers",
    )  # fmt: skip
