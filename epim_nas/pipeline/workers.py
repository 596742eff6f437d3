"""Trainings on several workers, and how far they are."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from epim_nas.cluster.ray_train import run_on_workers
from epim_nas.cluster.visibility import check_visible
from epim_nas.errors import InputError
from epim_nas.files import write_json
from epim_nas.pipeline.evaluate import load_trained
from epim_nas.pipeline.finetune.job import Job, run_training, started_network
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.progress import Advance, Reporter
from epim_nas.supernet.parallel import Parallel
from epim_nas.supernet.train_config import TrainConfig

_SECONDS = 0.5
"""Between two looks at how far the workers are."""

T = TypeVar("T")

Progress = Callable[[int, float], None]
"""Called with (step, loss)."""


@dataclass(frozen=True)
class DistributedTraining(Generic[T]):
    """A training that several workers do together.

    Attributes:
        work: trains, in every worker; called with the argument and a function that is told of
            every step. A function of a module.
        argument: what it needs, picklable.
        folder: folder of its files, on a file system that all workers share.
        steps: optimizer steps.
        batch_size: images in a batch, of all workers together.
    """

    work: Callable[[T, Progress], None]
    argument: T
    folder: Path
    steps: int
    batch_size: int


def train_together(
    training: DistributedTraining[T],
    workers: int,
    title: str,
    reporter: Reporter,
    *,
    address: str | None = None,
    field: str = "--workers",
) -> None:
    """Train on several workers; afterwards the training's state file is that of the end.

    Args:
        training: what to do.
        workers: how many; each takes a GPU where the cluster has so many, else a CPU core.
        title: what it is called in the progress.
        reporter: shows the progress.
        address: Ray address, None for ``RAY_ADDRESS`` or this machine.
        field: what sets the number of workers, for messages.

    Raises:
        InputError: the batch cannot be shared evenly, Ray is missing, or a worker does not see the
            folder.
        EpimError: the training failed on the workers.
    """
    check_shares(training.batch_size, workers, field)
    storage = training.folder / "ray"
    marker = training.folder / "workers.json"
    write_json(marker, {"step": 0, "loss": 0.0})
    try:
        with reporter.stage(title, training.steps) as advance, _watching(marker, advance):
            run_on_workers(
                _work, (training, marker.resolve()), workers=workers, storage=storage.resolve(),
                address=address,
            )  # fmt: skip
    finally:
        marker.unlink(missing_ok=True)
    shutil.rmtree(storage, ignore_errors=True)


def check_shares(batch_size: int, workers: int, field: str) -> None:
    """Check that workers can share every batch.

    Args:
        batch_size: images in a batch.
        workers: how many.
        field: what sets the number of workers, for messages.

    Raises:
        InputError: not evenly.
    """
    if batch_size % workers:
        raise InputError(
            field,
            f"{workers} cannot share batches of {batch_size} images evenly",
            f"a divisor of {batch_size}",
            "Change the number of workers or the batch size.",
        )


def _work(argument: tuple[DistributedTraining[T], Path]) -> None:
    """Train in a worker process, telling the driver by a file."""
    training, marker = argument
    check_visible(marker)
    last = 0.0

    def tell(step: int, loss: float) -> None:
        nonlocal last
        if Parallel.current().first and time.monotonic() - last >= _SECONDS:
            last = time.monotonic()
            write_json(marker, {"step": step, "loss": loss})

    training.work(training.argument, tell)


def train_on_workers(job: Job, training: TrainConfig, workers: int, reporter: Reporter) -> None:
    """Train one design on several workers; see :func:`train_together`.

    Args:
        job: the job; its folder has to be on a file system that all workers share.
        training: how to train.
        workers: how many.
        reporter: shows the progress.
    """
    together = DistributedTraining(
        _tune, (job, training), job.folder, training.steps, training.batch_size
    )
    address = job.config.executor.address
    train_together(together, workers, f"Fine-tuning x{workers}", reporter, address=address)


def _tune(argument: tuple[Job, TrainConfig], progress: Progress) -> None:
    job, training = argument
    run = load_trained(job.config, RunFolder(job.run_folder), job.design, "design")
    model = started_network(job, run)
    run_training(job, run, model, training, progress=progress, parallel=Parallel.current())


@contextmanager
def _watching(file: Path, advance: Advance) -> Iterator[None]:
    """Show what the workers say, in a thread, until the block ends."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_SECONDS):
            try:
                told = json.loads(file.read_text())
                advance(int(told["step"]), f"loss {told['loss']:.3f}")
            except (OSError, ValueError, KeyError):
                continue  # between two files
            except KeyboardInterrupt:
                return  # for the main thread, which has it from the signal

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
