"""The training of one design, on whichever process it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from epim_nas.epitome.design import Design
from epim_nas.pipeline.config import RunConfig
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.evaluate import quantized_network, recalibrate
from epim_nas.pipeline.measure import measure
from epim_nas.report.events import RunEvents
from epim_nas.supernet.parallel import ALONE, Parallel
from epim_nas.supernet.train_config import TrainConfig
from epim_nas.supernet.training import TrainResult, train

_CURVE_EVERY = 10
"""Steps between the points of the TensorBoard curves."""
_CHECKPOINT_EVERY = 200
"""Steps that a kill may cost."""


@dataclass(frozen=True)
class Job:
    """A fine-tuning, on whichever process it runs. Picklable.

    Attributes:
        config: the run file, command line included.
        run_folder: folder of the run file; it may hold the trained network.
        design: the design.
        folder: where everything is written.
    """

    config: RunConfig
    run_folder: Path
    design: Design
    folder: Path

    @property
    def state(self) -> Path:
        """State of the unfinished training."""
        return self.folder / "training.state"

    @property
    def start(self) -> Path:
        """The weights that the training starts from."""
        return self.folder / "start.safetensors"

    @property
    def start_record(self) -> Path:
        """What was measured of them."""
        return self.folder / "start.json"


def run_training(
    job: Job,
    run: Run,
    model: nn.Module,
    training: TrainConfig,
    *,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    stop: Callable[[], bool] | None = None,
    parallel: Parallel = ALONE,
) -> TrainResult:
    """Train the network of a job, or the rest of it, with curves in its folder."""
    config = run.config
    epoch = steps_per_epoch(run, training)
    with RunEvents(job.folder / "tensorboard") as events:

        def note(step: int, loss: float) -> None:
            if parallel.first and (step % _CURVE_EVERY == 0 or step == training.steps):
                events.scalar("finetune/loss", loss, step)
                events.scalar("finetune/learning_rate", training.lr_at(step - 1), step)
            progress(step, loss)

        def validate_epoch(network: nn.Module) -> float:
            recalibrate(run, network)
            return measure(run, network, "validation").accuracy

        result = train(
            model,
            run.data,
            training,
            seed=config.seed,
            device=config.device,
            precision=config.precision,
            teacher=run.model,
            checkpoint=job.state,
            checkpoint_every=min(epoch, _CHECKPOINT_EVERY),
            progress=note,
            stop=stop,
            measure=validate_epoch,
            measure_every=epoch,
            parallel=parallel,
        )
        if parallel.first:
            for step, accuracy in result.measured:
                events.scalar("finetune/validation_accuracy", accuracy, step)
    return result


def started_network(job: Job, run: Run) -> nn.Module:
    """The network of a job with the weights that it starts from."""
    return quantized_network(run, job.design, job.start)


def steps_per_epoch(run: Run, training: TrainConfig) -> int:
    """Optimizer steps of a pass over the training images."""
    return max(1, run.data.sizes["train"] // training.batch_size)
