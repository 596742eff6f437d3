"""The Pareto front: non-dominated designs, hypervolume, and the selection of one design.

Everything works on plain numbers; which way an objective is better, its name says
(:mod:`~epim_nas.solver.metrics`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from epim_nas.errors import InputError, nearest
from epim_nas.records import Finalist, TrialRecord
from epim_nas.solver.metrics import METRICS, is_maximised, maximised, metric_of

OBJECTIVES = ("accuracy", "latency_ns", "energy_nj")
"""The objectives of a search by default."""

BEST_IN = {"best-accuracy": "accuracy", "best-latency": "latency_ns", "best-energy": "energy_nj"}
"""Selection of an extreme of the front -> the metric in which it is best."""

SELECTIONS = ("knee", *BEST_IN)
"""Names by which one design of the front can be selected."""

FloatArray = npt.NDArray[np.float64]


class Scored(Protocol):
    """Anything that has metrics: a trial, a finalist."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metric name -> value."""


def values_of(items: Sequence[Scored], objectives: Sequence[str]) -> FloatArray:
    """(items, objectives) metric values.

    Raises:
        InputError: an item lacks an objective, or a value is not finite.
    """
    table = np.empty((len(items), len(objectives)))
    for row, item in enumerate(items):
        for column, name in enumerate(map(metric_of, objectives)):
            if name not in item.metrics:
                raise InputError(
                    f"objectives.{name}",
                    f"`{name}` was not measured",
                    ", ".join(f"`{known}`" for known in item.metrics),
                    nearest(name, item.metrics),
                )
            value = float(item.metrics[name])
            if not math.isfinite(value):
                raise InputError(f"metrics.{name}", f"got `{value}`", "a finite number")
            table[row, column] = value
    return table


def losses_of(items: Sequence[Scored], objectives: Sequence[str]) -> FloatArray:
    """(items, objectives) values with maximised objectives negated: less is better everywhere."""
    signs = [-1.0 if more else 1.0 for more in maximised(objectives)]
    return values_of(items, objectives) * signs


def non_dominated(points: npt.ArrayLike, maximise: Sequence[bool]) -> npt.NDArray[np.bool_]:
    """Which points no other point dominates.

    A point dominates another if it is at least as good in every objective and better in one;
    equal points do not dominate each other.

    Args:
        points: (N, M) objective values.
        maximise: for each of the M objectives whether more is better.

    Returns:
        (N,) mask.

    Raises:
        ValueError: the sizes do not agree.
    """
    values = np.asarray(points, dtype=np.float64)
    if values.size == 0:
        return np.zeros(len(values), dtype=bool)
    if values.ndim != 2 or values.shape[1] != len(maximise):
        raise ValueError(f"points of shape {values.shape} for {len(maximise)} objectives")
    losses = np.where(np.asarray(maximise, dtype=bool), -values, values)
    # Whoever dominates a point comes before it in lexicographic order, and one of its dominators
    # is on the front: striking out what each point of the front dominates is enough.
    order = np.lexsort(losses.T[::-1])
    ordered = losses[order]
    on_front = np.ones(len(losses), dtype=bool)
    for index, point in enumerate(ordered):
        if on_front[index]:
            rest = ordered[index + 1 :]
            on_front[index + 1 :] &= ~((point <= rest).all(axis=1) & (point < rest).any(axis=1))
    keep = np.empty(len(losses), dtype=bool)
    keep[order] = on_front
    return keep


def front_numbers(
    trials: Iterable[TrialRecord], objectives: Sequence[str] = OBJECTIVES
) -> tuple[int, ...]:
    """Numbers of the feasible, non-dominated trials, by falling accuracy.

    Of trials with equal objective values only the first is kept.

    Args:
        trials: scored designs, in any order.
        objectives: names of the objectives.
    """
    feasible = sorted((trial for trial in trials if trial.feasible), key=lambda t: t.number)
    losses = losses_of(feasible, objectives)
    mask = non_dominated(losses, [False] * len(objectives))
    kept: dict[tuple[float, ...], int] = {}
    for trial, loss, on_front in zip(feasible, losses, mask, strict=True):
        if on_front:
            kept.setdefault(tuple(loss.tolist()), trial.number)
    lead = list(objectives).index("accuracy") if "accuracy" in objectives else 0
    return tuple(kept[loss] for loss in sorted(kept, key=lambda loss: (loss[lead], loss)))


_RANGES: dict[str, tuple[float, float]] = {
    "accuracy": (0.0, 1.0),
    "utilization": (0.0, 1.0),
    # The loss of a guess among a thousand classes is 7 nats; a thousandfold compression is out of
    # reach. Ranks are logarithms of nats.
    "loss": (0.0, 7.0),
    "sensitivity": (0.0, 7.0),
    "expected_rank": (-7.0, 14.0),
    "compression": (0.0, 1000.0),
    "shape_compression": (0.0, 1000.0),
    "bits_compression": (0.0, 32.0),
}
"""Smallest and largest value of metrics that the dense network's costs say nothing about."""


@dataclass(frozen=True)
class ReferenceBox:
    """The box in which the hypervolume is measured, one entry per objective.

    Attributes:
        worst: the reference point: a front contributes where it is better than this.
        best: the ideal point; a design there would have the hypervolume 1.
    """

    worst: Mapping[str, float]
    best: Mapping[str, float]

    @classmethod
    def from_baseline(
        cls,
        totals: Mapping[str, float],
        objectives: Sequence[str] = OBJECTIVES,
        margin: float = 4.0,
    ) -> ReferenceBox:
        """From accuracy 0 at a multiple of the dense costs (worst) to accuracy 1 at no cost (best).

        The reference point lies beyond the dense network because an epitome may take more rounds,
        and so more time, than the convolution it replaces.

        Args:
            totals: cost totals of the dense baseline.
            objectives: names of the objectives.
            margin: worst cost as a multiple of the baseline's.

        Raises:
            InputError: the baseline has no positive value of an objective.
        """
        worst: dict[str, float] = {}
        best: dict[str, float] = {}
        for objective in objectives:
            name = metric_of(objective)
            if name in _RANGES:
                low, high = _RANGES[name]
            else:
                cost = float(totals.get(name, math.nan))
                if not (math.isfinite(cost) and cost > 0):
                    raise InputError(
                        f"baseline.totals.{name}", f"got `{totals.get(name)}`", "a positive number"
                    )
                low, high = 0.0, margin * cost
            worst[objective], best[objective] = (
                (low, high) if is_maximised(objective) else (high, low)
            )
        return cls(worst, best)

    def describe(self) -> str:
        """The reference point in words, for captions."""
        point = ", ".join(
            f"{name} {value:,.4f}".rstrip("0").rstrip(".") for name, value in self.worst.items()
        )
        return f"fraction of the box between the reference point ({point}) and the ideal point"

    def losses(self, items: Sequence[Scored]) -> FloatArray:
        """(items, objectives) positions in the box: 0 is the ideal, 1 the reference point."""
        names = list(self.worst)
        worst = np.array([self.worst[name] for name in names], dtype=np.float64)
        best = np.array([self.best[name] for name in names], dtype=np.float64)
        if np.any(worst == best):
            raise InputError("reference", "the worst and the best point share a coordinate")
        return (values_of(items, names) - best) / (worst - best)


def hypervolume(items: Sequence[Scored], reference: ReferenceBox) -> float:
    """Fraction (0..1) of the reference box that the items dominate, computed exactly.

    Items that are not better than the reference point in every objective contribute nothing, and
    nothing counts beyond the ideal point.

    Args:
        items: trials or finalists; those of infeasible designs have to be left out by the caller.
        reference: the box; its keys are the objectives.
    """
    return box_volume(reference.losses(items))


def hypervolume_over_trials(
    trials: Iterable[TrialRecord], reference: ReferenceBox
) -> list[tuple[int, float]]:
    """(trial number, hypervolume of the feasible trials up to it), in the given order."""
    history: list[tuple[int, float]] = []
    tracker = HypervolumeTracker(reference)
    for trial in trials:
        history.append((trial.number, tracker.add(trial)))
    return history


class HypervolumeTracker:
    """The hypervolume of a growing set of trials; a dominated newcomer costs next to nothing.

    Attributes:
        reference: the box in which it is measured.
        volume: the hypervolume of what was added.
    """

    def __init__(self, reference: ReferenceBox) -> None:
        self.reference = reference
        self.volume = 0.0
        self._front = np.empty((0, len(reference.worst)))

    def add(self, trial: TrialRecord) -> float:
        """Add a trial (infeasible ones change nothing) and return the hypervolume."""
        if trial.feasible:
            loss = self.reference.losses([trial])
            if not bool((self._front <= loss).all(axis=1).any()):
                dominated = (loss <= self._front).all(axis=1)
                self._front = np.concatenate([self._front[~dominated], loss])
                self.volume = box_volume(self._front)
        return self.volume


def box_volume(losses: FloatArray) -> float:
    """Hypervolume of (N, M) losses with respect to (1, ..., 1), nothing counted below 0."""
    # Optuna's exact algorithms (a sweep in two and three dimensions, WFG above).
    from optuna._hypervolume import compute_hypervolume

    inside = losses[(losses < 1.0).all(axis=1)]
    if not len(inside):
        return 0.0
    return float(compute_hypervolume(np.maximum(inside, 0.0), np.ones(losses.shape[1])))


def select(
    front: Sequence[TrialRecord], which: str, objectives: Sequence[str] = OBJECTIVES
) -> TrialRecord:
    """One design of the front.

    ``best-accuracy``, ``best-latency`` and ``best-energy`` are the extremes, ties going to the
    design that is better on the whole. ``knee`` is the best compromise between accuracy and cost:
    every objective is scaled to 0 (best on the front) .. 1 (worst), the costs are averaged, and
    the knee is the point that lies farthest, towards the ideal, from the line through the most
    accurate and the cheapest design (Das, "On characterizing the knee of the Pareto curve",
    1999). Averaging first keeps correlated costs, such as latency and energy, from outvoting
    accuracy; with two objectives the definition is the usual one.

    Args:
        front: the trials on the front.
        which: one of :data:`SELECTIONS`.
        objectives: names of the objectives, for the knee.

    Raises:
        InputError: an unknown selection, or an empty front.
    """
    if which not in SELECTIONS:
        raise InputError(
            "select",
            f"got `{which}`",
            ", ".join(f"`{name}`" for name in SELECTIONS) + ", or the number of a trial",
            nearest(which, SELECTIONS),
        )
    if not front:
        raise InputError(
            "select",
            "the front is empty: no design kept the budget",
            hint="Raise the budget or run more trials.",
        )
    scaled = _scaled(losses_of(front, objectives))
    total = scaled.mean(axis=1)
    if which == "knee":
        score = _knee_distances(scaled, objectives)
    else:
        score = -losses_of(front, [BEST_IN[which]])[:, 0]
    best = max(
        range(len(front)), key=lambda index: (score[index], -total[index], -front[index].number)
    )
    return front[best]


def best_finalist(
    finalists: Sequence[Finalist], objectives: Sequence[str] = OBJECTIVES
) -> Finalist:
    """The fine-tuned design to take: the cheapest of those that validation cannot tell apart.

    These are all within one standard error of the highest validation accuracy p: for n images
    sqrt(p (1 - p) / n), that of a binomial proportion. (The one-standard-error rule of Breiman et
    al., "Classification and Regression Trees", 1984.) Of them the one is taken whose costs are
    least, as the mean of the objectives' costs, each scaled to 0 .. 1; then the more accurate one.
    So no other finalist is at least as good in accuracy and in every cost, and better in one.

    Args:
        finalists: at least one.
        objectives: names of the objectives; of these the costs that need no measuring count.
    """
    best = max(finalist.validation_accuracy for finalist in finalists)

    def alike(finalist: Finalist) -> bool:
        images = finalist.validation_images
        error = math.sqrt(best * (1 - best) / images) if images else 0.0
        return finalist.validation_accuracy >= best - error

    close = [finalist for finalist in finalists if alike(finalist)]
    costs = [name for name in objectives if not METRICS[metric_of(name)].measured]
    losses = losses_of(close, costs)
    wrong = np.array([[-finalist.validation_accuracy] for finalist in close])
    # Sums are rounded, so that the least one alone could be that of a dominated finalist.
    dominated = ~non_dominated(np.hstack([losses, wrong]), [False] * (len(costs) + 1))
    total = _scaled(losses).sum(axis=1)
    order = [
        (dominated[i], total[i], wrong[i, 0], finalist.number) for i, finalist in enumerate(close)
    ]
    return close[order.index(min(order))]


def _scaled(losses: FloatArray) -> FloatArray:
    """Losses scaled to 0 (best) .. 1 (worst); an objective without spread becomes 0."""
    low = losses.min(axis=0)
    spread = losses.max(axis=0) - low
    result: FloatArray = (losses - low) / np.where(spread > 0, spread, 1.0)
    return result


def _knee_distances(scaled: FloatArray, objectives: Sequence[str]) -> FloatArray:
    """Distance of each point below the line through the extremes, rounded against noise."""
    good = np.array(maximised(objectives))
    if good.all() or not good.any():
        # One kind of objective only: there is no trade-off line; take the nearest to the ideal.
        return -np.linalg.norm(scaled, axis=1)
    loss = scaled[:, good].mean(axis=1)
    cost = scaled[:, ~good].mean(axis=1)
    first = np.lexsort((cost, loss))[0]
    last = np.lexsort((loss, cost))[0]
    across, down = cost[first] - cost[last], loss[last] - loss[first]
    length = math.hypot(across, down)
    if length == 0:
        return np.zeros(len(scaled))
    # Normal (down, across) points from the ideal to the line; below the line is positive.
    distance = ((cost[first] - cost) * down + (loss[first] - loss) * across) / length
    return np.round(distance, 12)
