"""The network of one design, and its accuracy: what ``evaluate`` does."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from epim_nas.data.base import Split
from epim_nas.epitome.convert import apply_design
from epim_nas.epitome.design import Design, load_design
from epim_nas.epitome.layers import EpitomeConv2d, EpitomeLinear
from epim_nas.errors import InputError, nearest
from epim_nas.models.weights import load_weights
from epim_nas.network.modules import clone
from epim_nas.pipeline.config import RunConfig, load_run_config
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.measure import activation_batch, measure, output_covariances, score_settings
from epim_nas.pipeline.progress import Reporter
from epim_nas.pipeline.stages.baseline import load_baseline, load_given_weights
from epim_nas.supernet.evaluation import recalibrate_batch_norm, resolve_device, to_device

log = logging.getLogger(__name__)

_MEASURED = ("validation", "test")
"""Splits that an accuracy is measured on: training images are augmented."""


def evaluate_design(
    design_file: Path,
    run_file: str,
    *,
    weights: Path | None = None,
    split: str = "test",
    overrides: list[str] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Accuracy and cost of one design.

    Args:
        design_file: the design.
        run_file: run file that names network, data and weights.
        weights: its epitomes; without them, the run's network projected onto the design.
        split: ``validation`` or ``test``.
        overrides: changes to the run file.
        reporter: shows the progress.
    """
    check_split(split)
    run, design = load_for(
        design_file, run_file, overrides, reporter, weights_needed=weights is None
    )
    model = quantized_network(run, design, weights)
    score = measure(run, model, cast(Split, split))
    metrics = run.metrics(design)
    return {
        "schema": "epim-nas/evaluation@1",
        "design": str(design_file),
        "network": design.network,
        "weights": "projected" if weights is None else str(weights),
        "split": split,
        "accuracy": score.accuracy,
        "loss": score.loss,
        "images": score.images,
        "crossbars": int(metrics["crossbars"]),
        **{k: metrics[k] for k in ("compression", "latency_ns", "energy_nj")},
    }


def check_split(split: str) -> None:
    """Refuse a split that cannot be measured on.

    Raises:
        InputError: it is neither ``validation`` nor ``test``.
    """
    if split not in _MEASURED:
        raise InputError(
            "--split", f"got `{split}`", ", ".join(_MEASURED), nearest(split, _MEASURED)
        )


def quantized_network(run: Run, design: Design, weights: Path | None) -> nn.Module:
    """The network of a design with its own weights, or the run's network projected onto it.

    Args:
        run: the run; where there are no weights, with its trained network.
        design: the design.
        weights: file of its weights.

    Raises:
        InputError: the weights are not those of the design.
    """
    if weights is None:
        return _start(run, design)
    model = apply_design(run.model, design, quantization=run.quantization)
    load_weights(model, weights, field="--weights")
    return model


def load_for(
    design_file: Path,
    run_file: str,
    overrides: list[str] | None,
    reporter: Reporter | None = None,
    weights_needed: bool = True,
) -> tuple[Run, Design]:
    """The run's network and data, and a design of it.

    Args:
        design_file: the design.
        run_file: run file.
        overrides: changes to the run file.
        reporter: shows the progress.
        weights_needed: whether the trained dense network is needed.
    """
    design = load_design(design_file)
    config, path = load_run_config(run_file, overrides)
    folder = RunFolder(path.parent)
    if weights_needed:
        return load_trained(config, folder, design, str(design_file), reporter), design
    run = Run.load(config, folder, reporter)
    design.check_fits(run.network, str(design_file))
    return run, design


def load_trained(
    config: RunConfig,
    folder: RunFolder,
    design: Design,
    source: str,
    reporter: Reporter | None = None,
) -> Run:
    """A run whose network is the trained one.

    Args:
        config: the run file.
        folder: folder of the run file.
        design: a design that has to fit the network.
        source: where the design came from.
        reporter: shows the progress.

    Raises:
        InputError: the design does not fit, or there are no trained weights.
    """
    run = Run.load(config, folder, reporter)
    model = clone(run.model)
    design.check_fits(run.network, source)
    baseline = folder.checkpoints / "baseline.safetensors"
    given = load_given_weights(run, model)
    if given is None and baseline.is_file():
        # The run trained its own network, and RUN is in its folder.
        load_baseline(model, baseline)
    elif given is None:
        raise InputError(
            f"{folder.config}: model.weights",
            "is not given, and the run file is not in a run folder with a trained network",
            hint="Give RUN as DIR/run.yaml of the search, or set model.weights.",
        )
    return replace(run, model=model)


def _start(run: Run, design: Design) -> nn.Module:
    """The projected, calibrated network of a design."""
    projection = run.config.projection
    layers = [name for name, choice in design.choices.items() if choice.shape is not None]
    covariances = output_covariances(run, run.model, layers)
    with run.reporter.stage("Projection", len(design.choices)) as advance:
        model = apply_design(
            run.model,
            design,
            quantization=run.quantization,
            align=projection.align,
            covariances=covariances,
            progress=lambda done: advance(done, ""),
        )
    calibrate_activations(run, model)
    recalibrate(run, model)
    return model


def calibrate_activations(run: Run, model: nn.Module) -> None:
    """Choose the ranges of the layers' inputs anew; ``model`` is left in evaluation mode."""
    for module in model.modules():
        if isinstance(module, (EpitomeConv2d, EpitomeLinear)) and module.activation is not None:
            module.activation.reset()
    batch, device = activation_batch(run), resolve_device(run.config.device)
    # Normalised by their own statistics: by those of the dense network, the outputs of epitomes
    # and of fewer channels are too small, and so would be the ranges.
    recalibrate_batch_norm(model, [batch], device, "float32")
    with torch.no_grad():  # where there is no batch norm
        model.to(device).eval()(to_device(batch[0], device))


def recalibrate(run: Run, model: nn.Module) -> None:
    """Collect the batch-norm statistics of a network of the run anew."""
    batches = score_settings(run).calibration_batches(run.data)
    recalibrate_batch_norm(model, batches, run.config.device, run.config.precision)
