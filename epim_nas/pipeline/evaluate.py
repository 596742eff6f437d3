"""The network of one design, and its accuracy: what ``evaluate`` does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from epim_nas.data.base import SPLITS, Split
from epim_nas.epitome.convert import apply_design
from epim_nas.epitome.design import Design, load_design
from epim_nas.epitome.layers import EpitomeConv2d, EpitomeLinear
from epim_nas.errors import InputError, nearest
from epim_nas.models.weights import load_weights
from epim_nas.pipeline.config import RunConfig, load_run_config
from epim_nas.pipeline.context import Setup
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.progress import Reporter
from epim_nas.pipeline.stages.baseline import (
    activation_batch,
    load_baseline,
    load_given_weights,
    measure,
    output_covariances,
    score_settings,
)
from epim_nas.supernet.evaluation import recalibrate_batch_norm, resolve_device, to_device

log = logging.getLogger(__name__)


def evaluate_design(
    design_file: Path,
    run: str,
    *,
    weights: Path | None = None,
    split: str = "test",
    overrides: list[str] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Accuracy and cost of one design.

    Args:
        design_file: the design.
        run: run file that names network, data and weights.
        weights: its epitomes; without them, the run's network projected onto the design.
        split: ``validation`` or ``test``.
        overrides: changes to the run file.
        reporter: shows the progress.
    """
    check_split(split)
    setup, design = load_for(design_file, run, overrides, weights_needed=weights is None)
    model = quantized_network(setup, design, weights, reporter)
    score = measure(setup, model, cast(Split, split))
    metrics = setup.metrics(design)
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
    if split not in SPLITS:
        raise InputError("--split", f"got `{split}`", ", ".join(SPLITS), nearest(split, SPLITS))


def quantized_network(
    setup: Setup, design: Design, weights: Path | None, reporter: Reporter | None = None
) -> nn.Module:
    """The network of a design with its own weights, or the run's network projected onto it.

    Args:
        setup: the run's network and data.
        design: the design.
        weights: file of its weights.
        reporter: shows the progress of the projection.

    Raises:
        InputError: the weights are not those of the design.
    """
    if weights is None:
        return _start(setup, design, reporter or Reporter())
    model = apply_design(setup.model, design, quantization=setup.quantization)
    load_weights(model, weights, field="--weights")
    return model


def load_for(
    design_file: Path, run: str, overrides: list[str] | None, weights_needed: bool = True
) -> tuple[Setup, Design]:
    """The run's network and data, and a design of it.

    Args:
        design_file: the design.
        run: run file.
        overrides: changes to the run file.
        weights_needed: whether the trained dense network is needed.
    """
    design = load_design(design_file)
    config, path = load_run_config(run, overrides)
    if weights_needed:
        return load_trained(config, path.parent, design, str(design_file)), design
    setup = Setup.load(config)
    design.check_fits(setup.network, str(design_file))
    return setup, design


def load_trained(config: RunConfig, run_folder: Path, design: Design, source: str) -> Setup:
    """The run's data and trained network.

    Args:
        config: the run file.
        run_folder: folder of the run file.
        design: a design that has to fit the network.
        source: where the design came from.

    Raises:
        InputError: the design does not fit, or there are no trained weights.
    """
    setup = Setup.load(config)
    design.check_fits(setup.network, source)
    baseline = RunFolder(run_folder).checkpoints / "baseline.safetensors"
    given = load_given_weights(setup)
    if given is None and baseline.is_file():
        # The run trained its own network, and RUN is in its folder.
        load_baseline(setup.model, baseline)
    elif given is None:
        raise InputError(
            f"{run_folder / 'run.yaml'}: model.weights",
            "is not given, and the run file is not in a run folder with a trained network",
            hint="Give RUN as DIR/run.yaml of the search, or set model.weights.",
        )
    return setup


def _start(setup: Setup, design: Design, reporter: Reporter) -> nn.Module:
    """The projected, calibrated network of a design."""
    projection = setup.config.projection
    layers = [name for name, choice in design.choices.items() if choice.shape is not None]
    covariances = output_covariances(setup, layers)
    with reporter.stage("Projection", len(design.choices)) as advance:
        model = apply_design(
            setup.model,
            design,
            quantization=setup.quantization,
            align=projection.align,
            covariances=covariances,
            progress=lambda done: advance(done, ""),
        )
    calibrate_activations(setup, model)
    recalibrate(setup, model)
    return model


def calibrate_activations(setup: Setup, model: nn.Module) -> None:
    """Choose the ranges of the layers' inputs anew; ``model`` is left in evaluation mode."""
    for module in model.modules():
        if isinstance(module, (EpitomeConv2d, EpitomeLinear)) and module.activation is not None:
            module.activation.reset()
    batch, device = activation_batch(setup), resolve_device(setup.config.device)
    # Normalised by their own statistics: by those of the dense network, the outputs of epitomes
    # and of fewer channels are too small, and so would be the ranges.
    recalibrate_batch_norm(model, [batch], device, "float32")
    with torch.no_grad():  # where there is no batch norm
        model.to(device).eval()(to_device(batch[0], device))


def recalibrate(setup: Setup, model: nn.Module) -> None:
    """Collect the batch-norm statistics of a network of the run anew."""
    batches = score_settings(setup).calibration_batches(setup.data)
    recalibrate_batch_norm(model, batches, setup.config.device, setup.config.precision)
