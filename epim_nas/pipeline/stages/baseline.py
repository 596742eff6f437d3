"""The baseline: the trained dense network."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from torch import nn

from epim_nas.errors import InputError
from epim_nas.files import file_digest
from epim_nas.models.weights import (
    find_weights,
    load_state,
    load_weights,
    read_state,
    save_weights,
)
from epim_nas.network.modules import clone
from epim_nas.pipeline.config import PRETRAINED
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.measure import measure, score_settings
from epim_nas.records import Baseline
from epim_nas.solver.metrics import own_metrics
from epim_nas.stored import remove_stored, store_json
from epim_nas.supernet.scorer import measure_own
from epim_nas.supernet.training import train

log = logging.getLogger(__name__)


def prepare_baseline(run: Run) -> tuple[nn.Module, Baseline]:
    """The trained network, and what is measured of it once.

    The weights are those that the run file names, or trained and cached here.
    """
    config, model = run.config, clone(run.model)
    cached = run.folder.checkpoints / "baseline.safetensors"
    given = load_given_weights(run, model)
    source = given or "trained in this run"
    if given is None and cached.exists():
        load_baseline(model, cached)
    elif given is None:
        log.info("model.weights is not given: training the baseline first")
        training = config.baseline
        with run.stage("baseline", "Baseline", training.steps) as advance:
            train(
                model,
                run.data,
                training.train_config(training.steps, config.data.batch_size, training.lr),
                seed=config.seed,
                device=config.device,
                precision=config.precision,
                checkpoint=run.folder.checkpoints / "baseline.state",
                progress=lambda step, loss: advance(step, f"loss {loss:.3f}"),
            )
        save_weights(model, cached, metadata={"run": config.name}, stored=True)
        remove_stored(run.folder.checkpoints / "baseline.state")
    if run.folder.baseline.exists():
        stored = run.folder.parse(run.folder.baseline, lambda data: Baseline(**data))
        if stored.weights != source:
            raise InputError(
                "model.weights",
                f"is {source}, but this run began with {stored.weights}",
                hint="Use the same weights, or another --out run.folder.",
            )
        return model, stored
    with run.folder.timed("baseline"):
        validation = measure(run, model, "validation").accuracy
        test = measure(run, model, "test").accuracy
    baseline = Baseline(
        validation_accuracy=validation,
        test_accuracy=test,
        totals=run.dense_totals() | _own_of_dense(run, model),
        weights=source,
    )
    store_json(run.folder.baseline, asdict(baseline))
    return model, baseline


def load_baseline(model: nn.Module, file: Path) -> None:
    """Load the network that a run has trained. It is named where it is damaged."""
    load_state(model, read_state(file, field=str(file)), str(file))


def _own_of_dense(run: Run, model: nn.Module) -> dict[str, float]:
    """The user's measured metrics of the trained network."""
    metrics = own_metrics(measured=True)
    found = measure_own(score_settings(run).own, model, run.data)
    return {metric.name: metric.of_dense(metric.finite(found[metric.name])) for metric in metrics}


def load_given_weights(run: Run, network: nn.Module) -> str | None:
    """Load the weights that the run file names into a network of the run.

    Returns:
        What they are, for the record; None where the run file names none.
    """
    model = run.config.model
    if model.weights is None:
        return None
    if model.weights == PRETRAINED:
        channels = run.data.input_shape[0]
        if channels != 3:
            raise InputError(
                "model.weights",
                f"`{PRETRAINED}` networks of libraries are for colour images; the data has "
                f"{channels} channel{'s' * (channels != 1)}",
                "images of 3 channels",
                "Convert the images of a folder with data.args.mode=RGB, or give weights of your "
                "own.",
            )
        return f"as {model.name} comes with {model.args}"
    file = find_weights(model.weights)
    load_weights(network, file)
    return f"{model.weights} (sha256 {file_digest(file)[:16]})"
