"""The finalists: which designs of the front are trained on their own, and what became of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from epim_nas.cluster.executor import LocalExecutor
from epim_nas.cluster.ray_tune import tune_stepwise
from epim_nas.cluster.registry import pool_settings
from epim_nas.files import make_parents
from epim_nas.pipeline.context import Run
from epim_nas.pipeline.folder import RunFolder
from epim_nas.pipeline.progress import Advance
from epim_nas.records import Finalist, TrialRecord
from epim_nas.solver.pareto import front_numbers, select
from epim_nas.solver.ranking import expected_rank
from epim_nas.space.space import SearchSpace
from epim_nas.stored import remove_stored, store_json
from epim_nas.study.store import TrialStore
from epim_nas.supernet.scorer import FinetuneResult, Scorer, start_file

log = logging.getLogger(__name__)


def choose_finalists(
    records: Sequence[TrialRecord], objectives: Sequence[str], count: int
) -> list[TrialRecord]:
    """Designs to train on their own: at most ``count``.

    First the feasible one that is expected to be the best after training
    (:func:`~epim_nas.solver.ranking.expected_rank`), then the named selections of the front, then
    the rest of the front evenly.
    """
    by_number = {record.number: record for record in records}
    front = [by_number[number] for number in front_numbers(records, objectives)]
    if not front:
        return []
    hopeful = max(
        (record for record in records if record.feasible),
        key=lambda record: (expected_rank(record.metrics), -record.number),
    )
    reasons: dict[int, str] = {hopeful.number: "expected to be the best after training"}
    for which in ("best-accuracy", "knee", "best-latency", "best-energy"):
        reasons.setdefault(select(front, which, objectives).number, which)
    for index in np.round(np.linspace(0, len(front) - 1, min(len(front), count))).astype(int):
        reasons.setdefault(front[index].number, "spread over the front")
    chosen = list(reasons)[:count]
    log.info(
        "%d of %d designs on the front; to be trained on their own: %s",
        len(front),
        len(records),
        ", ".join(f"trial {number} ({reasons[number]})" for number in chosen) or "none",
    )
    return [by_number[number] for number in chosen]


def finetune_finalists(
    run: Run,
    space: SearchSpace,
    finalists: Sequence[TrialRecord],
    store: TrialStore,
    scorer: Scorer,
    on_finalist: Callable[[Finalist], None] = lambda finalist: None,
) -> list[Finalist]:
    """Train the finalists on their own; those that are stored are not trained again.

    In this process one after the other; on Ray side by side, the worse half stopping early
    (:func:`~epim_nas.cluster.ray_tune.tune_stepwise`).
    """
    settings = run.config.finalists
    config = settings.train_config(settings.steps, run.config.data.batch_size)
    make_parents(finalist_file(run.folder, 0))
    jobs: dict[int, tuple[Any, ...]] = {}
    for record in finalists:
        file = finalist_file(run.folder, record.number)
        if not file.exists():
            weights = file.with_suffix(".safetensors").resolve()
            state = str(weights.with_suffix(".state"))
            row, seed = space.row(record.design), run.config.seed + 4
            jobs[record.number] = (row, config, seed, state, str(weights), settings.lr)
    done = (len(finalists) - len(jobs)) * settings.steps
    train = _train_on_ray if run.config.executor.kind == "ray" else _train_here
    with (
        run.stage("finalists", "Finalists", len(finalists) * settings.steps, done) as advance,
    ):
        for number, result in train(run, scorer, jobs, partial(_later, advance, done)):
            path = finalist_file(run.folder, number)
            store_json(path, {"trial": number, **result})
            for left in (path.with_suffix(".state"), start_file(path.with_suffix(".state"))):
                remove_stored(left)
    stored = load_finalists(run.folder, finalists)
    store.note_finalists(stored)
    for finalist in stored:
        on_finalist(finalist)
    return stored


Results = Iterator[tuple[int, dict[str, Any]]]
"""(number of the trial, fields of its :class:`FinetuneResult`)."""


def _train_here(
    run: Run,
    scorer: Scorer,
    jobs: Mapping[int, tuple[Any, ...]],
    advance: Advance,
) -> Results:
    steps = run.config.finalists.steps
    with LocalExecutor(lambda: scorer) as executor:
        for number, arguments in jobs.items():
            executor.submit(number, "finetune", *arguments)
        for done in range(len(jobs)):
            scorer.progress = partial(_advance_from, advance, done * steps)
            outcome = executor.wait()
            assert isinstance(outcome.key, int)
            if outcome.error:
                _failed(outcome.key, outcome.error)
                continue
            result: FinetuneResult = outcome.value
            advance((done + 1) * steps, f"top-1 {100 * result.validation_accuracy:.1f} %")
            yield outcome.key, asdict(result)


def _train_on_ray(
    run: Run,
    scorer: Scorer,
    jobs: Mapping[int, tuple[Any, ...]],
    advance: Advance,
) -> Results:
    if not jobs:
        return
    config, executor = run.config.finalists, run.config.executor
    rungs = min(config.rungs, config.steps)
    steps = [config.steps * (part + 1) // rungs for part in range(rungs)]
    reached: dict[int, int] = {}

    def note(number: int, part: int, accuracy: float) -> None:
        reached[number] = steps[part - 1]
        advance(sum(reached.values()), f"top-1 {100 * accuracy:.1f} %")

    tuned = tune_stepwise(
        scorer, "finetune", jobs, steps,
        pool=pool_settings(executor), storage=(run.folder.finalists / "ray").resolve(),
        address=executor.address, on_result=note,
    )  # fmt: skip
    for number, found in tuned.items():
        if found.error or found.result is None:
            _failed(number, found.error or "no result")
            continue
        if reached.get(number, 0) < config.steps:
            log.info("trial %d: stopped after %d steps", number, reached.get(number, 0))
        yield number, found.result


def _failed(number: int, error: str) -> None:
    log.warning("fine-tuning of trial %d failed: %s", number, error)


def _later(advance: Advance, start: int, step: int, text: str = "") -> None:
    advance(start + step, text)


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
            weights = str(path.with_suffix(".safetensors").relative_to(folder.path))
            found.append(folder.parse(path, partial(_finalist, record, weights)))
    return sorted(found, key=lambda finalist: -finalist.validation_accuracy)


def _finalist(record: TrialRecord, weights: str, result: dict[str, Any]) -> Finalist:
    return Finalist(
        number=record.number,
        design=record.design,
        metrics=record.metrics,
        steps=int(result["steps"]),
        validation_accuracy=float(result["validation_accuracy"]),
        test_accuracy=float(result["test_accuracy"]),
        curve=tuple((int(step), float(loss)) for step, loss in result["curve"]),
        weights=weights,
        validation_images=int(result.get("validation_images", 0)),  # not in older runs
    )
