"""A fine-tuning on several workers, and how far they are."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from epim_nas.cluster.ray_train import run_on_workers
from epim_nas.errors import InputError
from epim_nas.files import write_json
from epim_nas.pipeline.progress import Advance, Reporter
from epim_nas.pipeline.single import load_trained
from epim_nas.pipeline.tuning import Job, run_training, started_network
from epim_nas.supernet.parallel import Parallel
from epim_nas.supernet.train_config import TrainConfig

_SECONDS = 0.5
"""Between two looks at how far the workers are."""


def train_on_workers(job: Job, training: TrainConfig, workers: int, reporter: Reporter) -> None:
    """Train a job on several workers; afterwards its state file holds the finished training.

    Args:
        job: the job; its folder has to be on a file system that all workers share.
        training: how to train.
        workers: how many; each takes a GPU where the cluster has so many, else a CPU core.
        reporter: shows the progress.

    Raises:
        InputError: the batch cannot be shared evenly, or Ray is missing.
        EpimError: the training failed on the workers.
    """
    if training.batch_size % workers:
        raise InputError(
            "--workers",
            f"{workers} cannot share batches of {training.batch_size} images evenly",
            f"a divisor of {training.batch_size}",
            "Change --workers or finetune.batch_size.",
        )
    storage = job.folder / "ray"
    title = f"Fine-tuning x{workers}"
    with reporter.stage(title, training.steps) as advance, _watching(job.folder, advance):
        run_on_workers(_work, (job, training), workers=workers, storage=storage)
    shutil.rmtree(storage, ignore_errors=True)


def _work(argument: tuple[Job, TrainConfig]) -> None:
    """Train in a worker process."""
    job, training = argument
    parallel, last = Parallel.current(), 0.0

    def tell(step: int, loss: float) -> None:
        nonlocal last
        if parallel.first and time.monotonic() - last >= _SECONDS:
            last = time.monotonic()
            write_json(_progress_file(job.folder), {"step": step, "loss": loss})

    setup = load_trained(job.config, job.run_folder, job.design, "design")
    model = started_network(job, setup)
    run_training(job, setup, model, training, progress=tell, parallel=parallel)


def _progress_file(folder: Path) -> Path:
    return folder / "workers.json"


@contextmanager
def _watching(folder: Path, advance: Advance) -> Iterator[None]:
    """Show what the workers say, in a thread, until the block ends."""
    file, over = _progress_file(folder), threading.Event()

    def watch() -> None:
        while not over.wait(_SECONDS):
            try:
                told = json.loads(file.read_text())
                advance(int(told["step"]), f"loss {told['loss']:.3f}")
            except (OSError, ValueError, KeyError):
                continue  # nothing yet, or between two files

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        file.unlink(missing_ok=True)
