"""What users add by name: objectives, cost models, choices of layers, executors, strategies.

A module registers its parts when it is imported; a run file lists it under ``extensions``, so that
resumed runs, reports and workers on other machines find the same parts::

    from epim_nas.extensions import register_metric

    register_metric("depth", lambda design, network, totals: ..., "what it is")

Registering a name again replaces what it stood for.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from epim_nas.errors import InputError
from epim_nas.imports import import_module_here
from epim_nas.solver.metrics import METRICS, Metric, MetricFunction
from epim_nas.space.generators import GENERATORS, Generator

if TYPE_CHECKING:
    from epim_nas.cluster.registry import MakeExecutor
    from epim_nas.study.strategies import Make

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_TAKEN = ("min", "max", "name", "trial", "origin", "on_front", "selected", "supernet_top1",
          "validation_top1", "test_top1")  # fmt: skip
"""Words of objectives, and columns of the front that are no metrics."""


def load_extension(name: str) -> str:
    """Import a module that registers parts; returns its name.

    Raises:
        InputError: it is missing, or importing it fails.
    """
    import_module_here(name, "extensions")
    return name


def register_metric(
    name: str,
    function: MetricFunction,
    text: str = "",
    *,
    maximise: bool = False,
    measured: bool = False,
) -> None:
    """Add a metric that a run can optimise, or put another model in the place of a cost.

    A metric from geometry and costs is ``function(design, network, totals) -> float``, of the
    :class:`~epim_nas.epitome.design.Design`, the :class:`~epim_nas.network.spec.Network`, and the
    cost model's totals (metric -> value; with the keys of ``epim-nas cost --json`` among them).
    A measured one is ``function(model, data) -> float``, of the network with the design's weights,
    in evaluation mode and recalibrated, and the run's :class:`~epim_nas.data.base.Data`.

    The name of a cost that is not an exact count (``latency_ns``, ``energy_nj``, ``area_um2``,
    ``sequential_latency_ns``) replaces it everywhere in a search: in objectives, in budgets, and,
    fitted to whole designs, in the exact solver.

    Args:
        name: its name in run files; letters, digits and underscores.
        function: computes it; values have to be finite, and positive for the dense network. A
            design for which a measured one is not finite is a failed trial.
        text: what it is, with its unit, for people.
        maximise: whether more is better.
        measured: whether the network has to run for it.

    Raises:
        InputError: a name that cannot be used.
    """
    known = METRICS.get(name)
    _check_name("register_metric", name)
    if not callable(function):
        raise InputError("register_metric: function", f"got `{function!r}`", "a function")
    if name in _TAKEN:
        raise InputError(
            "register_metric: name", f"`{name}` is a column of front.csv", "another name"
        )
    if known is not None and (known.function is None or known.replaceable):
        if measured or maximise or not known.replaceable:
            costs = ", ".join(f"`{m.name}`" for m in METRICS.values() if m.replaceable)
            raise InputError(
                "register_metric: name",
                f"`{name}` is a metric of the package",
                f"another name, or one of the costs that can be replaced: {costs}",
            )
        metric = replace(known, function=function)
        METRICS[name] = replace(metric, text=text or f"{name} by {metric.source}")
    else:
        metric = Metric(name, text, maximise=maximise, measured=measured, function=function)
        METRICS[name] = replace(metric, text=text or metric.source)


def register_choices(name: str, function: Generator) -> None:
    """Add a generator of layers' choices, which a search space names as ``generator``.

    Args:
        name: its name in search spaces.
        function: ``function(layer, chip)`` gives objects of
            :class:`~epim_nas.epitome.design.Choice` for a
            :class:`~epim_nas.network.spec.LayerSpec` on a
            :class:`~epim_nas.hardware.chip.Chip` (None where a space is looked at without one).
    """
    _check_name("register_choices", name)
    GENERATORS[name] = function


def register_executor(name: str, make: MakeExecutor) -> None:
    """Add an executor, which a run file names as ``executor.kind``.

    Args:
        name: its name.
        make: ``make(factory, config)`` gives an :class:`~epim_nas.cluster.executor.Executor`.
            ``factory()`` makes the picklable object whose methods are called; ``config`` is the
            ``executor`` group of the run file, with its own settings in ``config.args``.
    """
    from epim_nas.cluster.registry import EXECUTORS

    _check_name("register_executor", name)
    EXECUTORS[name] = make


def register_strategy(
    name: str, make: Make, summary: str = "", *, first: str = "", proposes: bool = True
) -> None:
    """Add a search strategy, which a run file names as ``search.strategy``.

    Args:
        name: its name.
        make: ``make(solver, seed, options)`` gives an Optuna sampler; ``solver`` is the
            :class:`~epim_nas.solver.feasible.FeasibleSolver` of the search's problem.
        summary: one line for people.
        first: ``exact`` to score the exact seeds first.
        proposes: whether anything is proposed after those.
    """
    from epim_nas.study.strategies import STRATEGIES, Strategy

    _check_name("register_strategy", name)
    STRATEGIES[name] = Strategy(name, summary or name, make, first, proposes)


def _check_name(where: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(f"{where}: name", f"got `{name}`", "letters, digits and underscores")
