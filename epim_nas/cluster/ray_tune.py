"""Trainings side by side, of which the worse are stopped early: Ray Tune with ASHA."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epim_nas.cluster.connection import connected
from epim_nas.cluster.executor import input_error_in, one_line
from epim_nas.cluster.ray_executor import PoolSettings
from epim_nas.errors import EpimError, InputError

_QUIET = {
    # An interruption has to reach the driver, which says how to go on.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
_REDUCTION = 2
"""One of so many goes on after a measurement (ASHA: Li et al., arXiv 1810.05934)."""


@dataclass(frozen=True)
class Tuned:
    """How far a training came.

    Attributes:
        result: fields of what the method returned last, None if it never returned.
        error: one line about what went wrong, empty if nothing did.
    """

    result: dict[str, Any] | None
    error: str = ""


def tune_stepwise(
    worker: Any,
    method: str,
    jobs: Mapping[int, tuple[Any, ...]],
    steps: list[int],
    *,
    pool: PoolSettings,
    storage: Path,
    address: str | None = None,
    on_result: Callable[[int, int, float], None] = lambda key, part, accuracy: None,
) -> dict[int, Tuned]:
    """Run ``worker.METHOD(*arguments, until=...)`` for every job, in parts.

    After every part but the last, what is not among the better half of those that came as far
    stops (ASHA on the validation accuracy).

    Args:
        worker: its method returns a dataclass with ``validation_accuracy``, and keeps its state in
            a file that all machines see.
        method: name of the method.
        jobs: key -> arguments.
        steps: steps at the end of each part.
        pool: CPUs and GPUs of a training, and how often one is tried again.
        storage: folder for Ray's own files, on a file system that all machines share; removed at
            the end.
        address: Ray address, None for ``RAY_ADDRESS`` or a local start.
        on_result: called with key, number of parts, and accuracy after every part.

    Raises:
        InputError: Ray is not installed or cannot be reached, or a machine does not see the files.
    """
    os.environ.update(_QUIET)
    with connected(address, "fine-tuning on Ray", pool.cores):
        from ray import tune

        from epim_nas.cluster.sharing import share
        from epim_nas.cluster.trainable import StepwiseTrainable

        class Watch(tune.Callback):
            """Tells the driver of every part."""

            def on_trial_result(
                self,
                iteration: int,
                trials: list[Any],
                trial: Any,
                result: dict[str, Any],
                **_: Any,
            ) -> None:
                on_result(
                    trial.config["job"]["key"], result["training_iteration"], result["accuracy"]
                )

        storage.mkdir(parents=True, exist_ok=True)
        marker = storage / "visible"
        marker.touch()
        trainable = tune.with_parameters(
            StepwiseTrainable, shared=share(worker), method=method, steps=steps, marker=marker
        )
        configs = [{"key": key, "arguments": arguments} for key, arguments in jobs.items()]
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": pool.cpus, "gpu": pool.gpus}),
            param_space={"job": tune.grid_search(configs)},
            tune_config=tune.TuneConfig(
                metric="accuracy",
                mode="max",
                scheduler=tune.schedulers.ASHAScheduler(
                    max_t=len(steps), grace_period=1, reduction_factor=_REDUCTION
                ),
                max_concurrent_trials=None if pool.workers == "auto" else pool.workers,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(storage),
                verbose=0,
                callbacks=[Watch()],
                failure_config=tune.FailureConfig(max_failures=pool.retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
            ),
        )
        try:
            grid = tuner.fit()
        except (InputError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise EpimError(f"Ray Tune failed: {one_line(error)}") from error
        tuned = {}
        for found in grid:
            wrong = input_error_in(found.error)  # for every job: the user has to mend it
            if wrong is not None:
                raise wrong
            text = "" if found.error is None else one_line(found.error)
            tuned[found.config["job"]["key"]] = Tuned((found.metrics or {}).get("result"), text)
    shutil.rmtree(storage, ignore_errors=True)
    return tuned
