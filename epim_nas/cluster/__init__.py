"""Executors: where evaluations run. ``local`` is this process, ``ray`` is a Ray cluster."""

from epim_nas.cluster.executor import Executor, LocalExecutor, Outcome

__all__ = ["Executor", "LocalExecutor", "Outcome"]
