"""Executors by name, and the ``executor`` group of a run file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from epim_nas.cluster.executor import Executor, Factory, LocalExecutor
from epim_nas.errors import find_named
from epim_nas.schema import STORED, Strict

if TYPE_CHECKING:
    from epim_nas.cluster.ray_executor import PoolSettings


Seconds = Annotated[float, pydantic.Field(ge=1e-3, le=10**8)]


class ExecutorConfig(Strict):
    """Where designs are scored.

    Attributes:
        kind: ``local`` (this process), ``ray``, or one of your own.
        address: address of a Ray cluster; None for ``RAY_ADDRESS`` or this machine.
        workers: Ray actors; ``auto`` for as many as the cluster has room for.
        cpus: CPU cores of an actor.
        gpus: GPUs of an actor; a fraction shares one.
        timeout_s: seconds that a design may take before another worker tries it; ``auto`` for ten
            times the median and at least a minute, None for no limit.
        retries: how often a design is tried again whose worker was lost.
        wait_s: seconds to wait for the first worker.
        args: settings of an executor of your own.
    """

    kind: str = "local"
    address: str | None = None
    workers: Annotated[int, pydantic.Field(ge=1, le=10**4)] | Literal["auto"] = 2
    cpus: float = pydantic.Field(default=1, ge=0.01, le=10**4)
    gpus: float = pydantic.Field(default=0, ge=0, le=10**4)
    timeout_s: Seconds | Literal["auto"] | None = "auto"
    retries: Annotated[int, pydantic.Field(ge=0, le=10**4)] = 2
    wait_s: Seconds = 60
    args: dict[str, Any] = pydantic.Field(default_factory=dict)

    @pydantic.field_validator("kind")
    @classmethod
    def _known(cls, name: str, info: pydantic.ValidationInfo) -> str:
        if info.context != STORED:
            find_executor(name)
        return name


MakeExecutor = Callable[[Factory, ExecutorConfig], Executor]
"""Makes an executor of a factory of workers and the run file's group ``executor``."""


def _local(factory: Factory, config: ExecutorConfig) -> Executor:
    return LocalExecutor(factory)


def _ray(factory: Factory, config: ExecutorConfig) -> Executor:
    from epim_nas.cluster.ray_executor import make_ray_executor

    return make_ray_executor(factory, pool_settings(config), config.address)


EXECUTORS: dict[str, MakeExecutor] = {"local": _local, "ray": _ray}
"""``executor.kind`` -> what makes it (:func:`epim_nas.extensions.register_executor`)."""


def find_executor(name: str, field: str = "executor.kind") -> MakeExecutor:
    """The executor of a name.

    Raises:
        InputError: unknown name.
    """
    return find_named(EXECUTORS, name, field, "an executor")


def pool_settings(config: ExecutorConfig) -> PoolSettings:
    """The part of a run file's executor that is about Ray's workers."""
    from epim_nas.cluster.ray_executor import PoolSettings

    return PoolSettings(**config.model_dump(include={field.name for field in fields(PoolSettings)}))
