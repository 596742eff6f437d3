"""The executors of a run file."""

from __future__ import annotations

from dataclasses import fields

from epim_nas.cluster.executor import Executor, LocalExecutor
from epim_nas.cluster.ray_executor import PoolSettings, make_ray_executor
from epim_nas.pipeline.config import ExecutorConfig
from epim_nas.supernet.scorer import Scorer


def make_executor(config: ExecutorConfig, scorer: Scorer) -> Executor:
    """The executor that scores designs."""

    def factory() -> Scorer:
        return scorer

    if config.kind == "local":
        return LocalExecutor(factory)
    return make_ray_executor(factory, pool_settings(config), config.address)


def pool_settings(config: ExecutorConfig) -> PoolSettings:
    """The part of a run file's executor that is about Ray's workers."""
    return PoolSettings(**config.model_dump(include={field.name for field in fields(PoolSettings)}))
