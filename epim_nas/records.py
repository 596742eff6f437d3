"""What a search produces: plain values that reports, exports and the command line read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from epim_nas.epitome.design import Design

Origin = Literal["seed", "search"]


@dataclass(frozen=True)
class TrialRecord:
    """One design that was scored on the supernet.

    Attributes:
        number: number of the trial in the study.
        design: the design.
        metrics: ``accuracy`` (search-validation top-1 on the supernet, 0..1), ``latency_ns``
            (pipelined), ``energy_nj``, ``crossbars``, ``compression``, ``shape_compression``,
            ``bits_compression``, ``sensitivity`` (additive score) and further cost totals.
        feasible: whether every budget is kept.
        origin: an exact ``seed`` or a proposal of the ``search``.
        finished_at: seconds since 1970 at which the result was known.
        seconds: seconds that the evaluation took.
    """

    number: int
    design: Design
    metrics: Mapping[str, float]
    feasible: bool
    origin: Origin
    finished_at: float
    seconds: float


@dataclass(frozen=True)
class Baseline:
    """The trained network before any change.

    Attributes:
        validation_accuracy: top-1 on the search-validation images (0..1).
        test_accuracy: top-1 on the test images (0..1).
        totals: cost totals of the dense network at 32-bit weights.
        weights: where its weights came from.
    """

    validation_accuracy: float
    test_accuracy: float
    totals: Mapping[str, float]
    weights: str


@dataclass(frozen=True)
class Finalist:
    """A design of the front after stand-alone fine-tuning.

    Attributes:
        number: number of its trial.
        design: the design.
        metrics: the trial's metrics.
        steps: fine-tuning steps.
        validation_accuracy: top-1 on the search-validation images after fine-tuning.
        test_accuracy: top-1 on the test images, measured once.
        curve: (step, loss) samples of the fine-tuning.
        weights: the checkpoint, relative to the run folder.
        validation_images: number of search-validation images; 0 where that was not stored.
    """

    number: int
    design: Design
    metrics: Mapping[str, float]
    steps: int
    validation_accuracy: float
    test_accuracy: float
    curve: tuple[tuple[int, float], ...] = ()
    weights: str = ""
    validation_images: int = 0


@dataclass(frozen=True)
class RunResult:
    """Everything that a finished (or interrupted) run stored.

    Attributes:
        name: name of the run.
        config: the resolved run file.
        objectives: objective names, ``accuracy`` maximised and the rest minimised.
        budget: budget name -> limit, e.g. ``{"crossbars": 512}``.
        baseline: the trained dense network.
        trials: every scored design in order of its number.
        front: numbers of the trials on the Pareto front, by falling accuracy.
        finalists: trials whose designs were fine-tuned, by falling validation accuracy.
        selected: selection (``knee``, ``best-accuracy``, ...) -> trial number.
        supernet_curve: (step, loss) samples of the supernet's training.
        versions: package -> version.
        seconds: stage -> seconds spent.
    """

    name: str
    config: Mapping[str, Any]
    objectives: tuple[str, ...]
    budget: Mapping[str, float]
    baseline: Baseline
    trials: tuple[TrialRecord, ...]
    front: tuple[int, ...]
    finalists: tuple[Finalist, ...]
    selected: Mapping[str, int]
    supernet_curve: tuple[tuple[int, float], ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
