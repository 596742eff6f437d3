"""The stages before the search: baseline, sensitivity, seeds, supernet. Each can be resumed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn

from epim_nas.data.base import Batch, Split
from epim_nas.epitome.alignment import AlignmentSearch
from epim_nas.epitome.statistics import input_covariances
from epim_nas.errors import InputError
from epim_nas.files import file_digest
from epim_nas.models.weights import find_weights, load_state, load_weights, read_state, save_weights
from epim_nas.pipeline.config import PRETRAINED
from epim_nas.pipeline.context import Setup
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.progress import Reporter
from epim_nas.records import Baseline
from epim_nas.solver.exact_front import exact_seeds
from epim_nas.solver.feasible import FeasibleSolver
from epim_nas.solver.metrics import own_metrics
from epim_nas.space.space import Row, SearchSpace
from epim_nas.stored import remove_stored, store_json
from epim_nas.study.strategies import find_strategy
from epim_nas.supernet.descent import Descent, gradient_rows
from epim_nas.supernet.evaluation import (
    Score,
    evaluate,
    evaluation_mode,
    resolve_device,
    to_device,
)
from epim_nas.supernet.relaxation import Relaxation
from epim_nas.supernet.scorer import Scorer, ScoreSettings, measure_own
from epim_nas.supernet.sensitivity import Table, find_method, measure_table
from epim_nas.supernet.supernet import Supernet
from epim_nas.supernet.training import train

log = logging.getLogger(__name__)

_GRADIENT_BATCHES = 16
"""Batches of augmented training images that the gradient strategy takes in turn."""


@contextmanager
def timed(folder: RunFolder, stage: str) -> Iterator[None]:
    """Add the time of a block to the folder's record, also when it is interrupted."""
    started = time.monotonic()
    try:
        yield
    finally:
        folder.note_seconds(stage, time.monotonic() - started)


def prepare_baseline(setup: Setup, folder: RunFolder, reporter: Reporter) -> Baseline:
    """Load the trained weights into ``setup.model``, or train and cache them; measure once."""
    config, model = setup.config, setup.model
    cached = folder.checkpoints / "baseline.safetensors"
    given = load_given_weights(setup)
    source = given or "trained in this run"
    if given is None and cached.exists():
        load_baseline(model, cached)
    elif given is None:
        log.info("model.weights is not given: training the baseline first")
        training = config.baseline
        with timed(folder, "baseline"), reporter.stage("Baseline", training.steps) as advance:
            train(
                model,
                setup.data,
                training.train_config(training.steps, config.data.batch_size, training.lr),
                seed=config.seed,
                device=config.device,
                precision=config.precision,
                checkpoint=folder.checkpoints / "baseline.state",
                progress=lambda step, loss: advance(step, f"loss {loss:.3f}"),
            )
        save_weights(model, cached, metadata={"run": config.name}, stored=True)
        remove_stored(folder.checkpoints / "baseline.state")
    if folder.baseline.exists():
        stored = folder.parse(folder.baseline, lambda data: Baseline(**data))
        if stored.weights != source:
            raise InputError(
                "model.weights",
                f"is {source}, but this run began with {stored.weights}",
                hint="Use the same weights, or another --out folder.",
            )
        return stored
    with timed(folder, "baseline"):
        validation = measure(setup, model, "validation").accuracy
        test = measure(setup, model, "test").accuracy
    baseline = Baseline(
        validation_accuracy=validation,
        test_accuracy=test,
        totals=setup.dense_totals() | _own_of_dense(setup),
        weights=source,
    )
    store_json(folder.baseline, asdict(baseline))
    return baseline


def load_baseline(model: nn.Module, file: Path) -> None:
    """Load the network that a run has trained. It is named where it is damaged."""
    load_state(model, read_state(file, field=str(file)), str(file))


def _own_of_dense(setup: Setup) -> dict[str, float]:
    """The user's measured metrics of the trained network."""
    metrics = own_metrics(measured=True)
    found = measure_own(score_settings(setup).own, setup.model, setup.data)
    return {metric.name: metric.of_dense(metric.finite(found[metric.name])) for metric in metrics}


def load_given_weights(setup: Setup) -> str | None:
    """Load the weights that the run file names into ``setup.model``.

    Returns:
        What they are, for the record; None where the run file names none.
    """
    model = setup.config.model
    if model.weights is None:
        return None
    if model.weights == PRETRAINED:
        channels = setup.data.input_shape[0]
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
    load_weights(setup.model, file)
    return f"{model.weights} (sha256 {file_digest(file)[:16]})"


def measure(setup: Setup, model: nn.Module, split: Split) -> Score:
    """Accuracy and loss of a network on the images of a split."""
    config = setup.config
    batches = setup.data.batches(split, config.search.batch_size)
    return evaluate(model, batches, config.device, config.precision)


def prepare_supernet(
    setup: Setup, space: SearchSpace, folder: RunFolder, reporter: Reporter
) -> Supernet:
    """The untrained supernet, its choices projected and its activation ranges calibrated.

    The orders that are found are kept in the folder.
    """
    device = resolve_device(setup.config.device)
    layer_choices = space.layer_choices
    shared = [
        name
        for name, choices in layer_choices.items()
        if any(choice.shape is not None for choice in choices)
    ]
    # One descent: a search may have a thousand plans, and restarts gain little.
    search = AlignmentSearch(restarts=0, tolerance=1e-3) if setup.config.projection.align else None
    with timed(folder, "projection"):
        covariances = output_covariances(setup, shared)
        total = sum(
            len(choices) * ((search is not None) + (name in (covariances or {})))
            for name, choices in layer_choices.items()
        )
        with reporter.stage("Projection", total) as advance:
            supernet = Supernet(
                setup.model, setup.network, space, setup.quantization, search,
                covariances=covariances,
                alignments=folder.checkpoints / f"alignment-{space.digest[:12]}",
                progress=lambda done: advance(done, ""),
            )  # fmt: skip
    supernet.to(device)
    supernet.calibrate_activations(activation_batch(setup)[0].to(device))
    return supernet


def output_covariances(setup: Setup, layers: Sequence[str]) -> dict[str, Tensor] | None:
    """The covariances of layers' inputs in the trained network, where the run projects by them."""
    images, config = setup.config.projection.outputs, setup.config
    if images == 0:
        return None
    size = min(images, config.search.batch_size)
    batches = setup.data.calibration_batches(images, size, config.seed + 5)
    device = resolve_device(config.device)
    model = setup.model.to(device)
    with evaluation_mode(model):
        return input_covariances(model, ((to_device(x, device), y) for x, y in batches), layers)


def activation_batch(setup: Setup) -> Batch:
    """The augmented training images from which activation ranges are taken, and their labels."""
    size = min(256, setup.config.search.batch_size)
    return setup.data.calibration_batches(size, size, setup.config.seed)[0]


def measure_sensitivity(
    setup: Setup, supernet: Supernet, folder: RunFolder, reporter: Reporter
) -> Table:
    """The sensitivity table, from the folder if it is there."""
    config = setup.config
    settings = config.sensitivity
    size = min(settings.batch_size, settings.images)
    batches = setup.data.calibration_batches(settings.images, size, config.seed + 1)
    total = len(batches) * len(supernet.layers)
    with timed(folder, "sensitivity"), reporter.stage("Sensitivity", total) as advance:
        return measure_table(
            supernet,
            batches,
            find_method(settings.method),
            draws=settings.draws,
            device=resolve_device(config.device),
            seed=config.seed,
            checkpoint=sensitivity_file(folder, settings.method, supernet.space),
            progress=lambda done, _: advance(done, ""),
        )


def sensitivity_file(folder: RunFolder, method: str, space: SearchSpace) -> Path:
    """Where the table of a space is kept; it serves every budget."""
    return folder.checkpoints / f"sensitivity-{method}-{space.digest[:12]}.npz"


def seeds_of(setup: Setup, solver: FeasibleSolver) -> list[Row]:
    """The exact solutions that the search starts from.

    The strategy that scores nothing else gets as many as there are trials.
    """
    search, problem = setup.config.search, solver.problem
    alone = search.strategy == "exact"
    seeds = exact_seeds(solver, search.trials if alone else search.seeds)
    rows = [seed.row for seed in seeds]
    lost = [problem.total(problem.sensitivity, row) for row in rows]
    stand_in = sum(seed.stands_in for seed in seeds)
    proven = sum(seed.certificate.optimal and not seed.stands_in for seed in seeds)
    log.info(
        "%d exact seeds (%d proven optimal for their trade-off, %d by stand-ins of energy and "
        "latency): sensitivity %.4g to %.4g, %d to %d crossbars",
        len(seeds), proven, stand_in, min(lost), max(lost),
        min(map(problem.weight, rows)), max(map(problem.weight, rows)),
    )  # fmt: skip
    for number, seed in enumerate(seeds):
        log.debug(
            "seed %d: sensitivity %.4g, %d crossbars; least weighted sum of %s%s%s: %s",
            number,
            lost[number],
            problem.weight(seed.row),
            ", ".join(f"{weight:.3g} {name}" for name, weight in seed.weights.items()),
            " by stand-ins" if seed.stands_in else "",
            f", no layer slower than {seed.cap:.4g} ns" if math.isfinite(seed.cap) else "",
            seed.certificate,
        )
    return rows


def first_designs(
    setup: Setup,
    supernet: Supernet,
    teacher: nn.Module,
    solver: FeasibleSolver,
    seeds: Sequence[Row],
    folder: RunFolder,
    reporter: Reporter,
) -> Sequence[Row]:
    """What the strategy scores first: exact seeds, designs of a gradient descent, or nothing."""
    search = setup.config.search
    first = find_strategy(search.strategy).first
    if first != "gradient":
        return seeds if first else []
    device = resolve_device(setup.config.device)
    size = setup.config.data.batch_size
    batches = setup.data.calibration_batches(_GRADIENT_BATCHES * size, size, setup.config.seed + 6)
    images = [to_device(x, device) for x, _ in batches]
    relaxation = Relaxation(supernet, teacher.to(device), images, setup.config.precision)
    with timed(folder, "gradient"), reporter.stage("Gradient", search.gradient_steps) as advance:
        rows = gradient_rows(
            solver,
            search.trials,
            relaxation,
            Descent(steps=search.gradient_steps, lr=search.gradient_lr),
            setup.config.seed,
            checkpoint=folder.checkpoints / "gradient.state",
            progress=lambda step, loss: advance(step, f"loss {loss:.3f}"),
        )
    if len(rows) < search.trials:
        log.info(
            "the descent gave %d different designs for %d trials; more search.gradient_steps give "
            "more", len(rows), search.trials,
        )  # fmt: skip
    return rows


def make_scorer(setup: Setup, supernet: Supernet, teacher: nn.Module) -> Scorer:
    """What the executors' workers run."""
    return Scorer(supernet, teacher, setup.data, score_settings(setup))


def score_settings(setup: Setup) -> ScoreSettings:
    """How the run file wants designs to be measured."""
    config = setup.config
    return ScoreSettings(
        batch_size=config.search.batch_size,
        calibration_images=config.search.calibration_images,
        validation_images=config.search.validation_images,
        device=config.device,
        precision=config.precision,
        seed=config.seed + 3,
        own={metric.name: metric.measured_value for metric in own_metrics(measured=True)},
    )
