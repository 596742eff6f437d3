"""Long-lived Ray actors, each with its own copy of the worker."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Hashable
from typing import Any

from epim_nas.cluster.executor import Executor, Factory, Outcome, one_line
from epim_nas.errors import EpimError, InputError, missing_extra

log = logging.getLogger(__name__)

_RESTARTS = -1  # an actor whose process dies comes back as often as needed
_RETRIES = 2  # a call whose actor died is tried this often again


class RayExecutor(Executor):
    """Runs calls on Ray actors that survive the death of their processes.

    The worker is made once and goes through Ray's object store; every actor holds a copy. With no
    running cluster (no ``RAY_ADDRESS``) Ray is started on this machine, listening on loopback.

    Args:
        factory: makes the worker; it and the worker have to be picklable.
        workers: number of actors.
        cpus: CPU cores of an actor; also its number of torch threads.
        gpus: GPUs of an actor; fractions share one.
        address: Ray address, None for ``RAY_ADDRESS`` or a local start.

    Raises:
        InputError: Ray is not installed, the cluster cannot be reached, or it has too little.
    """

    def __init__(
        self,
        factory: Factory,
        workers: int = 2,
        cpus: float = 1,
        gpus: float = 0,
        address: str | None = None,
    ) -> None:
        try:
            import ray
        except ImportError:
            raise missing_extra("ray", "ray", "the Ray executor") from None
        self._ray = ray
        self.capacity = workers
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            start_ray(ray, address, workers, cpus)
        try:
            _check_resources(ray, workers, cpus, gpus)
        except InputError:
            if self._started_ray:
                ray.shutdown()
            raise
        # Kept: an actor that restarts fetches it again, and Ray drops what nobody holds.
        self._payload = ray.put(factory())
        actor_class = ray.remote(_Actor)
        self._idle: deque[Any] = deque(
            actor_class.options(
                num_cpus=cpus,
                num_gpus=gpus,
                max_restarts=_RESTARTS,
                max_task_retries=_RETRIES,
                name=None,
            ).remote([self._payload], max(1, int(cpus)))
            for _ in range(workers)
        )
        self._queue: deque[tuple[Hashable, str, tuple[Any, ...]]] = deque()
        self._running: dict[Any, tuple[Hashable, Any, float]] = {}

    def submit(self, key: Hashable, method: str, *args: Any) -> None:
        """Start a call on an idle actor, or queue it."""
        self._queue.append((key, method, args))
        self._dispatch()

    def _dispatch(self) -> None:
        while self._queue and self._idle:
            key, method, args = self._queue.popleft()
            actor = self._idle.popleft()
            reference = actor.call.remote(method, *args)
            self._running[reference] = (key, actor, time.monotonic())

    def wait(self) -> Outcome:
        """The outcome of the call that finishes next."""
        if not self._running:
            raise RuntimeError("nothing was submitted")
        ready, _ = self._ray.wait(list(self._running), num_returns=1)
        reference = ready[0]
        key, actor, started = self._running.pop(reference)
        self._idle.append(actor)
        try:
            value = self._ray.get(reference)
            outcome = Outcome(key, value, seconds=time.monotonic() - started)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause if getattr(error, "cause", None) is not None else error
            if isinstance(cause, InputError):
                raise cause from None
            outcome = Outcome(key, error=one_line(cause), seconds=time.monotonic() - started)
        except self._ray.exceptions.RayError as error:
            outcome = Outcome(
                key,
                error=f"the worker died {_RETRIES + 1} times on this call ({one_line(error)})",
                seconds=time.monotonic() - started,
            )
        self._dispatch()
        return outcome

    def close(self) -> None:
        """End the actors, and Ray where this executor started it."""
        self._queue.clear()
        for actor in [*self._idle, *(actor for _, actor, _ in self._running.values())]:
            self._ray.kill(actor, no_restart=True)
        self._idle.clear()
        self._running.clear()
        if self._started_ray:
            self._ray.shutdown()


class _Actor:
    """Holds the worker in an actor process."""

    def __init__(self, worker: list[Any], threads: int) -> None:
        import ray
        import torch

        torch.set_num_threads(threads)
        self._worker = ray.get(worker[0])

    def call(self, method: str, *args: Any) -> Any:
        """``worker.method(*args)``."""
        return getattr(self._worker, method)(*args)


def start_ray(ray: Any, address: str | None, workers: int, cpus: float) -> None:
    """Connect to a cluster, or start Ray on this machine, listening on loopback.

    Raises:
        InputError: the cluster cannot be reached.
    """
    import os

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address is None and "RAY_ADDRESS" not in os.environ:
        options |= {
            "num_cpus": max(os.cpu_count() or 1, int(workers * cpus + 0.999)),
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
    else:
        options["address"] = address or os.environ["RAY_ADDRESS"]
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            "executor.address",
            f"no Ray cluster could be reached ({one_line(error)})",
            hint="Check RAY_ADDRESS and that the cluster runs the same Ray version, or leave the "
            "address out to use this machine.",
        ) from None


def _check_resources(ray: Any, workers: int, cpus: float, gpus: float) -> None:
    """Refuse what the cluster can never give; waiting for it would look like a hang."""
    available = ray.cluster_resources()
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        if each * workers > available.get(name, 0):
            raise InputError(
                "executor.workers",
                f"{workers} workers with {each:g} {name} each need {each * workers:g} {name}",
                f"at most {available.get(name, 0):g} {name}, what the cluster has",
                "Use fewer workers or a smaller share for each.",
            )


def make_ray_executor(factory: Factory, **options: Any) -> Executor:
    """A :class:`RayExecutor`; an unexpected failure of Ray becomes one clear error."""
    try:
        return RayExecutor(factory, **options)
    except (InputError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise EpimError(f"the Ray executor could not start: {one_line(error)}") from error
