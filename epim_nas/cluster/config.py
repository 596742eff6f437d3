"""The ``executor`` group of a run file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from epim_nas.schema import Strict


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
    workers: Annotated[int, pydantic.Field(ge=1)] | Literal["auto"] = 2
    cpus: float = pydantic.Field(default=1, gt=0)
    gpus: float = pydantic.Field(default=0, ge=0)
    timeout_s: Annotated[float, pydantic.Field(gt=0)] | Literal["auto"] | None = "auto"
    retries: Annotated[int, pydantic.Field(ge=0)] = 2
    wait_s: float = pydantic.Field(default=60, gt=0)
    args: dict[str, Any] = pydantic.Field(default_factory=dict)
