"""Executors by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING

from epim_nas.cluster.config import ExecutorConfig
from epim_nas.cluster.executor import Executor, Factory, LocalExecutor
from epim_nas.errors import find_named

if TYPE_CHECKING:
    from epim_nas.cluster.ray_executor import PoolSettings

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
