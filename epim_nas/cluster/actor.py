"""What runs in a Ray actor's process."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from typing import Any

import ray

from epim_nas.cluster.sharing import Shared, restore


@dataclass(frozen=True)
class Hello:
    """Who a worker is.

    Attributes:
        host: name of its machine.
        pid: its process.
        device: what it computes on, in words.
    """

    host: str
    pid: int
    device: str


class WorkerActor:
    """Holds the worker in an actor process.

    Args:
        threads: torch threads.
    """

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._worker: Any = None
        self._lines: list[tuple[int, str]] = []
        logger = logging.getLogger("epim_nas")
        logger.setLevel(logging.INFO)
        logger.addHandler(_Collector(self._lines))

    @ray.method(max_task_retries=-1)
    def hello(self, shared: Shared) -> Hello:
        """Load the worker; also after a restart. Who this is, once it is ready."""
        import torch

        if self._worker is None:
            self._worker = restore(shared)
        cuda = torch.cuda.is_available()
        device = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU threads"
        return Hello(socket.gethostname(), os.getpid(), device)

    def call(self, method: str, *args: Any) -> tuple[Any, list[tuple[int, str]]]:
        """``worker.method(*args)``, and what was logged meanwhile, as (level, line)."""
        self._lines.clear()
        value = getattr(self._worker, method)(*args)
        return value, list(self._lines)


class _Collector(logging.Handler):
    """Keeps lines for the driver; a flood of them loses its end."""

    _MOST = 100

    def __init__(self, lines: list[tuple[int, str]]) -> None:
        super().__init__(logging.INFO)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        if len(self._lines) < self._MOST:
            self._lines.append((record.levelno, record.getMessage()))
