"""The stages of a run, each of which can be interrupted and resumed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from torch import Tensor, nn

from epim_nas.cluster.executor import Executor
from epim_nas.errors import EpimError, InputError
from epim_nas.files import file_digest, write_json
from epim_nas.models.weights import find_weights, load_weights, save_weights
from epim_nas.pipeline.config import PRETRAINED, TrainingConfig
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.progress import Advance, Reporter
from epim_nas.pipeline.setup import Setup
from epim_nas.space.space import Row, SearchSpace
from epim_nas.study.pareto import front_numbers, select
from epim_nas.study.problem import SearchProblem, exact_seeds
from epim_nas.study.results import Baseline, Finalist, TrialRecord
from epim_nas.study.samplers import distributions, mutate, params_of, row_of
from epim_nas.study.store import Pending, TrialStore
from epim_nas.study.strategies import find_strategy
from epim_nas.supernet.evaluation import evaluate, resolve_device
from epim_nas.supernet.scorer import FinetuneResult, Scorer, ScoreSettings
from epim_nas.supernet.sensitivity import Table, output_fisher
from epim_nas.supernet.supernet import Supernet
from epim_nas.supernet.training import TrainConfig, train

log = logging.getLogger(__name__)

_MAX_FAILURES = 5
"""So many failed evaluations in a row mean that something is wrong with all of them."""


@contextmanager
def timed(folder: RunFolder, stage: str) -> Iterator[None]:
    """Add the time of a block to the folder's record, also when it is interrupted."""
    started = time.monotonic()
    try:
        yield
    finally:
        folder.note_seconds(stage, time.monotonic() - started)


def train_config(config: TrainingConfig, batch_size: int) -> TrainConfig:
    """A run file's training as the loop's configuration."""
    return TrainConfig(
        steps=config.steps,
        batch_size=config.batch_size or batch_size,
        lr=config.lr,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        distillation=config.distillation,
    )


def prepare_baseline(setup: Setup, folder: RunFolder, reporter: Reporter) -> Baseline:
    """Load the trained weights into ``setup.model``, or train and cache them; measure once."""
    config, model = setup.config, setup.model
    cached = folder.checkpoints / "baseline.safetensors"
    if config.model.weights == PRETRAINED:
        source = f"as {config.model.name} comes with {config.model.args}"
    elif config.model.weights is not None:
        file = find_weights(config.model.weights)
        load_weights(model, file)
        source = f"{config.model.weights} (sha256 {file_digest(file)[:16]})"
    elif cached.exists():
        source = "trained in this run"
        load_weights(model, cached)
    else:
        source = "trained in this run"
        log.info("model.weights is not given: training the baseline first")
        training = config.baseline
        with timed(folder, "baseline"), reporter.stage("Baseline", training.steps) as advance:
            train(
                model,
                setup.data,
                train_config(training, config.data.batch_size),
                seed=config.seed,
                device=config.device,
                precision=config.precision,
                checkpoint=folder.checkpoints / "baseline.state",
                progress=lambda step, loss: advance(step, f"loss {loss:.3f}"),
            )
        save_weights(model, cached, metadata={"run": config.name})
        (folder.checkpoints / "baseline.state").unlink(missing_ok=True)
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
        accuracy = {
            split: evaluate(
                model,
                setup.data.batches(split, config.search.batch_size),
                config.device,
                config.precision,
            ).accuracy
            for split in ("validation", "test")
        }
    baseline = Baseline(
        validation_accuracy=accuracy["validation"],
        test_accuracy=accuracy["test"],
        totals=asdict(setup.dense_cost(32).totals),
        weights=source,
    )
    write_json(folder.baseline, asdict(baseline))
    return baseline


def prepare_supernet(setup: Setup, space: SearchSpace) -> Supernet:
    """The untrained supernet, its activation ranges calibrated."""
    config = setup.config
    device = resolve_device(config.device)
    supernet = Supernet(setup.model, setup.network, space).to(device)
    supernet.calibrate_activations(activation_images(setup).to(device))
    return supernet


def activation_images(setup: Setup) -> Tensor:
    """(N, C, H, W) augmented training images from which activation ranges are taken."""
    size = min(256, setup.config.search.batch_size)
    return setup.data.calibration_batches(size, size, setup.config.seed)[0][0]


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
        return output_fisher(
            supernet,
            batches,
            device=resolve_device(config.device),
            seed=config.seed,
            checkpoint=folder.checkpoints / f"sensitivity-{supernet.space.digest[:12]}.npz",
            progress=lambda done, _: advance(done, ""),
        )


def seeds_of(setup: Setup, problem: SearchProblem) -> list[Row]:
    """The exact solutions that the search starts from."""
    return exact_seeds(problem, setup.config.objectives, setup.config.search.seeds)


def train_supernet(
    setup: Setup,
    supernet: Supernet,
    teacher: nn.Module,
    problem: SearchProblem,
    seeds: Sequence[Row],
    folder: RunFolder,
    reporter: Reporter,
) -> tuple[tuple[int, float], ...]:
    """Brief training of the shared weights by the sandwich rule; returns the loss curve.

    Every step trains the most precise design, the smallest one, and a few close to the exact
    front, where the search will look.
    """
    config = setup.config.supernet
    if config.steps == 0:
        return ()
    precise = tuple(int(np.argmin(scores)) for scores in problem.sensitivity)
    smallest = tuple(int(np.argmin(weights)) for weights in problem.crossbars)

    def designs(step: int) -> Iterator[Callable[[], None]]:
        rng = np.random.default_rng([setup.config.seed, 77, step])
        rows: list[Sequence[int]] = [precise, smallest]
        for _ in range(config.random):
            start = seeds[int(rng.integers(len(seeds)))]
            rows.append(problem.repair(mutate(start, problem, rng, int(rng.integers(0, 4)))))
        for row in rows:
            yield lambda row=row: supernet.select(row)  # type: ignore[misc]

    with timed(folder, "supernet"), reporter.stage("Supernet", config.steps) as advance:
        result = train(
            supernet,
            setup.data,
            train_config(config, setup.config.data.batch_size),
            seed=setup.config.seed + 2,
            device=setup.config.device,
            precision=setup.config.precision,
            teacher=teacher,
            checkpoint=folder.checkpoints / "supernet.state",
            checkpoint_every=25,
            progress=lambda step, loss: advance(step, f"loss {loss:.3f}"),
            variants=designs,
        )
    supernet.select(None)
    return result.curve


def make_scorer(setup: Setup, supernet: Supernet, teacher: nn.Module) -> Scorer:
    """What the executors' workers run."""
    config = setup.config
    return Scorer(
        supernet,
        teacher,
        setup.data,
        ScoreSettings(
            batch_size=config.search.batch_size,
            calibration_images=config.search.calibration_images,
            validation_images=config.search.validation_images,
            device=config.device,
            precision=config.precision,
            seed=config.seed + 3,
        ),
    )


def run_trials(
    setup: Setup,
    problem: SearchProblem,
    seeds: Sequence[Row],
    store: TrialStore,
    executor: Executor,
    reporter: Reporter,
    on_trial: Callable[[TrialRecord], None] = lambda record: None,
) -> None:
    """Score designs until the run file's number of trials is stored.

    The study lives in memory (ask and tell); every finished trial is one durable write.
    """
    config = setup.config
    strategy = find_strategy(config.search.strategy)
    target = config.search.trials
    if not strategy.seeded:
        seeds = []
    if not strategy.proposes:
        target = min(target, len(seeds))
    study = optuna.create_study(
        directions=list(store.study.directions),
        sampler=strategy.make(problem, config.seed),
    )
    _replay(study, store, problem, seeds)
    scored = {row_of(trial.params, problem) for trial in store.trials()}
    in_flight: dict[int, tuple[optuna.Trial, Pending]] = {}
    failures = 0
    done = len(store.trials())
    with reporter.stage("Search", target, min(done, target)) as advance:
        while done < target:
            while len(in_flight) < executor.capacity and done + len(in_flight) < target:
                trial = study.ask(distributions(problem))
                pending = Pending(
                    trial.number,
                    row_of(trial.params, problem),
                    "seed" if trial.number < len(seeds) else "search",
                    _sampler_state(study, trial.number),
                )
                if pending.row in scored:
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    break
                scored.add(pending.row)
                store.begin(pending)
                in_flight[trial.number] = (trial, pending)
                executor.submit(trial.number, "score", pending.row)
            if not in_flight:
                log.info("every design within reach was scored: the search ends early")
                break
            outcome = executor.wait()
            assert isinstance(outcome.key, int)
            trial, pending = in_flight.pop(outcome.key)
            metrics, error = None, outcome.error
            if not error and not math.isfinite(outcome.value.loss):
                error = "the network's output is not finite"
            if not error:
                metrics = setup.metrics(problem.space.design(pending.row)) | {
                    "sensitivity": problem.total(problem.sensitivity, pending.row),
                    "accuracy": outcome.value.accuracy,
                    "loss": outcome.value.loss,
                }
            constraints = {"crossbars": float(problem.weight(pending.row) - problem.budget)}
            stored = store.add(
                pending,
                metrics,
                constraints=constraints,
                finished_at=time.time(),
                seconds=outcome.seconds,
                error=error,
            )
            done += 1
            if metrics is None:
                failures += 1
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                log.warning("trial %d failed: %s", stored.number, error)
                if failures >= _MAX_FAILURES:
                    raise EpimError(
                        f"{failures} evaluations failed in a row, the last with "
                        f"{error}; what was finished is saved"
                    )
                continue
            failures = 0
            trial.set_constraint("crossbars", constraints["crossbars"])
            study.tell(trial, [metrics[name] for name in store.objectives])
            advance(done, f"top-1 {100 * metrics['accuracy']:.1f} %")
            on_trial(store.record(stored))


def _replay(
    study: optuna.Study, store: TrialStore, problem: SearchProblem, seeds: Sequence[Row]
) -> None:
    """Fill a fresh study in memory with the stored trials, in the order in which they were asked.

    Proposals that were in flight take their old places, so that everything after them is proposed
    as it would have been.
    """
    waiting = {pending.asked: pending for pending in store.left_over()}
    stored = {int(trial.user_attrs["asked"]): trial for trial in store.trials()}
    for asked in range(max([*waiting, *stored], default=-1) + 1):
        if asked in stored:
            study.add_trial(stored[asked])
        elif asked in waiting:
            # As `enqueue_trial` does it, with what the sampler had noted.
            state = {"fixed_params": params_of(waiting[asked].row, problem)}
            state |= waiting[asked].sampler_state
            study.add_trial(
                optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING, system_attrs=state)
            )
        else:  # it proposed a known design: nothing was stored, but its number is taken
            study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    for row in seeds[len(study.get_trials(deepcopy=False)) :]:
        study.enqueue_trial(params_of(row, problem))


def _sampler_state(study: optuna.Study, number: int) -> dict[str, Any]:
    """What the sampler noted in a trial of the study in memory."""
    attributes = study.get_trials(deepcopy=False)[number].system_attrs
    return {key: value for key, value in attributes.items() if key != "fixed_params"}


def choose_finalists(
    records: Sequence[TrialRecord], objectives: Sequence[str], count: int
) -> list[TrialRecord]:
    """Designs of the front to train on their own: the named selections first, then evenly."""
    by_number = {record.number: record for record in records}
    front = [by_number[number] for number in front_numbers(records, objectives)]
    if not front:
        return []
    chosen: dict[int, None] = {}
    for which in ("best-accuracy", "knee", "best-latency", "best-energy"):
        chosen[select(front, which, objectives).number] = None
    for index in np.round(np.linspace(0, len(front) - 1, min(len(front), count))).astype(int):
        chosen[front[index].number] = None
    return [by_number[number] for number in list(chosen)[:count]]


def finetune_finalists(
    setup: Setup,
    space: SearchSpace,
    finalists: Sequence[TrialRecord],
    folder: RunFolder,
    executor: Executor,
    scorer: Scorer,
    reporter: Reporter,
    on_finalist: Callable[[Finalist], None] = lambda finalist: None,
) -> list[Finalist]:
    """Train the finalists on their own; those that are stored are not trained again."""
    config = train_config(setup.config.finalists, setup.config.data.batch_size)
    steps = config.steps
    folder.finalists.mkdir(parents=True, exist_ok=True)
    waiting: dict[int, TrialRecord] = {}
    for record in finalists:
        if not finalist_file(folder, record.number).exists():
            waiting[record.number] = record
    started = len(finalists) - len(waiting)
    with (
        timed(folder, "finalists"),
        reporter.stage("Finalists", len(finalists) * steps, started * steps) as advance,
    ):
        for record in waiting.values():
            weights = finalist_file(folder, record.number).with_suffix(".safetensors")
            executor.submit(
                record.number,
                "finetune",
                space.row(record.design),
                config,
                setup.config.seed + 4,
                str(weights.with_suffix(".state").resolve()),
                str(weights.resolve()),
            )
        for done in range(started, len(finalists)):
            # Steps are seen where the work is done in this process; elsewhere, whole designs.
            scorer.progress = partial(_advance_from, advance, done * steps)
            outcome = executor.wait()
            assert isinstance(outcome.key, int)
            if outcome.error:
                log.warning("fine-tuning of trial %d failed: %s", outcome.key, outcome.error)
                continue
            result: FinetuneResult = outcome.value
            path = finalist_file(folder, outcome.key)
            write_json(path, {"trial": outcome.key, **asdict(result)})
            path.with_suffix(".state").unlink(missing_ok=True)
            advance((done + 1) * steps, f"top-1 {100 * result.validation_accuracy:.1f} %")
    stored = load_finalists(folder, finalists)
    for finalist in stored:
        on_finalist(finalist)
    return stored


def _advance_from(advance: Advance, start: int, step: int, loss: float) -> None:
    advance(start + step, f"loss {loss:.3f}")


def finalist_file(folder: RunFolder, number: int) -> Path:
    """The file of a finalist's result."""
    return folder.finalists / f"trial-{number:04d}.json"


def load_finalists(folder: RunFolder, records: Sequence[TrialRecord]) -> list[Finalist]:
    """The stored finalists among ``records``, by falling validation accuracy."""
    found = []
    for record in records:
        path = finalist_file(folder, record.number)
        if path.exists():
            result = folder.read_json(path)
            found.append(
                Finalist(
                    number=record.number,
                    design=record.design,
                    metrics=record.metrics,
                    steps=result["steps"],
                    validation_accuracy=result["validation_accuracy"],
                    test_accuracy=result["test_accuracy"],
                    curve=tuple((int(step), float(loss)) for step, loss in result["curve"]),
                    weights=str(path.with_suffix(".safetensors").relative_to(folder.path)),
                )
            )
    return sorted(found, key=lambda finalist: -finalist.validation_accuracy)
