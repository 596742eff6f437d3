"""Full training of one design: what ``epim-nas finetune`` does."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from epim_nas.epitome.design import load_design
from epim_nas.errors import InputError, InterruptedRun
from epim_nas.export.weights import WEIGHTS
from epim_nas.files import locked, make_folder
from epim_nas.models.weights import save_weights
from epim_nas.pipeline.config import FinetuneConfig, load_run_config
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.evaluate import load_trained, quantized_network, recalibrate
from epim_nas.pipeline.finetune.folder import DAMAGED, Result, Start, adopt, settings_of
from epim_nas.pipeline.finetune.job import Job, run_training, started_network, steps_per_epoch
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.measure import measure, score_settings
from epim_nas.pipeline.preflight import check_training, check_workers
from epim_nas.pipeline.progress import Reporter
from epim_nas.pipeline.results import relative
from epim_nas.pipeline.workers import train_on_workers
from epim_nas.schema import load_json_as, validate
from epim_nas.stored import remove_stored, store_json
from epim_nas.supernet.damage import measure_damage, peak_rate
from epim_nas.supernet.train_config import TrainConfig
from epim_nas.supernet.training import TrainResult

log = logging.getLogger(__name__)


def finetune_design(
    design_file: Path,
    run_file: str,
    *,
    options: Mapping[str, Any] | None = None,
    weights: Path | None = None,
    workers: int = 1,
    out: Path | None = None,
    overrides: list[str] | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Train one design fully; an interrupted training goes on.

    Args:
        design_file: the design.
        run_file: run file that names network, data and weights.
        options: keys of the run file's ``finetune`` group that differ.
        weights: epitomes to start from, such as a finalist's; by default the run's trained network
            is projected.
        workers: processes that share every batch, by Ray Train; each takes a GPU where there is
            one.
        out: folder; ``finetuned/DESIGN`` by default.
        overrides: changes to the run file.
        reporter: shows the progress.

    Returns:
        What ``result.json`` holds, with the path of the weights in place of their file name.

    Raises:
        InputError: a wrong option, file or folder.
        InterruptedRun: interrupted by the user; the training is saved.
    """
    if weights is not None and not weights.is_file():
        allowed = "a .safetensors file of epitomes"
        raise InputError("--weights", f"{weights} is not a file", allowed)
    design = load_design(design_file)
    config, path = load_run_config(run_file, overrides)
    config = config.model_copy(update={"finetune": _with(config.finetune, options or {})})
    name = design_file.stem
    folder = make_folder(out if out is not None else Path("finetuned") / name, "--out").resolve()
    job = Job(config, path.parent.resolve(), design, folder)
    with locked(folder, "fine-tuning"):
        try:
            folder_of_run = RunFolder(job.run_folder)
            run = load_trained(job.config, folder_of_run, design, str(design_file), reporter)
            finished = adopt(job, settings_of(job, run, weights, workers))
            if finished is not None:
                log.info("%s was finished before: nothing to do", folder)
            else:
                finished = _train(job, run, weights, workers)
        except KeyboardInterrupt:
            raise InterruptedRun(
                f"interrupted; everything finished is saved in {folder}. "
                "Type the same command to go on."
            ) from None
    # Only the name is stored: the folder may be moved, and read from another current folder.
    return {**finished, "weights": relative(folder / finished["weights"])}


def _train(job: Job, run: Run, weights: Path | None, workers: int) -> Result:
    """Train, and store the result; returns what is stored."""
    _check(run, workers)
    training, start = _prepare(job, run, weights)
    log.info(
        "top-1 %.2f %% before training, damage %.3g nats, learning rate %.3g%s, %d steps",
        100 * start.before,
        start.damage,
        start.learning_rate,
        " (follows the damage)" if job.config.finetune.lr == "auto" else "",
        training.steps,
    )
    if workers > 1:
        train_on_workers(job, training, workers, run.reporter)
    model = started_network(job, run)
    with run.reporter.stage("Fine-tuning", training.steps) as advance, _stopping() as stop:
        result = run_training(
            job, run, model, training,
            progress=lambda step, loss: advance(step, f"loss {loss:.3f}"), stop=stop,
        )  # fmt: skip
        if not result.finished:  # inside of the stage, which says that it is done otherwise
            raise InterruptedRun(
                f"interrupted at step {result.steps} of {training.steps}; the training is saved in "
                f"{job.folder}. Type the same command to go on."
            )
    return _conclude(job, run, model, start, result)


def _check(run: Run, workers: int) -> None:
    """Check, before anything is computed, that the training can be had.

    Raises:
        InputError: batches that cannot be made or shared, or no Ray to share them with.
    """
    training = run.config.finetune
    check_training(run, training, "finetune")
    if workers > 1:
        check_workers(run.config, training, workers, "--workers")


def _with(config: FinetuneConfig, options: Mapping[str, Any]) -> FinetuneConfig:
    """The group with what the command line says."""
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return validate(FinetuneConfig, {**config.model_dump(), **given}, "finetune")
    except InputError as error:
        option = next((key for key in given if error.field.endswith(key)), None)
        if option is None:
            raise
        raise InputError(f"--{option}", error.problem, error.allowed, error.hint) from None


def _prepare(job: Job, run: Run, weights: Path | None) -> tuple[TrainConfig, Start]:
    """The start of the training, measured, from the folder where it is known."""
    config = run.config
    settings = config.finetune
    if job.start_record.exists() and job.start.exists():
        start = load_json_as(job.start_record, Start, DAMAGED)
    else:
        model = quantized_network(run, job.design, weights)
        batches = score_settings(run).calibration_batches(run.data)
        recalibrate(run, model)
        before = measure(run, model, "validation").accuracy
        damage = measure_damage(model, run.model, batches, config.device, config.precision)
        start = Start(before, damage, peak_rate(settings.lr, damage))
        save_weights(model, job.start, stored=True)
        store_json(job.start_record, asdict(start))
    training = settings.train_config(1, config.data.batch_size, start.learning_rate)
    steps = settings.epochs * steps_per_epoch(run, training)
    return replace(training, steps=steps), start


def _conclude(job: Job, run: Run, model: nn.Module, start: Start, trained: TrainResult) -> Result:
    """Keep the better of before and after by validation, measure the test images once, store."""
    recalibrate(run, model)
    after = measure(run, model, "validation").accuracy
    if after < start.before:
        log.warning(
            "top-1 fell from %.2f to %.2f %%: the weights before training are kept. "
            "Use a smaller finetune.lr or more epochs.",
            100 * start.before,
            100 * after,
        )
        model = started_network(job, run)
    weights = job.folder / WEIGHTS
    result: Result = {
        "schema": "epim-nas/finetuning@1",
        "network": job.design.network,
        "epochs": job.config.finetune.epochs,
        "steps": trained.steps if after >= start.before else 0,
        "learning_rate": start.learning_rate,
        "damage": start.damage,
        "before": start.before,
        "validation_accuracy": max(start.before, after),
        "test_accuracy": measure(run, model, "test").accuracy,
        "validation_curve": list(trained.measured),
        "weights": weights.name,
    }
    measured = {
        "validation_accuracy": result["validation_accuracy"],
        "test_accuracy": result["test_accuracy"],
        "epochs": result["epochs"],
    }
    texts = {key: str(value) for key, value in measured.items()}
    save_weights(model, weights, metadata=texts, stored=True)
    provenance = {**job.design.provenance, "finetuned": measured}
    replace(job.design, provenance=provenance).save(job.folder / "design.yaml")
    store_json(job.folder / "result.json", result)
    for temporary in (job.state, job.start, job.start_record):
        remove_stored(temporary)
    return result


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a wish to stop after the step; a second one kills."""
    wished = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield wished.is_set
        return
    before: dict[signal.Signals, Any] = {}

    def wish(number: int, frame: object) -> None:
        wished.set()
        for kind, handler in before.items():
            signal.signal(kind, handler)

    for kind in (signal.SIGINT, signal.SIGTERM):
        before[kind] = signal.signal(kind, wish)
    try:
        yield wished.is_set
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
