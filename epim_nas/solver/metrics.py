"""What a design can be judged by: the metrics of a trial, and which way each is better.

An objective is the name of a metric, which is then optimised in its natural direction, or the name
after ``min`` or ``max``: ``utilization`` is maximised, ``min utilization`` minimised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from epim_nas.errors import InputError, nearest

MetricFunction = Callable[..., float]
"""A metric of the user (:func:`epim_nas.extensions.register_metric`)."""


@dataclass(frozen=True)
class Metric:
    """A metric of a trial.

    Attributes:
        name: its name in results, with its unit.
        text: what it is.
        maximise: whether more is better.
        measured: whether the network has to run on images for it; the others come from the cost
            model or the sensitivity table.
        additive: metrics of the cost table whose sum over layers stands for it in the exact
            solver. Their sum is the metric itself where ``exact``; several are added after each
            is divided by its total in a reference design (a product's first-order expansion).
        parts: metrics whose additive costs stand for it as an objective; none for its own. Of a
            product they are its factors: its logarithm is concave in them, so the least product
            is a corner of their convex hull, where some weighted sum of them is least.
        exact: whether the additive metric is the metric itself, in every design.
        function: computes it instead of the package, where a user registered one.
    """

    name: str
    text: str
    maximise: bool = False
    measured: bool = False
    additive: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    exact: bool = False
    function: MetricFunction | None = None

    @property
    def source(self) -> str:
        """Dotted name of the user's function."""
        kind = type(self.function).__name__
        parts = (
            getattr(self.function, "__module__", ""),
            getattr(self.function, "__qualname__", kind),
        )
        return ".".join(filter(None, parts))

    @property
    def replaceable(self) -> bool:
        """Whether a user's function may compute it: a modelled cost that is no exact count."""
        return bool(self.additive) and not self.exact and not self.parts

    def of_dense(self, value: float) -> float:
        """The value of the dense network, which sets the box of the hypervolume.

        Raises:
            InputError: it is not positive.
        """
        if value <= 0:
            raise InputError(
                f"metric {self.name}",
                f"gives {value} for the dense network",
                "a positive number, which is the measure of the others",
                "Add a constant, or return the other side of the measure (1 - x).",
            )
        return value

    def computed(self, *arguments: Any) -> float:
        """What the user's function gives.

        Raises:
            InputError: it fails, or what it gives is not a finite number.
        """
        return self.finite(self.measured_value(*arguments))

    def finite(self, value: float) -> float:
        """The value.

        Raises:
            InputError: it is NaN or infinite.
        """
        if not math.isfinite(value):
            raise InputError(f"metric {self.name}", f"gives {value}", "a finite number")
        return value

    def measured_value(self, *arguments: Any) -> float:
        """What the user's function gives, finite or not.

        Raises:
            InputError: it fails.
        """
        assert self.function is not None
        try:
            return float(self.function(*arguments))
        except InputError:
            raise
        except Exception as error:  # the user's code
            raise InputError(
                f"metric {self.name}", f"fails: {type(error).__name__}: {error}"
            ) from error


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "top-1 on the search-validation images", maximise=True, measured=True),
        Metric("loss", "cross-entropy on the search-validation images (nats)", measured=True),
        Metric(
            "expected_rank",
            "expected order after training, from sensitivity and loss",
            maximise=True,
            measured=True,
        ),
        Metric("sensitivity", "additive sensitivity score (nats)"),
        Metric("crossbars", "crossbars", additive=("crossbars",), exact=True),
        Metric("tiles", "tiles", additive=("tiles",), exact=True),
        Metric(
            "weight_bits",
            "bits of all stored weights",
            additive=("weight_bits",),
            exact=True,
        ),
        Metric("rounds", "activation rounds, summed over layers", additive=("rounds",), exact=True),
        Metric(
            "latency_ns",
            "pipelined latency of one inference",
            additive=("sequential_latency_ns",),
        ),
        Metric(
            "sequential_latency_ns",
            "latency with one layer after the other",
            additive=("sequential_latency_ns",),
        ),
        Metric("energy_nj", "energy of one inference", additive=("energy_nj",)),
        Metric("area_um2", "area of the tiles in use", additive=("area_um2",)),
        Metric(
            "edp_nj_ns",
            "energy-delay product: energy times pipelined latency",
            additive=("energy_nj", "sequential_latency_ns"),
            parts=("energy_nj", "latency_ns"),
        ),
        Metric("utilization", "cells that hold a weight / cells", maximise=True),
        Metric(
            "compression",
            "dense 32-bit crossbars / crossbars",
            maximise=True,
            parts=("crossbars",),
        ),
        Metric("shape_compression", "the part of it from shapes", maximise=True),
        Metric("bits_compression", "the part of it from bits", maximise=True),
    )
}


def own_metrics(*, measured: bool | None = None) -> list[Metric]:
    """Metrics that users registered: all, those that are measured, or those that are not."""
    own = [metric for metric in METRICS.values() if metric.function is not None]
    return [metric for metric in own if measured in (None, metric.measured)]


def own_texts() -> dict[str, str]:
    """Metric of a user -> what it is."""
    return {metric.name: metric.text for metric in own_metrics()}


def own_sources() -> dict[str, str] | None:
    """Metric of a user -> the function that computes it; None without any."""
    return {metric.name: metric.source for metric in own_metrics()} or None


def own_costs(
    metrics: Iterable[Metric], design: Any, network: Any, totals: Mapping[str, float]
) -> dict[str, float]:
    """The values of users' metrics that are not measured.

    Args:
        metrics: the metrics.
        design: the design.
        network: its network.
        totals: its costs by the package's model.

    Raises:
        InputError: a function fails, or gives no finite number.
    """
    return {metric.name: metric.computed(design, network, totals) for metric in metrics}


def parts_of(name: str) -> tuple[str, ...]:
    """Metrics whose additive costs stand for one."""
    return METRICS[name].parts or (name,)


_DIRECTIONS = {"min": False, "max": True}


def metric_of(objective: str) -> str:
    """The metric of an objective."""
    return objective.rsplit(" ", 1)[-1]


def is_maximised(objective: str) -> bool:
    """Whether more of an objective is better."""
    direction, _, name = objective.rpartition(" ")
    return _DIRECTIONS[direction] if direction else METRICS[name].maximise


def maximised(objectives: Sequence[str]) -> list[bool]:
    """For each objective whether more of it is better."""
    return [is_maximised(objective) for objective in objectives]


def parse_objective(text: str, field: str = "objectives") -> str:
    """An objective in its shortest spelling.

    Raises:
        InputError: not a metric, or a direction that is neither ``min`` nor ``max``.
    """
    direction, _, name = text.strip().rpartition(" ")
    direction = {"minimise": "min", "minimize": "min", "maximise": "max", "maximize": "max"}.get(
        direction, direction
    )
    if name not in METRICS or direction not in ("", *_DIRECTIONS):
        known = ", ".join(f"`{known}`" for known in METRICS)
        raise InputError(
            field,
            f"`{text}` is not an objective",
            f"{known}; `min` or `max` before it turns its direction",
            nearest(name, METRICS),
        )
    natural = METRICS[name].maximise
    return name if not direction or _DIRECTIONS[direction] == natural else f"{direction} {name}"
