"""One function on several processes that form a torch process group, by Ray Train."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from epim_nas.cluster.connection import connected, own_signals
from epim_nas.cluster.executor import input_error_in, one_line
from epim_nas.errors import EpimError, InputError

_RESTARTS = 3
"""How often the processes are started again after one of them died."""

T = TypeVar("T")


def run_on_workers(
    work: Callable[[T], None],
    argument: T,
    *,
    workers: int,
    storage: Path,
    address: str | None = None,
) -> None:
    """Run ``work(argument)`` in every worker at the same time, through Ray's ``TorchTrainer``.

    The workers find the default process group of ``torch.distributed`` set up: NCCL where the
    cluster has a GPU for each, gloo on CPU cores. Where one dies, all are started again: the work
    has to go on from what it has stored.

    Args:
        work: a function of a module; it is called in the working directory of this process.
        argument: its argument, picklable; every worker gets a copy of its own.
        workers: how many.
        storage: folder for Ray's own files, on a file system that all workers share.
        address: Ray address, None for ``RAY_ADDRESS`` or a local start.

    Raises:
        InputError: Ray is not installed or cannot be reached.
        EpimError: the work failed.
        KeyboardInterrupt: a signal ended it; the workers are gone.
    """
    with own_signals(), connected(address, "training on several workers", workers) as ray:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from epim_nas.cluster.torch_group import GroupConfig

        gpus = ray.cluster_resources().get("GPU", 0) >= workers
        trainer = TorchTrainer(
            _enter,
            train_loop_config={
                "work": work,
                # In a list: a bare reference would be fetched too early.
                "argument": [ray.put(argument)],
                "directory": os.getcwd(),
                "path": list(sys.path),
            },
            torch_config=GroupConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
            run_config=RunConfig(
                name="workers",
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=_RESTARTS),
            ),
        )
        try:
            trainer.fit()
        except (InputError, KeyboardInterrupt):
            raise
        except Exception as error:
            wrong = input_error_in(error)
            if wrong is not None:
                raise wrong from None
            message = f"the training on {workers} workers failed: {one_line(error)}"
            raise EpimError(message) from error


def _enter(config: dict[str, Any]) -> None:
    """Make a worker's process like the one that started it, and work."""
    os.chdir(config["directory"])
    sys.path[:] = [*config["path"], *(p for p in sys.path if p not in config["path"])]
    import ray
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    config["work"](ray.get(config["argument"][0]))
