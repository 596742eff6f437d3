"""Training and measuring one design: what ``finetune`` and ``evaluate`` do."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from epim_nas.data.base import SPLITS, Split
from epim_nas.epitome.convert import apply_design
from epim_nas.epitome.design import Design, load_design
from epim_nas.epitome.layers import EpitomeConv2d, EpitomeLinear
from epim_nas.errors import InputError, nearest
from epim_nas.files import make_folder
from epim_nas.models.weights import load_weights, save_weights
from epim_nas.pipeline.config import load_run_config
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.progress import Reporter
from epim_nas.pipeline.setup import Setup
from epim_nas.pipeline.stages import (
    activation_images,
    load_given_weights,
    measure,
    output_covariances,
    score_settings,
    train_config,
)
from epim_nas.supernet.evaluation import recalibrate_batch_norm
from epim_nas.supernet.training import train

log = logging.getLogger(__name__)


def finetune_design(
    design_file: Path,
    run: str,
    *,
    epochs: int,
    lr: float | None = None,
    out: Path | None = None,
    overrides: list[str] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train one design fully; an interrupted training goes on.

    Args:
        design_file: the design.
        run: run file that names network, data and weights.
        epochs: passes over the training images.
        lr: peak learning rate; by default that of the run file's finalists.
        out: folder; ``finetuned/DESIGN`` by default.
        overrides: changes to the run file.
        reporter: shows the progress.

    Returns:
        ``before`` and ``validation_accuracy``, ``test_accuracy``, ``epochs``, ``weights``.
    """
    if lr is not None and not 0 < lr < 10:
        raise InputError("--lr", f"got {lr:g}", "a rate greater than 0 and less than 10")
    setup, design = load_for(design_file, run, overrides)
    folder = make_folder(out if out is not None else Path("finetuned") / design_file.stem, "--out")
    config = setup.config
    teacher, reporter = setup.model, reporter or Reporter()
    model = _start(setup, design, reporter)
    before = measure(setup, model, "validation").accuracy
    training = train_config(config.finalists, config.data.batch_size)
    steps_per_epoch = max(1, setup.data.sizes["train"] // training.batch_size)
    training = replace(
        training, steps=epochs * steps_per_epoch, lr=training.lr if lr is None else lr
    )
    checkpoint = folder / "training.state"
    with reporter.stage("Fine-tuning", training.steps) as advance:
        train(
            model,
            setup.data,
            training,
            seed=config.seed,
            device=config.device,
            precision=config.precision,
            teacher=teacher,
            checkpoint=checkpoint,
            progress=lambda step, loss: advance(step, f"loss {loss:.3f}"),
        )
    _recalibrate(setup, model)
    result = {
        "before": before,
        "validation_accuracy": measure(setup, model, "validation").accuracy,
        "test_accuracy": measure(setup, model, "test").accuracy,
        "epochs": epochs,
        "weights": str(folder / "epitomes.safetensors"),
    }
    save_weights(
        model,
        folder / "epitomes.safetensors",
        metadata={name: str(value) for name, value in result.items()},
    )
    measured = {key: result[key] for key in ("validation_accuracy", "test_accuracy", "epochs")}
    provenance = {**design.provenance, "finetuned": measured}
    replace(design, provenance=provenance).save(folder / "design.yaml")
    checkpoint.unlink(missing_ok=True)
    return result


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
    setup = Setup.load(config)
    design.check_fits(setup.network, str(design_file))
    if weights_needed:
        baseline = RunFolder(path.parent).checkpoints / "baseline.safetensors"
        given = load_given_weights(setup)
        if given is None and baseline.is_file():
            # The run trained its own network, and RUN is in its folder.
            load_weights(setup.model, baseline)
        elif given is None:
            raise InputError(
                f"{path}: model.weights",
                "is not given, and the run file is not in a run folder with a trained network",
                hint="Give RUN as DIR/run.yaml of the search, or set model.weights.",
            )
    return setup, design


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
    images = activation_images(setup)
    for module in model.modules():
        if isinstance(module, (EpitomeConv2d, EpitomeLinear)) and module.activation is not None:
            module.activation.reset()
    model.eval()(images)
    _recalibrate(setup, model)
    return model


def _recalibrate(setup: Setup, model: nn.Module) -> None:
    batches = score_settings(setup).calibration_batches(setup.data)
    recalibrate_batch_norm(model, batches, setup.config.device, setup.config.precision)
