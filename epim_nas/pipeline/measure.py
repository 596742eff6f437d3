"""What several stages measure of networks, with the images of a run."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from epim_nas.data.base import Batch, Split
from epim_nas.epitome.statistics import input_covariances
from epim_nas.pipeline.context import Run
from epim_nas.solver.metrics import own_metrics
from epim_nas.supernet.evaluation import (
    Score,
    evaluate,
    evaluation_mode,
    resolve_device,
    to_device,
)
from epim_nas.supernet.scorer import Scorer, ScoreSettings
from epim_nas.supernet.supernet import Supernet


def measure(run: Run, model: nn.Module, split: Split) -> Score:
    """Accuracy and loss of a network on the images of a split."""
    config = run.config
    batches = run.data.batches(split, config.search.batch_size)
    return evaluate(model, batches, config.device, config.precision)


def output_covariances(
    run: Run, model: nn.Module, layers: Sequence[str]
) -> dict[str, Tensor] | None:
    """The covariances of layers' inputs in a trained network, where the run projects by them."""
    images, config = run.config.projection.outputs, run.config
    if images == 0:
        return None
    size = min(images, config.search.batch_size)
    batches = run.data.calibration_batches(images, size, config.seed + 5)
    device = resolve_device(config.device)
    with evaluation_mode(model.to(device)):
        return input_covariances(model, ((to_device(x, device), y) for x, y in batches), layers)


def activation_batch(run: Run) -> Batch:
    """The augmented training images from which activation ranges are taken, and their labels."""
    size = min(256, run.config.search.batch_size)
    return run.data.calibration_batches(size, size, run.config.seed)[0]


def score_settings(run: Run) -> ScoreSettings:
    """How the run file wants designs to be measured."""
    config = run.config
    return ScoreSettings(
        batch_size=config.search.batch_size,
        calibration_images=config.search.calibration_images,
        validation_images=config.search.validation_images,
        device=config.device,
        precision=config.precision,
        seed=config.seed + 3,
        own={metric.name: metric.measured_value for metric in own_metrics(measured=True)},
    )


def make_scorer(run: Run, supernet: Supernet, teacher: nn.Module) -> Scorer:
    """What the executors' workers run."""
    return Scorer(supernet, teacher, run.data, score_settings(run))
