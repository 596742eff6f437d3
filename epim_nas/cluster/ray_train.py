"""One training on several GPUs or processes, by Ray Train's ``TorchTrainer``.

Every worker has a copy of the network, trains on its part of every batch and averages gradients
with the others. The first one writes the checkpoints, into a folder that all workers have to reach:
if a worker dies, Ray starts all of them again and they go on from there.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epim_nas.cluster.executor import one_line
from epim_nas.cluster.ray_executor import start_ray
from epim_nas.errors import EpimError, InputError, missing_extra
from epim_nas.files import write_json
from epim_nas.pipeline.progress import Advance, Reporter

if TYPE_CHECKING:
    from epim_nas.pipeline.finetune import Job
    from epim_nas.supernet.train_config import TrainConfig

log = logging.getLogger(__name__)

_RESTARTS = 3
"""How often a training may lose a worker."""
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
        InputError: Ray is not installed, the batch cannot be shared evenly, or the cluster has too
            little.
        EpimError: the training failed on the workers.
    """
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError:
        raise missing_extra("ray", "ray", "training on several workers") from None
    if training.batch_size % workers:
        raise InputError(
            "--workers",
            f"{workers} cannot share batches of {training.batch_size} images evenly",
            f"a divisor of {training.batch_size}",
            "Change --workers or finetune.batch_size.",
        )
    started = not ray.is_initialized()
    if started:
        start_ray(ray, None, workers, 1)
    try:
        gpus = ray.cluster_resources().get("GPU", 0) >= workers
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "job": job,
                "training": training,
                "directory": os.getcwd(),
                "path": list(sys.path),
            },
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
            run_config=RunConfig(
                name="workers",
                storage_path=str(job.folder / "ray"),
                failure_config=FailureConfig(max_failures=_RESTARTS),
            ),
        )
        title = f"Fine-tuning x{workers}"
        with reporter.stage(title, training.steps) as advance, _Watching(job.folder, advance):
            trainer.fit()
    except (InputError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise EpimError(f"the training on {workers} workers failed: {one_line(error)}") from error
    finally:
        if started:
            ray.shutdown()


def _worker(config: dict[str, Any]) -> None:
    """Train in a worker process."""
    os.chdir(config["directory"])
    sys.path[:] = [*config["path"], *(p for p in sys.path if p not in config["path"])]
    import torch

    from epim_nas.pipeline.finetune import run_training, started_network
    from epim_nas.pipeline.single import load_trained
    from epim_nas.supernet.parallel import Parallel

    job, training = config["job"], config["training"]
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    setup = load_trained(job.config, job.run_folder, job.design, "design")
    last = 0.0

    def tell(step: int, loss: float) -> None:
        nonlocal last
        if parallel.first and time.monotonic() - last >= _SECONDS:
            last = time.monotonic()
            write_json(_progress_file(job.folder), {"step": step, "loss": loss})

    parallel = Parallel.current()
    run_training(
        job, setup, started_network(job, setup), training, progress=tell, parallel=parallel
    )


def _progress_file(folder: Path) -> Path:
    return folder / "workers.json"


class _Watching:
    """Shows what the workers say, in a thread, until the block ends."""

    def __init__(self, folder: Path, advance: Advance) -> None:
        self._file = _progress_file(folder)
        self._advance = advance
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(_SECONDS):
            try:
                told = json.loads(self._file.read_text())
                self._advance(int(told["step"]), f"loss {told['loss']:.3f}")
            except (OSError, ValueError, KeyError):
                continue

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._file.unlink(missing_ok=True)
